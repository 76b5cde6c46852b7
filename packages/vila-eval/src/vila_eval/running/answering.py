"""Answering one worker's share of a task: prompt after prompt joins the model's batch, while a thread prepares more."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from vila_core.errors import CheckpointError, ConfigError, MediaError, PluginError, VilaError
from vila_eval.errors import describe_exception
from vila_eval.records.schema import SampleRecord
from vila_eval.running.answers import AnswerFile, StoredAnswers
from vila_eval.texts import one_line

if TYPE_CHECKING:
    from vila_core.engine.completion import Completion
    from vila_core.prompt import PreparedPrompt
    from vila_core.runtime import Vila
    from vila_eval.options import ModelOptions, Rank
    from vila_eval.running.job import Job
    from vila_eval.task import Question


class LazyModel:
    """Loads the model on first use. `error` is the reason if that failed."""

    def __init__(self, options: ModelOptions, device: str | None = None):
        self.error: Exception | None = None
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
            except Exception as error:
                self.error = error
                raise
        return self._loaded


def used_dtype(options: ModelOptions) -> str:
    """Return the dtype in which `LazyModel` loads the model, such as "bfloat16", without loading it.

    Empty if the checkpoint is gone by now: a finished run is not lost for that.
    """
    from vila_core.checkpoint import open_checkpoint
    from vila_core.checkpoint.embedded import EMBEDDED_MODEL
    from vila_core.checkpoint.sizes import estimate
    from vila_core.device_choice import choose_device, choose_dtype

    try:
        checkpoint = open_checkpoint(options.path or EMBEDDED_MODEL, revision=options.revision, offline=options.offline)
    except CheckpointError:
        return ""
    parameters, device = estimate(checkpoint).parameters, choose_device(options.device)
    return str(choose_dtype(options.dtype, checkpoint.config, parameters, device)).removeprefix("torch.")


NOT_READY_S = 0.001
"""How long to wait for a batch that is still being prepared before the model continues with what it has."""

_Batch = list[tuple[SampleRecord, "PreparedPrompt | str"]]
"""Samples to answer together, each with its prompt, or with the reason why there is none."""


def answer_share(
    job: Job, stored: StoredAnswers, model: LazyModel, rank: Rank, batch_size: int, advance: Callable[[int], None]
) -> int:
    """Answer a worker's share of a task: those of its batches that have an unanswered question.

    A batch is always asked as a whole, wherever an earlier run stopped. Its questions join those of the batch before as
    answers end, and are written together. A sample whose media cannot be read or whose prompt is too long is recorded
    as failed, with the reason; the others are answered.

    Args:
        job: the task.
        stored: the answers so far; new ones are added.
        model: the model that answers.
        rank: which worker this is.
        batch_size: questions of a batch, and how many are answered at the same time.
        advance: called with the number of newly completed rows.

    Returns:
        The number of samples answered.

    Raises:
        ConfigError: two questions have one id.
        ResultsError: another process is writing to this worker's file.
        VilaError: the model cannot be loaded.
    """
    places: dict[str, tuple[int, int]] = {}
    answered = 0

    def unanswered(rows: Sequence[int]) -> Sequence[tuple[Question, SampleRecord]]:
        """Return the rows' samples; nothing if all of them are answered."""
        asked = [pair for row in rows for pair in job.ask(row)]
        records = [record for _, record in asked]
        _check_ids(job, records, places)
        have = {row: stored.keep(row, [record.key for record in records if record.row == row]) for row in rows}
        if all(record.number in have[record.row] for record in records):
            return []
        return asked

    def prepare(rows: Sequence[int]) -> _Batch:
        """Return the samples of `unanswered` with their prompts."""
        return [
            (record, _prepare(model.get(), question)) for question, record in unanswered(rows) if not stopped.is_set()
        ]

    with AnswerFile(job.folder, rank.rank) as file, _thread() as (pool, stopped):
        stored.update()  # now that nobody else writes this worker's part
        shares = job.batches(batch_size, rank.rank, rank.world_size)
        given = (
            _answer(model, job, _one_ahead(pool, prepare, shares), batch_size)
            if job.task.respond is None
            else _respond(model, job.task.respond, map(unanswered, shares))
        )
        for answers in given:
            before = len(stored.complete)
            records = [record for record in answers if not stored.has(record)]
            file.append(records)
            stored.update()  # read back: this run scores what a resumed run would score
            answered += len(records)
            advance(len(stored.complete) - before)
    return answered


def stored_answers(job: Job) -> StoredAnswers:
    """Return the answers of earlier runs. `answer_share` drops those that are out of date."""
    stored = StoredAnswers(job.folder, job.selected)
    stored.update()
    return stored


def checked_answers(job: Job) -> StoredAnswers:
    """Return the answers of earlier runs that are still up to date, for a process that merges the answers of others."""
    stored = stored_answers(job)
    for row in stored.rows:
        stored.keep(row, [record.key for _, record in job.ask(row)])
    return stored


def is_complete(job: Job, stored: StoredAnswers) -> bool:
    """Return whether every row of a task has its answers."""
    return len(stored.complete) == len(job.selected)


