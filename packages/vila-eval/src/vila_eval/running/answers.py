"""Durable storage of answers during a run: each worker appends to its own file, and the merge reads all files.

results/<model>/<task>/answers-<rank>.jsonl    one answer per line, one write per batch
results/<model>/<task>/answers-merged.jsonl    answers of a finished task that now runs with another limit

A line is `{"number": …, "questions": …, "sample": {…}}`: question `number` of the `questions` of the sample's row.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from vila_eval.errors import ResultsError
from vila_eval.records.append_only import append_lines, cut_torn_line
from vila_eval.records.schema import SampleRecord
from vila_eval.records.storage import (
    ANSWERS,
    FAILURES,
    PICTURES,
    SAMPLES,
    decode,
    encode,
    read_lines,
    read_lines_from,
    read_records,
    remove_unfinished,
    write_whole,
    writing,
)
from vila_eval.texts import one_line

logger = logging.getLogger("vila_eval")

LOCK = ".lock"
PATIENCE_S = 10.0
"""How long a worker waits for its file: the workers of a killed run may hold it this long."""


def _encode(answer: SampleRecord) -> str:
    place = f'"number": {answer.number}, "questions": {answer.questions}'
    return f'{{{place}, "sample": {encode(answer)}}}'


def _decode(line: str, where: str) -> SampleRecord:
    """Read an answer. Raises `ResultsError` naming `where`."""
    try:
        stored = json.loads(line)
        sample = stored["sample"] | {"number": stored["number"], "questions": stored["questions"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResultsError(
            f"{where} is not an answer that this version writes ({one_line(str(error), 200)}). "
            "Run with --force to start over."
        ) from None
    return decode(SampleRecord, json.dumps(sample), where)


class AnswerFile:
    """One worker's file, opened for appending in a `with` block and locked against other processes.

    Raises:
        ResultsError: another process has it open, or it cannot be written.
    """

    def __init__(self, folder: Path, rank: int):
        self.path = folder / f"answers-{rank}.jsonl"

    def __enter__(self) -> AnswerFile:
        with writing(self.path):
            self._file = _open_locked(self.path, PATIENCE_S)
            cut_torn_line(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, answers: Sequence[SampleRecord]) -> None:
        """Write a batch in one write; it is on disk when this returns."""
        text = "".join(f"{_encode(answer)}\n" for answer in answers)
        with writing(self.path):
            self.path.with_name(SAMPLES).unlink(missing_ok=True)  # it was merged from older answers
            append_lines(self._file, text)


class StoredAnswers:
    """The answers to the `selected` rows in a task's folder.

    Attributes:
        complete: rows with all of their answers.
        contradicted: rows with answers to different questions.
        others: whether there are answers to rows that are not selected. A run with a higher limit wrote them and may
            need them again.
    """

    def __init__(self, folder: Path, selected: Sequence[int]):
        self.complete: set[int] = set()
        self.contradicted: set[int] = set()
        self.others = False
        self._selected = selected if isinstance(selected, range) else frozenset(selected)
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._rows: dict[int, dict[int, SampleRecord]] = {}
        self._stale: set[tuple[int, int, int, str]] = set()

    def update(self) -> None:
        """Read what was appended since the last call. A line without its end is still being written."""
        for path in sorted(self._folder.glob(ANSWERS)):
            start = self._read.get(path, 0)
            try:
                for line, where, end in read_lines_from(path, start):
                    self._add(_decode(line, where))
                    self._read[path] = end
            except FileNotFoundError:  # merged by another process
                continue

    def _add(self, answer: SampleRecord) -> None:
        """Add an answer, unless an equal one is known to be out of date."""
        if answer.row not in self._selected:
            self.others = True
            return
        if _identify(answer) in self._stale:
            return
        of_row = self._rows.setdefault(answer.row, {})
        before = of_row.get(answer.number)
        if before is not None and _identify(before) != _identify(answer):
            self.contradicted.add(answer.row)
        of_row[answer.number] = answer
        if len(of_row) == answer.questions:
            self.complete.add(answer.row)

    @property
    def rows(self) -> list[int]:
        """The rows with at least one answer, in order."""
        return sorted(self._rows)

    @property
    def samples(self) -> int:
        """How many answers there are."""
        return sum(len(of_row) for of_row in self._rows.values())

    def keep(self, row: int, keys: Sequence[str]) -> set[int]:
        """Drop the row's answers to questions other than those with `keys`; return the numbers of those answered."""
        of_row = self._rows.get(row, {})
        for number, answer in list(of_row.items()):
            if answer.questions != len(keys) or answer.key != keys[number]:
                self._stale.add(_identify(answer))
                del of_row[number]
                self.complete.discard(row)
        return set(of_row)

    def has(self, sample: SampleRecord) -> bool:
        """Return whether the sample's question has an answer."""
        return sample.number in self._rows.get(sample.row, {})

    def merged(self, rows: Iterable[int]) -> list[SampleRecord]:
        """Return the samples of `rows` (all complete) in order, with their `index`."""
        in_order = [answer for row in rows for _, answer in sorted(self._rows[row].items())]
        return [answer.model_copy(update={"index": index}) for index, answer in enumerate(in_order)]

    def places(self, rows: Iterable[int]) -> list[tuple[int, int]]:
        """Return (row, number of the question) of each sample that `merged` returns."""
        return [(row, number) for row in rows for number in sorted(self._rows[row])]


