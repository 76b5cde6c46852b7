"""Printing text from untrusted sources, such as answers, names and prompts.

On a terminal, control characters could move the cursor, change the title or hide text, so they are shown as escapes.
Text for a pipe or file is written unchanged: another program reads it.
"""

import os
import sys

from vila_core.errors import printable


def visible(text: str) -> str:
    """Return `text` with control characters written as escapes; line breaks and tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def echo_answer(text: str, *, newline: bool = True) -> None:
    """Print an answer at once: unchanged to a pipe or file, with visible control characters to a terminal."""
    print(visible(text) if sys.stdout.isatty() else text, end="\n" if newline else "", flush=True)


def can_redraw() -> bool:
    """Return whether standard error is a terminal that can move its cursor, as bars and spinners need."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
