"""The chat template of the `nvila` layout also takes a message's content as a list of parts, as OpenAI's clients send it."""

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
"""Turns lists of parts into text with the media tokens; the template proper follows unchanged."""


def wrap_template(template: str) -> str:
    """Return `template` widened to lists of parts. Rendering of plain strings stays the same."""
    return template if template.startswith(MEDIA_PREFIX) else MEDIA_PREFIX + template


def unwrap_template(template: str) -> str:
    """Return what `wrap_template` was given."""
    return template.removeprefix(MEDIA_PREFIX)
