"""Answering: a worker's batches to the model and into its file. While one is computed, the next is prepared in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from vila_core.errors import ConfigError, VilaError
from vila_eval.records.schema import SampleRecord
from vila_eval.running.answers import Answer, AnswerFile, StoredAnswers

if TYPE_CHECKING:
    from vila_core.engine.completion import Completion
    from vila_core.prompt import PreparedPrompt
    from vila_core.runtime import Vila
    from vila_eval.options import ModelOptions, Rank
    from vila_eval.running.job import Asked, Job


class LazyModel:
    """The model, loaded when a first answer is missing. `error` is why it could not be loaded."""

    def __init__(self, options: ModelOptions, device: str | None = None):
        self.error: VilaError | None = None
        self._options = options
        self._device = device or options.device
        self._loaded: Vila | None = None

    def get(self) -> Vila:
        """Return the model. Raises whatever `vila_core.load` does."""
        if self._loaded is None:
            from vila_core import load

            options = self._options
            overrides: dict[str, Any] = {} if options.max_tiles is None else {"max_tiles": options.max_tiles}
            try:
                self._loaded = load(
                    options.path,
                    device=self._device,
                    dtype=options.dtype,
                    chat_template=options.chat_template,
                    revision=options.revision,
                    offline=options.offline,
                    lora=options.lora,
                    **overrides,
                )
            except VilaError as error:
                self.error = error
                raise
        return self._loaded


@dataclass(frozen=True)
class _Batch:
    """Questions that are answered together. `missing` are the (row, number) of those without an answer.

    `prepared` has each question's prompt, or why there is none; nothing if all are answered.
    """

    asked: Sequence[Asked]
    missing: set[tuple[int, int]]
    prepared: Sequence[PreparedPrompt | str]


def answer_share(
    job: Job, stored: StoredAnswers, model: LazyModel, rank: Rank, batch_size: int, advance: Callable[[int], None]
) -> int:
    """Answer a worker's share of a task: of its batches, those with a question that has no answer yet.

    A batch is computed whole, so that an answer does not depend on where an earlier run stopped. What cannot be read or asked is
    recorded as failed, with its reason, and the rest of its batch goes on.

    Args:
        job: the task.
        stored: answers that are there; what is answered is added.
        model: answers.
        rank: which worker this is.
        batch_size: questions computed together.
        advance: is told how many more rows are answered.

    Returns:
        How many samples were answered.

    Raises:
        ConfigError: two questions have one id.
        ResultsError: another process is writing to this worker's file.
        VilaError: the model cannot be loaded.
    """
    places: dict[str, tuple[int, int]] = {}
    answered = 0

    def prepare(rows: Sequence[int]) -> _Batch:
        asked = [one for row in rows for one in job.ask(row)]
        _check_ids(job, asked, places)
        have = {row: stored.keep(row, [one.key for one in asked if one.row == row]) for row in rows}
        missing = {(one.row, one.number) for one in asked if one.number not in have[one.row]}
        return _Batch(
            asked, missing, [_prepare(model.get(), one) for one in asked if not stopped.is_set()] if missing else ()
        )

    with AnswerFile(job.folder, rank.rank) as file, _thread() as (pool, stopped):
        stored.update()  # now that nobody else writes this worker's part
        for batch in _one_ahead(pool, prepare, job.batches(batch_size, rank.rank, rank.world_size)):
            before = len(stored.complete)
            records = _answer(model.get(), job, batch, batch_size)
            answers = [
                Answer(number=one.number, questions=one.questions, sample=record)
                for one, record in zip(batch.asked, records, strict=True)
                if (one.row, one.number) in batch.missing
            ]
            file.append(answers)
            stored.update()  # read back: what is scored now is what a resumed run scores
            answered += len(answers)
            advance(len(stored.complete) - before)
    return answered


def stored_answers(job: Job) -> StoredAnswers:
    """Return the answers of earlier runs. `answer_share` sees which of them are out of date."""
    stored = StoredAnswers(job.folder, job.selected)
    stored.update()
    return stored


def checked_answers(job: Job) -> StoredAnswers:
    """Return the answers of earlier runs that are still up to date: for whoever merges what others answer."""
    stored = stored_answers(job)
    for row in stored.rows:
        stored.keep(row, [asked.key for asked in job.ask(row)])
    return stored


def is_complete(job: Job, stored: StoredAnswers) -> bool:
    """Say whether every row of a task has its answers."""
    return len(stored.complete) == len(job.selected)


@contextmanager
def _thread() -> Generator[tuple[ThreadPoolExecutor, threading.Event]]:
    """A thread that prepares, and the word to it to stop after the sample that it reads: it is waited for, but not after Ctrl-C."""
    pool, stopped = ThreadPoolExecutor(1, "prepare"), threading.Event()
    wait = True
    try:
        yield pool, stopped
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        stopped.set()
        pool.shutdown(wait=wait, cancel_futures=True)


def _one_ahead(
    pool: ThreadPoolExecutor, prepare: Callable[[Sequence[int]], _Batch], batches: Sequence[Sequence[int]]
) -> Generator[_Batch]:
    """Yield the batches with something missing, in order; while one is computed, the next is prepared in `pool`.

    What nothing is computed beside is prepared here: so the model is loaded here too, and Ctrl-C acts at once.
    """
    upcoming: Future[_Batch] | None = None
    for rows, following in zip_longest(batches, batches[1:]):
        batch = prepare(rows) if upcoming is None else upcoming.result()
        upcoming = None
        if batch.missing:
            upcoming = None if following is None else pool.submit(prepare, following)
            yield batch


def _check_ids(job: Job, asked: Sequence[Asked], places: dict[str, tuple[int, int]]) -> None:
    """Refuse a second question with an id, before hours are spent on answers that cannot be told apart."""
    for one in asked:
        row, _ = places.setdefault(one.question.id, (one.row, one.number))
        if places[one.question.id] != (one.row, one.number):
            raise ConfigError(
                f"Task '{job.task.name}' gives the id '{one.question.id}' to two questions (rows {row} and {one.row}); "
                "ids must be unique. Leave the id empty to have the rows numbered."
            )


def _prepare(model: Vila, asked: Asked) -> PreparedPrompt | str:
    try:
        prepared = model.prepare([part for part in asked.question.prompt if part is not None])
        model.count_tokens(prepared)  # one that is too long would break its batch
    except VilaError as error:
        return str(error)
    return prepared


def _answer(model: Vila, job: Job, batch: _Batch, batch_size: int) -> list[SampleRecord]:
    """Return a record of each question of a batch."""
    prompts = [prompt for prompt in batch.prepared if not isinstance(prompt, str)]
    # A row may have several questions: more than fit the batch size are computed in several goes.
    completions = iter(
        [
            one
            for start in range(0, len(prompts), batch_size)
            for one in _complete(model, job, prompts[start : start + batch_size])
        ]
    )
    return [
        _record(one, prompt if isinstance(prompt, str) else next(completions))
        for one, prompt in zip(batch.asked, batch.prepared, strict=True)
    ]


def _complete(model: Vila, job: Job, prompts: Sequence[PreparedPrompt]) -> list[Completion | str]:
    """Return each prompt's answer, or why there is none. If they cannot be answered together, they are one by one."""
    import torch

    try:
        return list(model.complete_batch(prompts, **job.generation))
    except VilaError as error:
        reason = str(error)
    except torch.cuda.OutOfMemoryError as error:
        reason = f"The GPU's memory does not suffice for this prompt alone: {error}"
    if len(prompts) == 1:
        return [reason]
    torch.cuda.empty_cache()
    return [one for prompt in prompts for one in _complete(model, job, [prompt])]


def _record(asked: Asked, outcome: Completion | str) -> SampleRecord:
    question = asked.question
    record = SampleRecord(
        id=question.id,
        index=asked.row,  # until the answers are merged
        row=asked.row,
        key=asked.key,
        prompt=asked.prompt,
        reference=question.answer,
        options=tuple(question.options),
        groups=dict(question.groups),
        cluster=question.cluster,
        fields=dict(question.fields),
    )
    if isinstance(outcome, str):
        return record.model_copy(update={"error": outcome})
    return record.model_copy(
        update={
            "answer": outcome.text,
            "finish_reason": outcome.finish_reason,
            "prompt_tokens": outcome.usage.prompt_tokens,
            "completion_tokens": outcome.usage.completion_tokens,
        }
    )
