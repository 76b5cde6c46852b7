"""`vila-eval --dry-run`: show the first prompts of every task, a sheet of their images, and the cost of judging."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vila_core.errors import VilaError
from vila_core.media import Image, Video
from vila_eval.errors import ResultsError
from vila_eval.judging.judge import CHARACTERS_A_TOKEN, JudgeEstimate, estimate_judging, judge_model
from vila_eval.metric import Answered, Metric
from vila_eval.options import ModelOptions, Planned, RunOptions
from vila_eval.records.schema import SampleRecord
from vila_eval.records.storage import SAMPLES, read_records
from vila_eval.report.formatting import format_reference, shorten
from vila_eval.running.identity import model_name
from vila_eval.running.job import select_rows
from vila_eval.task import Part, Question, as_questions, resolve_metric

if TYPE_CHECKING:
    import PIL.Image

    from vila_eval.data.sources import Rows

QUESTIONS = 2
"""Number of questions shown per task."""

PICTURES, FRAMES = 8, 8
"""Most images per question on the sheet, and frames taken of a video if the model would decide their number."""

TEXT_SHOWN = 2000
SHEET = "dry-run.png"
PANEL, MARGIN, LINE, COLUMNS = 120, 12, 16, 2


@dataclass(frozen=True)
class Preview:
    """A question of a task with its images, or the reason why they cannot be read."""

    planned: Planned
    question: Question
    pictures: list[PIL.Image.Image]
    problem: str | None = None


def show_prompts(model: ModelOptions, plan: Sequence[Planned], options: RunOptions) -> int:
    """Print the first prompts of each task and draw their images.

    Return the exit code, 1 if a task's data cannot be read.

    For a judged task, also print an estimate of the judging.
    """
    typer.echo("Dry run: no model is loaded. In a real run, the model's chat template is put around each prompt.\n")
    previews: list[Preview] = []
    failed = False
    for planned in plan:
        try:
            rows = planned.task.source.open(options.data)
            questions: list[Question] = []
            for index in range(len(rows)):
                questions += as_questions(planned.task, rows, index)
                if len(questions) >= QUESTIONS:
                    break
            judging = _estimate(planned, rows, options.output_dir / model_name(model) / planned.folder, options)
        except VilaError as error:
            failed = True
            typer.secho(f"{planned.folder}: {error}\n", fg=typer.colors.RED)
            continue
        of_task = [_look(planned, question) for question in questions[:QUESTIONS]]
        typer.echo(_heading(planned, len(rows)))
        for preview in of_task:
            typer.echo(describe(preview))
        if judging is not None:
            typer.echo(f"  judging: {judging}\n")
        previews += of_task
    if any(preview.pictures for preview in previews):
        typer.echo(f"Images: {draw_sheet(previews, options.output_dir / SHEET)}")
    return int(failed)


def _heading(planned: Planned, rows: int) -> str:
    task = planned.task
    frames = f", {planned.num_video_frames} frames per video" if planned.num_video_frames else ""
    stop = f", stop at {', '.join(map(repr, task.stop))}" if task.stop else ""
    name = typer.style(planned.folder, bold=True)
    return f"{name}: {rows} rows of {task.source.description}, at most {task.max_new_tokens} new tokens{frames}{stop}\n"


def _estimate(planned: Planned, rows: Rows, folder: Path, options: RunOptions) -> JudgeEstimate | None:
    """Return an estimate of the judging, or None if no judge scores the task.

    A missing answer counts with its longest length.
    """
    metric = resolve_metric(planned.task)
    if metric is None or isinstance(metric, Metric):
        return None
    task, judge = planned.task, options.judge
    answers = {sample.id: sample.answer for sample in read_records(SampleRecord, folder / SAMPLES)}
    longest = "x" * (task.max_new_tokens * CHARACTERS_A_TOKEN)
    questions = (
        question
        for row in select_rows(rows, options.limit, task.keep_together)
        for question in as_questions(task, rows, row)
    )
    samples = [Answered(question, answers.get(question.id, longest)) for question in questions]
    model = metric.judge_model if judge is None else judge_model(metric, judge)
    return estimate_judging(metric, samples, folder, model, None if judge is None else judge.prices)


def _look(planned: Planned, question: Question) -> Preview:
    pictures: list[PIL.Image.Image] = []
    try:
        for part in question.prompt:
            if isinstance(part, Image):
                pictures.append(part.load())
            elif isinstance(part, Video):
                frames = min(part.frames or planned.num_video_frames or FRAMES, PICTURES)
                pictures += Video(part.source, frames=frames).load(frames).frames
    except VilaError as error:
        return Preview(planned, question, pictures, str(error))
    return Preview(planned, question, pictures)


def describe(preview: Preview) -> str:
    """Return a question as text: the parts of the prompt in order, the reference, and what cannot be read."""
    question = preview.question
    parts = [_describe_part(part, preview.planned) for part in question.prompt if part is not None]
    prompt = textwrap.indent("\n".join(parts), "  | ", lambda _: True)
    reference = "hidden" if question.answer is None else shorten(format_reference(question.answer), 300)
    lines = [f"  {question.id}", prompt, f"  reference: {reference}"]
    if preview.problem is not None:
        lines.append(typer.style(f"  will count as failed: {preview.problem}", fg=typer.colors.RED))
    return "\n".join(lines) + "\n"


def _describe_part(part: Part, planned: Planned) -> str:
    if isinstance(part, str):
        return shorten(part, TEXT_SHOWN)
    name = f" {Path(part.source).name}" if isinstance(part.source, str | Path) else ""
    if isinstance(part, Image):
        return f"[image{name}]"
    frames = part.frames or planned.num_video_frames
    return f"[video{name}, {frames or 'as many frames as the model takes'}{' frames' if frames else ''}]"


def draw_sheet(previews: Sequence[Preview], path: Path) -> Path:
    """Write a PNG with one cell per question: its images (or video frames), the end of its text, and its reference.

    Raises:
        ResultsError: `path` cannot be written.
    """
    import PIL.Image

    cells = [_draw_cell(preview) for preview in previews]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = PIL.Image.new("RGB", (COLUMNS * cells[0].width, sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * cell.width, top))
        top += height
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, "PNG")
    except OSError as error:
        raise ResultsError(
            f"The sheet '{path}' cannot be written: {error.strerror or error}. Choose another --output-dir."
        ) from error
    return path


def _draw_cell(preview: Preview) -> PIL.Image.Image:
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    font, across = PIL.ImageFont.load_default(12), PICTURES // 2
    shown = preview.pictures[:PICTURES]
    text = " ".join(part for part in preview.question.prompt if isinstance(part, str))
    lines = (
        textwrap.wrap(text, 80)[-4:]
        + textwrap.wrap(f"reference: {format_reference(preview.question.answer) or 'hidden'}", 80)[:1]
    )
    picture_rows = -(-len(shown) // across)
    width = across * (PANEL + 4) + 2 * MARGIN
    cell = PIL.Image.new("RGB", (width, 2 * MARGIN + LINE * (len(lines) + 1) + picture_rows * (PANEL + 4)), "white")
    pen = PIL.ImageDraw.Draw(cell)
    pen.text((MARGIN, MARGIN), f"{preview.planned.folder}: {preview.question.id}"[:80], (120, 120, 120), font)
    top = MARGIN + LINE
    for index, picture in enumerate(shown):
        panel = picture.convert("RGB")
        panel.thumbnail((PANEL, PANEL))
        cell.paste(panel, (MARGIN + index % across * (PANEL + 4), top + index // across * (PANEL + 4)))
    top += picture_rows * (PANEL + 4)
    for number, line in enumerate(lines):
        pen.text((MARGIN, top + number * LINE), line, (20, 20, 20), font)
    return cell
