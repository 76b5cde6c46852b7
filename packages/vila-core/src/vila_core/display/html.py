"""HTML for notebooks. Every text is escaped: names, prompts and answers may come from anywhere."""

import base64
import html
import io
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import PIL.Image

CARD = "display:inline-block;max-width:100%;padding:.4em .8em;border:1px solid rgba(128,128,128,.4);border-radius:6px"
CELL = "text-align:left;padding:.1em 1em .1em 0;border:0"


def card(title: str, *contents: str) -> str:
    """Return a box with a title (plain text) and contents (HTML)."""
    return f'<div style="{CARD}"><div><b>{html.escape(title)}</b></div>{"".join(contents)}</div>'


def facts_table(facts: Mapping[str, str]) -> str:
    """Return names and values as a table of two columns."""
    rows = "".join(
        f'<tr style="background:none"><td style="{CELL};opacity:.7">{html.escape(name)}</td>'
        f'<td style="{CELL}">{html.escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f'<table style="margin:.3em 0;border:0">{rows}</table>'


def note(text: str) -> str:
    """Return a line in a fainter color."""
    return f'<div style="opacity:.7">{html.escape(text)}</div>'


def block(text: str, limit: int = 20_000) -> str:
    """Return a longer text with its line breaks; its middle is left out beyond `limit` characters."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n… ({len(text) - limit:,} characters) …\n{text[-limit // 2 :]}"
    return f'<div style="white-space:pre-wrap;overflow-wrap:anywhere;margin:.3em 0">{html.escape(text)}</div>'


def picture(image: "PIL.Image.Image") -> str:
    """Return a picture as an `<img>` that needs no other file."""
    data = base64.b64encode(to_png(image)).decode()
    style = "display:block;max-width:100%;height:auto;margin:.3em 0"
    return f'<img style="{style}" width="{image.width}" height="{image.height}" src="data:image/png;base64,{data}">'


def to_png(image: "PIL.Image.Image") -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def show(image: "PIL.Image.Image") -> None:
    """Show a picture: in the notebook if there is one, else in the system's viewer."""
    if in_notebook():
        from IPython.display import display  # pyright: ignore[reportMissingImports] - a notebook has it

        display(image)
    else:
        image.show()


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this code. IPython in a terminal is not a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")
