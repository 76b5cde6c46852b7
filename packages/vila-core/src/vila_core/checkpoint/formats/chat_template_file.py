"""Chat templates of the `nvila` format, which also accept message content as a list of parts, as in OpenAI's API."""

MEDIA_PREFIX = (
    "{%- set ns = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string or message['content'] is none -%}"
    "{%- set ns.messages = ns.messages + [message] -%}"
    "{%- else -%}"
    "{%- set joined = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] in ('image', 'image_url') -%}{%- set joined.text = joined.text + '<image>' -%}"
    "{%- elif part['type'] in ('video', 'video_url') -%}{%- set joined.text = joined.text + '<vila/video>' -%}"
    "{%- else -%}{%- set joined.text = joined.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set ns.messages = ns.messages + [{'role': message['role'], 'content': joined.text}] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = ns.messages -%}"
)
"""Turns lists of parts into text with media tokens; the unchanged template follows."""


def wrap_template(template: str) -> str:
    """Return `template` extended to lists of parts. Plain strings render as before."""
    return template if template.startswith(MEDIA_PREFIX) else MEDIA_PREFIX + template


def unwrap_template(template: str) -> str:
    """Undo `wrap_template`."""
    return template.removeprefix(MEDIA_PREFIX)
