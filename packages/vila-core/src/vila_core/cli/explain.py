"""`vila-infer --explain`: what the model sees, as a table of the token budget and as a picture of the tiles."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vila_core.cli.terminal import visible
from vila_core.display.tiles import read_parts
from vila_core.errors import MediaError
from vila_core.inspection import Inspection

PROMPT_SHOWN = 1500
"""Characters of the prompt that are printed; its middle is left out beyond that."""


def print_explanation(inspection: Inspection, console: Console) -> None:
    """Print the prompt as the model reads it, and its tokens by part."""
    config = inspection.config
    parts = read_parts(inspection.media, inspection.token_counts, config)
    context = config.language_model.max_length
    total = sum(part.tokens for part in parts)
    text = inspection.prompt_text
    if len(text) > PROMPT_SHOWN:
        half = PROMPT_SHOWN // 2
        text = f"{text[:half]} … ({len(text) - PROMPT_SHOWN} characters) … {text[-half:]}"
    console.print("[bold]Prompt[/bold] (each media token stands for its tokens below)")
    console.print(escape(visible(text)), highlight=False, style="dim")
    table = Table(
        title="Token budget", title_justify="left", title_style="bold", box=None, header_style="bold", pad_edge=False
    )
    table.add_column("part")
    table.add_column("tiles")
    table.add_column("tokens", justify="right")
    table.add_column("of the context", justify="right")
    for part in parts:
        table.add_row(part.name, part.description, f"{part.tokens:,}", f"{part.tokens / context:.1%}")
    table.add_section()
    table.add_row("prompt", "", f"{total:,}", f"{total / context:.1%}")
    table.add_row("left for the answer", "", f"{context - total:,}", f"{1 - total / context:.1%}")
    console.print(table)


def save_explanation(inspection: Inspection, path: Path) -> None:
    """Write the picture of an inspection as a PNG.

    Raises:
        MediaError: `path` cannot be written.
    """
    try:
        inspection.draw().save(path, format="PNG")
    except OSError as error:
        raise MediaError(f"--explain: '{path}' cannot be written: {error.strerror or error}.") from None
