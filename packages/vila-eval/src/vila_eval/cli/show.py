"""`vila-eval show`: print samples of a result."""

from __future__ import annotations

import textwrap
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.errors import ConfigError
from vila_eval.errors import ResultsError

if TYPE_CHECKING:
    from vila_eval.records.schema import PromptPart, SampleRecord


def show(
    folder: Annotated[Path, typer.Argument(metavar="RESULTS/MODEL/TASK", help="A task's results folder.")],
    sample: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="The sample with this id (can be repeated).")
    ] = None,
    wrong: Annotated[int | None, typer.Option(min=1, metavar="N", help="The N worst answers.")] = None,
) -> None:
    """Print samples of a result: prompt, answer, reference, score. Without --id and --wrong, print the first five."""
    from vila_eval.records.schema import SampleRecord
    from vila_eval.records.storage import RESULTS, SAMPLES, read_records, read_result, read_samples
    from vila_eval.report.pictures import choose_wrong
    from vila_eval.texts import printable_all

    if sample and wrong is not None:
        raise ConfigError("Got both --id and --wrong. Choose one.")
    if not (folder / SAMPLES).exists():
        raise ResultsError(
            f"There are no samples in '{folder}': expected {SAMPLES}. Name a task's folder, such as "
            "results/vila-tiny/pope."
        )
    folder = folder.expanduser()
    finished = (folder / RESULTS).exists()  # else the samples wait for scoring
    records = list(
        read_samples(folder, read_result(folder)) if finished else read_records(SampleRecord, folder / SAMPLES)
    )
    if sample:
        by_id = {record.id: record for record in records}
        for name in sample:
            if name not in by_id:
                few = ", ".join(get_close_matches(name, by_id) or list(by_id)[:3])
                raise ConfigError(f"Unknown sample '{name}' in '{folder}', which has {len(records)}, such as {few}.")
        chosen = [by_id[name] for name in sample]
    elif wrong is not None:
        headline = read_result(folder).headline
        chosen, count = choose_wrong(
            records, higher_is_better=headline is None or headline.higher_is_better is not False, most=wrong
        )
        verb = "is" if count == 1 else "are"
        typer.echo(f"{count:,} of {len(records):,} answers {verb} wrong or only partly right.\n")
    else:
        chosen = records[:5]
    for record in chosen:
        typer.echo(describe(SampleRecord.model_validate(printable_all(record.model_dump()))) + "\n")


def describe(record: SampleRecord) -> str:
    """Return a sample as text: the prompt in order, the answer, the reference, the score, and any problem."""
    from vila_eval.report.formatting import format_reference

    prompt = textwrap.indent("\n".join(map(_describe_part, record.prompt)), "  | ", lambda _: True)
    lines = [typer.style(record.id, bold=True), prompt, f"  answer:    {record.answer}"]
    if record.parsed is not None:
        lines.append(f"  read as:   {record.parsed}")
    lines.append(f"  reference: {format_reference(record.reference) or 'hidden'}")
    if record.values is not None:
        lines.append(f"  score:     {', '.join(f'{name} {value:g}' for name, value in record.values.items())}")
    lines += [
        typer.style(f"  {label}: {problem}", fg=typer.colors.RED)
        for label, problem in (
            ("failed", record.error),
            ("not read", record.unread),
            ("not judged", record.judge_error),
        )
        if problem is not None
    ]
    return "\n".join(lines)


def _describe_part(part: PromptPart) -> str:
    if part.kind == "text":
        return part.text or ""
    details = [
        detail for detail in (part.file, None if part.frames is None else f"{part.frames} frames") if detail is not None
    ]
    return f"[{' '.join((part.kind, *details))}]"