def _identify(answer: SampleRecord) -> tuple[int, int, int, str]:
    return answer.row, answer.number, answer.questions, answer.key


def keep_as_answers(folder: Path) -> None:
    """Turn a task's merged samples back into answers, so that a run with another limit can reuse them.

    `samples.jsonl` stays in place, so nothing is lost if this is interrupted.
    """
    path = folder / ANSWERS.replace("*", "merged")
    answers = [_decode(line, where) for line, where in read_lines(path)]
    kept = {(answer.row, answer.number): answer for answer in (*answers, *_as_answers(folder / SAMPLES))}
    if kept:
        write_whole(path, "".join(f"{_encode(answer)}\n" for answer in kept.values()))


def _as_answers(samples: Path) -> Iterator[SampleRecord]:
    for _, found in itertools.groupby(read_records(SampleRecord, samples), lambda sample: sample.row):
        of_row = list(found)
        for number, sample in enumerate(of_row):
            yield sample.unscored().model_copy(update={"number": number, "questions": len(of_row)})


def remove_answers(folder: Path, stored: StoredAnswers) -> None:
    """Remove what workers and killed runs left in the folder of a finished task, except answers to other rows."""
    with writing(folder):
        for path in (*([] if stored.others else folder.glob(ANSWERS)), *folder.glob(FAILURES)):
            path.unlink(missing_ok=True)
    remove_unfinished(folder)
    remove_unfinished(folder / PICTURES)


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Lock a task's folder against other runs. Raises `ResultsError` if another run holds the lock."""
    path = folder / LOCK
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path, 0.0)
    try:
        yield
    finally:
        with suppress(OSError):  # the disk may be read-only by now
            path.unlink(missing_ok=True)
        file.close()


def _open_locked(path: Path, patience_s: float) -> BinaryIO:
    """Open a file that only one process may have open. The lock ends with the process, however it ends."""
    deadline = time.monotonic() + patience_s
    while True:
        file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if time.monotonic() >= deadline:
                raise ResultsError(
                    f"Another run is writing to '{path.parent}'. "
                    "Wait until it ends, stop it, or choose another --output-dir."
                ) from None
            time.sleep(0.1)
            continue
        except OSError as error:
            logger.warning(
                "'%s' cannot be locked (%s): make sure that no other run writes there.", path, error.strerror
            )
            return file
        try:
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except FileNotFoundError:
            pass
        file.close()  # the previous holder removed it: lock the file that others will find