@contextmanager
def _thread() -> Generator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Yield a thread for preparing, and an event that stops it after its current sample.

    The thread is joined on exit, except after Ctrl-C.
    """
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
) -> Generator[_Batch | None]:
    """Yield the batches that are not empty, in order; while one is computed, `pool` prepares the next.

    None says that the next is not ready yet. Without a batch being computed, this thread prepares: so it also loads the
    model, and Ctrl-C takes effect at once.
    """
    upcoming: Future[_Batch] | None = None
    for rows, following in zip_longest(batches, batches[1:]):
        while upcoming is not None and wait([upcoming], timeout=NOT_READY_S).not_done:
            yield None
        batch = prepare(rows) if upcoming is None else upcoming.result()
        upcoming = None
        if batch:
            upcoming = None if following is None else pool.submit(prepare, following)
            yield batch


def _check_ids(job: Job, records: Sequence[SampleRecord], places: dict[str, tuple[int, int]]) -> None:
    """Raise `ConfigError` if two questions share an id, before hours go into answers that cannot be told apart."""
    for record in records:
        row, number = places.setdefault(record.id, (record.row, record.number))
        if (row, number) != (record.row, record.number):
            raise ConfigError(
                f"Task '{job.task.name}' gives the id '{record.id}' to two questions (rows {row} and {record.row}); "
                "ids must be unique. Leave the id empty to number the rows."
            )


def _prepare(model: Vila, question: Question) -> PreparedPrompt | str:
    try:
        prepared = model.prepare([part for part in question.prompt if part is not None])
        model.count_tokens(prepared)  # a prompt that is too long would fail its whole batch
    except VilaError as error:
        return one_line(str(error))
    except Exception as error:  # noqa: BLE001 - a decoder's own exception: a rerun would stop at the same row
        return describe_exception(error)
    return prepared


def _respond(
    model: LazyModel,
    respond: Callable[[Vila, Sequence[Question]], Sequence[str]],
    batches: Iterable[Sequence[tuple[Question, SampleRecord]]],
) -> Generator[list[SampleRecord]]:
    """Yield the samples of each batch that is not empty, answered by the task's own function."""
    for batch in batches:
        if batch:
            answers = respond_each(model.get(), respond, [question for question, _ in batch])
            yield [_with_response(record, answer) for (_, record), answer in zip(batch, answers, strict=True)]


def respond_each(
    model: Vila, respond: Callable[[Vila, Sequence[Question]], Sequence[str]], questions: Sequence[Question]
) -> list[str | MediaError]:
    """Return a task's own answers to a batch; if a picture of one cannot be read, the others are answered one by one.

    Raises:
        PluginError: there are not as many answers as questions.
    """
    try:
        answers = list(respond(model, questions))
    except MediaError as error:
        if len(questions) == 1:
            return [error]
        return [answer for question in questions for answer in respond_each(model, respond, [question])]
    if len(answers) != len(questions):
        raise PluginError(f"A task's respond gave {len(answers)} answers to {len(questions)} questions.")
    return [*answers]


def _with_response(record: SampleRecord, answer: str | MediaError) -> SampleRecord:
    if isinstance(answer, MediaError):
        return record.model_copy(update={"error": one_line(str(answer))})
    return record.model_copy(update={"answer": answer, "finish_reason": "stop"})


def _answer(
    model: LazyModel, job: Job, batches: Iterator[_Batch | None], batch_size: int
) -> Generator[list[SampleRecord]]:
    """Yield the samples of each batch, answered or failed, in order."""
    first = next(batches, None)
    if first is None:
        return
    asked: deque[_Batch] = deque()
    prompts = _prompts(chain([first], batches), asked)
    found: deque[Completion | VilaError] = deque()
    for completion in model.get().complete_each(prompts, at_once=batch_size, **job.generation):
        found.append(completion)
        while asked and len(found) >= _num_prompts(asked[0]):
            yield _with_answers(asked.popleft(), found)
    while asked:  # batches without a prompt
        yield _with_answers(asked.popleft(), found)


def _prompts(batches: Iterable[_Batch | None], asked: deque[_Batch]) -> Generator[PreparedPrompt | None]:
    """Yield the prompts of batches, and None while the next batch is not ready; add each batch to `asked`."""
    for batch in batches:
        if batch is None:
            yield None
            continue
        asked.append(batch)
        yield from (prompt for _, prompt in batch if not isinstance(prompt, str))


def _num_prompts(batch: _Batch) -> int:
    return sum(not isinstance(prompt, str) for _, prompt in batch)


def _with_answers(batch: _Batch, completions: deque[Completion | VilaError]) -> list[SampleRecord]:
    """Return the samples of a batch with the first of `completions`, which are removed."""
    return [
        _with_answer(record, prompt if isinstance(prompt, str) else completions.popleft()) for record, prompt in batch
    ]


def _with_answer(record: SampleRecord, outcome: Completion | VilaError | str) -> SampleRecord:
    if isinstance(outcome, VilaError):
        outcome = one_line(str(outcome))
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
