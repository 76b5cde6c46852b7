"""`vila info`: describe a checkpoint from its config and tensor headers."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vila_core.checkpoint.embedded import EMBEDDED_MODEL
from vila_core.cli.options import AsJson, Offline, Revision, name_embedded_model
from vila_core.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

    from vila_core.checkpoint.description import ModelDescription

GIB = 2**30


def describe_model(
    model: Annotated[str | None, typer.Argument(help="Folder or hub id; without it, the demo model.")] = None,
    revision: Revision = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Describe a checkpoint: family, parts, parameters, memory, template, license. No weights are read.

    [bold]Example:[/bold] vila info Efficient-Large-Model/NVILA-Lite-2B --json
    """
    from vila_core.checkpoint import open_checkpoint
    from vila_core.checkpoint.description import describe

    name_embedded_model(model, "vila info MODEL")
    description = describe(open_checkpoint(model or EMBEDDED_MODEL, revision=revision, offline=offline))
    if as_json:
        typer.echo(json.dumps(as_dict(description), indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        _print(description, Console())


def as_dict(description: "ModelDescription") -> dict[str, Any]:
    """Return the description as JSON values, derived ones included."""
    values = asdict(description)
    values["config"] = description.config.model_dump(mode="json")
    values["memory"] = [asdict(memory) | {"total": memory.total} for memory in description.memory]
    return values


def _print(description: "ModelDescription", console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table

    from vila_core.checkpoint.description import count

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    for name, value in _facts(description):
        facts.add_row(name, escape(printable(value)))
    console.print(f"[bold]{escape(printable(description.path))}[/bold]")
    console.print(facts)

    parts = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("part", "kind", "stored as"):
        parts.add_column(title)
    parts.add_column("parameters", justify="right")
    parts.add_column("size", justify="right")
    for part in description.parts:
        parts.add_row(part.name, part.kind, ", ".join(part.stored_as) or "-", count(part.parameters), _size(part.bytes))
    parts.add_section()
    parts.add_row("all", "", "", count(description.parameters), _size(description.bytes))
    console.print()
    console.print(parts)
    console.print()
    _print_memory(description, console)


def _facts(description: "ModelDescription") -> list[tuple[str, str]]:
    config, tokens = description.config, description.tokens
    preprocess = config.preprocess
    per_image = (
        "unknown" if tokens.per_image is None else " to ".join(f"{count:,}" for count in sorted(set(tokens.per_image)))
    )
    per_video = "unknown" if tokens.per_video is None else f"{tokens.per_video:,}"
    adapter = [] if description.adapter is None else [("LoRA adapter", f"{description.adapter}, merged as it loads")]
    return [
        *adapter,
        ("family", description.family),
        ("format", description.format),
        ("license", description.license or "not stated in the checkpoint; ask its publisher"),
        ("quantization", description.quantization_method or "none"),
        ("dtype", description.dtype),
        ("context", f"{description.context:,} tokens"),
        ("chat template", description.chat_template),
        ("media tokens", ", ".join(description.media_tokens.values())),
        ("image", f"{preprocess.image_aspect_ratio}, {config.pixels.size} px tiles: {per_image} tokens"),
        ("video", f"{preprocess.num_video_frames} frames, {config.video_encoder.name}: {per_video} tokens"),
    ]


def _print_memory(description: "ModelDescription", console: "Console") -> None:
    from rich.table import Table

    if not description.memory:
        console.print(
            "Memory: unknown, since this language model's config does not give the size of its key/value cache."
        )
        return
    contexts = sorted({memory.context for memory in description.memory})
    table = Table(
        box=None,
        header_style="bold",
        pad_edge=False,
        title="Memory needed, by context length",
        title_justify="left",
        title_style="bold",
    )
    for title in ("dtype", "weights", *(f"{context:,} tokens" for context in contexts)):
        table.add_column(title, justify="left" if title == "dtype" else "right")
    for dtype in dict.fromkeys(memory.dtype for memory in description.memory):
        rows = [memory for memory in description.memory if memory.dtype == dtype]
        table.add_row(dtype, _size(rows[0].weights), *(_size(memory.total) for memory in rows))
    console.print(table)
    console.print(
        "[dim]weights + key/value cache of one sequence (2 × layers × key/value heads × head dim × bytes × tokens);\n"
        "activations need additional memory[/dim]"
    )


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB // 10 else f"{count / 2**20:.1f} MiB"
