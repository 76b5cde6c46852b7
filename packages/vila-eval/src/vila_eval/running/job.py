"""A task ready to be answered: its data is open and its rows are selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.errors import ConfigError
from vila_core.media import Video
from vila_core.plugins.loader import load_plugins
from vila_eval.errors import DataError
from vila_eval.records.schema import RunSettings, SampleRecord
from vila_eval.running.identity import check_task_folder, describe_prompt, sample_key
from vila_eval.running.manifest import Manifest
from vila_eval.task import Question, as_questions, plugin_errors

if TYPE_CHECKING:
    from vila_core.runtime import GenerationSettings
    from vila_eval.data.sources import Rows
    from vila_eval.options import ModelOptions, Planned, RunOptions
    from vila_eval.records.schema import ModelIdentity
    from vila_eval.task import Task

SEARCH_AHEAD = 1000
"""`--limit` stops looking for rows to keep together after this many rows without one."""


@dataclass(frozen=True)
class Job:
    """A planned task with its open data."""

    planned: Planned
    folder: Path
    rows: Rows
    manifest: Manifest

    @property
    def selected(self) -> Sequence[int]:
        """The rows to ask, in order."""
        return self.manifest.selected

    @property
    def task(self) -> Task:
        return self.planned.task

    @property
    def generation(self) -> GenerationSettings:
        return {"max_new_tokens": self.task.max_new_tokens, "stop": tuple(self.task.stop)}

    def batches(self, size: int, rank: int, world_size: int) -> list[Sequence[int]]:
        """Return a worker's batches of rows. Which rows share a batch depends only on the data and `size`."""
        selected = self.selected
        batches = [selected[start : start + size] for start in range(0, len(selected), size)]
        return batches[rank::world_size]

    def ask(self, row: int) -> list[tuple[Question, SampleRecord]]:
        """Return the questions of a row, each with its record, not answered yet.

        Sets the number of frames of videos, and reads all media for their digests.
        """
        settings = self.manifest.settings
        questions = as_questions(self.task, self.rows, row)
        if settings.num_video_frames is not None:
            questions = [with_frames(question, settings.num_video_frames) for question in questions]
        asked: list[tuple[Question, SampleRecord]] = []
        for number, question in enumerate(questions):
            prompt = describe_prompt(question.prompt)
            key = sample_key(self.manifest.model.digest, self.task, settings, prompt)
            try:
                record = SampleRecord.unanswered(question, prompt, key, row, number=number, questions=len(questions))
            except ConfigError as error:
                raise ConfigError(f"Task '{self.task.name}', row {row}: {error}") from None
            asked.append((question, record))
        return asked


def with_frames(question: Question, frames: int) -> Question:
    """Return the question with `frames` set on each video that does not set its own number."""
    prompt = [
        Video(part.source, frames=frames, fps=part.fps) if isinstance(part, Video) and part.frames is None else part
        for part in question.prompt
    ]
    return replace(question, prompt=prompt)


def open_job(planned: Planned, folder: Path, model: ModelOptions, identity: ModelIdentity, options: RunOptions) -> Job:
    """Open a task's data and select its rows. Writes nothing.

    Args:
        planned: the task.
        folder: the task's results folder.
        model: how the model will be loaded.
        identity: identifies that model.
        options: the run's options.

    Raises:
        ConfigError: the task's name leads out of the model's folder.
        DataError: the data is missing, empty, or has other columns.
    """
    task = planned.task
    check_task_folder(planned)
    with plugin_errors(f"The data of task '{task.name}' cannot be opened"):
        rows = task.source.open(options.data)
        count = len(rows)
    if not count:
        raise DataError(f"{task.source.description} has no rows.")
    selected = select_rows(rows, options.limit, task.keep_together)
    settings = RunSettings(
        max_new_tokens=task.max_new_tokens,
        stop=tuple(task.stop),
        num_video_frames=task.num_video_frames if planned.num_video_frames is None else planned.num_video_frames,
        max_tiles=model.max_tiles,
        chat_template=model.chat_template,
        dtype=model.dtype,
        limit=options.limit,
    )
    manifest = Manifest(
        task=task.name,
        task_version=task.version,
        distribution=_distribution(task),
        model=identity,
        settings=settings,
        data=dict(rows.origin),
        rows=len(rows),
        together=tuple(selected[len(rows) if options.limit is None else options.limit :]),
    )
    return Job(planned, folder, rows, manifest)


def select_rows(rows: Rows, limit: int | None, keep_together: str | None) -> Sequence[int]:
    """Return the first `limit` rows, and later rows that share a value of the column `keep_together` with one of them.

    Rows that belong together need not be adjacent; the search ends after 1000 rows without a match.

    Raises:
        ConfigError: `limit` is less than 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"The limit is {limit} rows; expected at least 1.")
    if limit is None or limit >= len(rows) or keep_together is None:
        return range(len(rows) if limit is None else min(limit, len(rows)))
    selected = list(range(limit))
    together = {rows[index][keep_together] for index in selected}
    last = limit - 1
    for index in range(limit, len(rows)):
        if rows[index][keep_together] in together:
            selected.append(index)
            last = index
        elif index - last >= SEARCH_AHEAD:
            break
    return selected


def _distribution(task: Task) -> str:
    """Return the distribution that registers a task, or its plugin file's name; "" for a task made in a script."""
    entry = load_plugins().tasks.entries.get(task.name)
    return "" if entry is None else Path(entry.owner.distribution).name
