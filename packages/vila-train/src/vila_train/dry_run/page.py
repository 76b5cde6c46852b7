"""The page of a dry run: one HTML file that needs no other. All texts in it are escaped."""

import html
from collections.abc import Iterator

from vila_core.display.html import facts_table
from vila_core.display.media import image_html, video_html
from vila_core.media import Image, Video
from vila_core.tokenizer import Tokenizer
from vila_train.dry_run.measuring import Encoded, Measured
from vila_train.dry_run.report import Report
from vila_train.labels import IGNORE_INDEX
from vila_train.samples import TrainingSample

SHOWN = 12
"""Samples on the page."""
MEDIA_SHOWN = 8
"""Images and videos of a sample."""
MAX_CHARACTERS = 6000
"""Of one run of text; its middle is left out beyond."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em } table { border-collapse: collapse }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto }
.sample { border: 1px solid #ccc; border-radius: 6px; padding: .6em 1em; margin: 1em 0 }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: 13px }
.learned { background: #bfe8c5; border-radius: 3px } .context { color: #666 }
.media { background: #d8e4f8; border-radius: 3px; padding: 0 .3em } .note { color: #666 }
"""


def draw_page(name: str, settings: str, report: Report, measured: Measured) -> str:
    """Return the page as HTML.

    Args:
        name: of the run.
        settings: as YAML.
        report: what the dry run found.
        measured: its samples.
    """
    tokenizer = measured.opened.tokenizer
    samples = "".join(_sample(one, tokenizer) for one in measured.encoded[:SHOWN])
    facts = "".join(f"<h2>{html.escape(title)}</h2>{facts_table(values)}" for title, values in report.items())
    skipped = "".join(f'<p class="note">Skipped: {html.escape(message)}</p>' for message in measured.messages)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f"<style>{STYLE}</style></head><body><h1>Dry run of {html.escape(name)}</h1>{facts}"
        '<h2>Samples</h2><p>The loss counts the tokens on <span class="learned">green</span>. '
        '<span class="media">Blue</span> stands for an image or a video.</p>'
        f"{samples}{skipped}<h2>Settings</h2><pre>{html.escape(settings)}</pre></body></html>\n"
    )


def _sample(one: Encoded, tokenizer: Tokenizer) -> str:
    media = [
        part
        for message in one.conversation.messages
        for part in ([message.content] if isinstance(message.content, str | Image | Video) else message.content)
        if isinstance(part, Image | Video)
    ]
    pictures = "".join(
        video_html(part) if isinstance(part, Video) else image_html(part) for part in media[:MEDIA_SHOWN]
    )
    more = f'<p class="note">and {len(media) - MEDIA_SHOWN} more</p>' if len(media) > MEDIA_SHOWN else ""
    facts = f"{len(one.sample):,} tokens, {one.sample.num_labels:,} learned"
    tokens = "".join(_tokens(one.sample, tokenizer))
    return (
        f'<div class="sample"><b>{html.escape(one.sample.name)}</b> <span class="note">{facts}</span>'
        f'<div>{pictures}{more}</div><div class="tokens">{tokens}</div></div>'
    )


def _tokens(sample: TrainingSample, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield runs of tokens that are alike: media, learned, not learned."""
    media = {
        position: number
        for number, blocks in enumerate(sample.expanded.blocks)
        for block in blocks
        for position in block
    }
    runs: list[tuple[str, int, list[int]]] = []
    for position, (token, label) in enumerate(zip(sample.expanded.ids, sample.labels, strict=True)):
        kind = "media" if position in media else "context" if label == IGNORE_INDEX else "learned"
        number = media.get(position, -1)
        if not runs or runs[-1][:2] != (kind, number):
            runs.append((kind, number, []))
        runs[-1][2].append(token)
    for kind, number, ids in runs:
        if kind == "media":
            is_drawn = bool(sample.drawn) and sample.drawn[number]
            text = f"{sample.prompt.media[number].kind} {number + 1}: {len(ids):,} tokens"
            text, kind = (f"{text}, drawn", "learned") if is_drawn else (text, kind)
        else:
            text = _shortened(tokenizer.decode(ids, skip_special_tokens=False))
        yield f'<span class="{kind}">{html.escape(text)}</span>'


def _shortened(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    return f"{text[:half]}\n… ({len(text) - 2 * half:,} characters) …\n{text[-half:]}"
