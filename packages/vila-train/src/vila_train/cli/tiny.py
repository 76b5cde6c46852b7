"""Commands for vila-tiny and vila-tiny-u: train them, show the world that they learn, and test them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.cli.options import Device

if TYPE_CHECKING:
    from vila_train.recipes.tiny import TinyConfig
    from vila_train.tiny.recipes import StageConfig
    from vila_train.tiny.training import TinyOptions


def tiny(
    out: Annotated[Path, typer.Option(help="Folder for the log, the saved states and the checkpoint.")],
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for rendered samples, 45 GB at scale 1 (default: OUT/scratch).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed of the weights and batches.")] = 0,
    scale: Annotated[
        float, typer.Option(min=0.0001, max=100, help="Factor on steps and samples, below 1 for a trial.")
    ] = 1.0,
    device: Device = "cuda",
    compile_layers: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the layers.")] = True,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Rendering processes (default: one per CPU core, minus one).")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from (default: random weights).")] = None,
    stage: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Run only this stage (repeatable).")] = None,
) -> None:
    """Train vila-tiny and test it on combinations that it never saw. If interrupted, the same command resumes."""
    from vila_train.recipes.tiny import TinyConfig

    run_tiny(
        TinyConfig(
            seed=seed,
            scale=scale,
            device=device,
            compile=compile_layers,
            workers=workers,
            scratch=scratch,
            init=init,
            stages=tuple(stage or ()),
        ),
        out,
    )


def run_tiny(config: TinyConfig, out: Path) -> None:
    """Train vila-tiny or vila-tiny-u in the folder `out`, and print its scores."""
    from vila_train.tiny.evaluate import table
    from vila_train.tiny.run_folder import SCORES
    from vila_train.tiny.training import train_tiny
    from vila_train.tiny.vila_u.training import train_tiny_u

    options, stages = _what_runs(config, out)
    was_complete = os.path.isfile(out / SCORES)
    try:
        scores = (train_tiny_u if config.name == "vila-tiny-u" else train_tiny)(options, stages)
    except KeyboardInterrupt:
        typer.echo(f"Stopped. Finished stages are kept in {out}: run the same command again to resume.", err=True)
        raise typer.Exit(130) from None
    if was_complete:
        typer.echo(f"{out} is already complete.", err=True)
    typer.echo(table(scores))


def check_tiny(config: TinyConfig, out: Path) -> None:
    """Raise `VilaError` if `run_tiny` would fail before its first stage. Warns if this machine has no such device."""
    from vila_core.errors import ConfigError, warn
    from vila_train.tiny.run_folder import require_own_folder
    from vila_train.tiny.training import require_init, resolved, settings

    options, stages = _what_runs(config, out)
    require_init(config.name, options, stages)
    try:
        resolved_options, scaled_stages = resolved(options, stages)
    except ConfigError as error:
        warn(f"On this machine, the run would stop: {error}")
        return
    require_own_folder(out, settings(resolved_options, scaled_stages))


def _what_runs(config: TinyConfig, out: Path) -> tuple[TinyOptions, tuple[StageConfig, ...]]:
    """Return options and stages. Raises `ConfigError` for an unknown stage."""
    from vila_train.tiny.recipes import choose_stages, tiny_stages
    from vila_train.tiny.training import TinyOptions
    from vila_train.tiny.vila_u.recipes import tiny_u_stages

    options = TinyOptions(
        out=out,
        scratch=config.scratch or out / "scratch",
        seed=config.seed,
        scale=config.scale,
        device=config.device,
        compile=config.compile,
        workers=config.workers,
        init=config.init,
    )
    return options, choose_stages(config.stages, tiny_u_stages() if config.name == "vila-tiny-u" else tiny_stages())


def world(
    sheet: Annotated[Path, typer.Option(help="Output picture (.png, .jpg or .webp).")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    samples: Annotated[int, typer.Option(min=1, max=100, help="Samples per task.")] = 3,
) -> None:
    """Draw a contact sheet of pictures and videos with their questions and answers."""
    from vila_train.tiny.world import CAPTIONS, TASKS, make_sample
    from vila_train.tiny.world.combinations import as_split
    from vila_train.tiny.world.sheet import Entry, contact_sheet, require_picture_path, save_picture

    chosen = as_split(split)
    require_picture_path(sheet)
    entries = [Entry(make_sample(chosen, name, index)) for name in TASKS | CAPTIONS for index in range(samples)]
    save_picture(contact_sheet(entries), sheet)
    typer.echo(f"Wrote {sheet}.")


def report(
    model: Annotated[
        str | None, typer.Option("--model-path", "-m", help="Folder or hub id (default: the embedded model).")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=100_000, help="Samples per task.")] = 500,
    split: Annotated[str, typer.Option(help="test (unseen combinations), validation or train.")] = "test",
    sheet: Annotated[
        Path | None, typer.Option(help="Also draw a contact sheet with the model's answers (PNG).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the table to this file (Markdown).")] = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Prompts per batch.")] = 32,
) -> None:
    """Test a model on the drawn world and print its exact-match accuracy per task and kind of question."""
    from vila_core.cli.progress import open_progress
    from vila_core.new_file import write_file
    from vila_train.tiny.report import answer_tests, draw_sheet, report_table
    from vila_train.tiny.world import TESTS
    from vila_train.tiny.world.combinations import as_split
    from vila_train.tiny.world.sheet import require_picture_path, save_picture

    chosen = as_split(split)
    if sheet is not None:
        require_picture_path(sheet)
    with open_progress("samples", phases=TESTS) as progress:
        answers = answer_tests(model, samples, device, batch_size, chosen, progress)
    text = report_table(answers)
    typer.echo(text)
    if out is not None:
        write_file(out, text + "\n")
    if sheet is not None:
        save_picture(draw_sheet(answers), sheet)


def drawings(
    model: Annotated[str, typer.Option("--model-path", "-m", help="Folder or hub id of a model that draws.")],
    samples: Annotated[int, typer.Option(min=1, max=100_000, help="Descriptions to draw.")] = 500,
    split: Annotated[str, typer.Option(help="test (unseen combinations), validation or train.")] = "test",
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet of the first 24 (PNG).")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the table to this file (Markdown).")] = None,
    guidance: Annotated[float, typer.Option(min=0, max=100, help="How strictly descriptions are followed.")] = 3.0,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Random seed of the drawings.")] = 0,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, max=256, help="Pictures drawn together.")] = 64,
) -> None:
    """Let a model draw descriptions, and count in the pixels how many colors, shapes and positions are right."""
    import vila_core as vila
    from vila_core.cli.progress import open_progress
    from vila_core.new_file import write_file
    from vila_train.tiny.evaluate import table
    from vila_train.tiny.vila_u.drawings import draw_samples, drawing_scores, drawing_sheet
    from vila_train.tiny.world.combinations import as_split
    from vila_train.tiny.world.sheet import require_picture_path, save_picture

    chosen = as_split(split)
    if sheet is not None:
        require_picture_path(sheet)
    with open_progress("pictures", phases=("drawing",)) as progress:
        found = draw_samples(
            vila.load(model, device=device),
            samples,
            chosen,
            batch_size=batch_size,
            guidance=guidance,
            seed=seed,
            progress=progress,
        )
    text = table(drawing_scores(found))
    typer.echo(text)
    if out is not None:
        write_file(out, text + "\n")
    if sheet is not None:
        save_picture(drawing_sheet(found[:24]), sheet)
