"""Answers as they come, durably: each worker appends to a file of its own, and whoever merges reads them all.

results/<model>/<task>/answers-<rank>.jsonl    an Answer a line, a batch a write
results/<model>/<task>/answers-merged.jsonl    those of a task that had its result, and is asked more rows now, or fewer
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from vila_core.config import Config
from vila_eval.errors import ResultsError
from vila_eval.records.append_only import append_lines, cut_torn_line
from vila_eval.records.schema import SampleRecord
from vila_eval.records.storage import (
    ANSWERS,
    FAILURES,
    MANIFEST,
    RESULTS,
    SAMPLES,
    TIMINGS,
    decode,
    encode,
    read_records,
    write_records,
    writing,
)

logger = logging.getLogger("vila_eval")

LOCK = ".lock"
PATIENCE_S = 10.0
"""How long a worker waits for its file: that long the workers of a run that was killed may take to notice."""


class Answer(Config):
    """A sample that is answered, and where it belongs: question `number` of the `questions` of its row.

    Its sample's `index` is set when all answers are there, since a row may have several questions.
    """

    number: int
    questions: int
    sample: SampleRecord

    @property
    def row(self) -> int:
        return self.sample.row


class AnswerFile:
    """One worker's file, open for appending, in a `with` block. Another process cannot open it meanwhile.

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

    def append(self, answers: Sequence[Answer]) -> None:
        """Write a batch at once; when this returns, it is on disk."""
        text = "".join(f"{encode(answer)}\n" for answer in answers)
        with writing(self.path):
            self.path.with_name(SAMPLES).unlink(missing_ok=True)  # merged from older answers
            append_lines(self._file, text)


class StoredAnswers:
    """The answers in a task's folder to the `selected` rows.

    Attributes:
        complete: rows with all of their answers.
        contradicted: rows with answers to different questions.
        others: whether there are answers to rows that are not selected: a run with a higher limit left them, and may want them again.
    """

    def __init__(self, folder: Path, selected: Sequence[int]):
        self.complete: set[int] = set()
        self.contradicted: set[int] = set()
        self.others = False
        self._selected = selected if isinstance(selected, range) else frozenset(selected)
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._rows: dict[int, dict[int, Answer]] = {}
        self._stale: set[tuple[int, int, int, str]] = set()

    def update(self) -> None:
        """Read what was appended since the last time. A line without its end is not there yet."""
        for path in sorted(self._folder.glob(ANSWERS)):
            start = self._read.get(path, 0)
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    lines = file.read().splitlines(keepends=True)
            except FileNotFoundError:  # merged by another process
                continue
            for line in lines:
                if line.endswith(b"\n"):
                    start += len(line)
                    self._add(
                        decode(Answer, line.decode(errors="replace"), f"'{path}', the line that ends at byte {start}")
                    )
            self._read[path] = start

    def _add(self, answer: Answer) -> None:
        """Take an answer, unless one like it was found to be out of date."""
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
        """Drop the answers of a row that are to other questions than those with `keys`; return the numbers that have an answer."""
        of_row = self._rows.get(row, {})
        for number, answer in list(of_row.items()):
            if answer.questions != len(keys) or answer.sample.key != keys[number]:
                self._stale.add(_identify(answer))
                del of_row[number]
                self.complete.discard(row)
        return set(of_row)

    def merged(self, rows: Iterable[int]) -> list[SampleRecord]:
        """Return the samples of `rows` (all complete) in order, numbered."""
        in_order = [answer for row in rows for _, answer in sorted(self._rows[row].items())]
        return [answer.sample.model_copy(update={"index": index}) for index, answer in enumerate(in_order)]

    def places(self, rows: Iterable[int]) -> list[tuple[int, int]]:
        """Return (row, number of the question) of each sample that `merged` gives."""
        return [(row, number) for row in rows for number in sorted(self._rows[row])]


def _identify(answer: Answer) -> tuple[int, int, int, str]:
    return answer.row, answer.number, answer.questions, answer.sample.key


def keep_as_answers(folder: Path) -> None:
    """Take a task's merged samples for answers again, so that other rows can be asked, and these need not be.

    Nothing is lost at any moment: the samples' own file is left where it is.
    """
    path = folder / ANSWERS.replace("*", "merged")
    kept = {
        (answer.row, answer.number): answer for answer in (*read_records(Answer, path), *_as_answers(folder / SAMPLES))
    }
    if kept:
        write_records(path, kept.values())


def _as_answers(samples: Path) -> Iterator[Answer]:
    for _, found in itertools.groupby(read_records(SampleRecord, samples), lambda sample: sample.row):
        of_row = list(found)
        for number, sample in enumerate(of_row):
            yield Answer(number=number, questions=len(of_row), sample=sample.unscored())


def remove_answers(folder: Path, stored: StoredAnswers) -> None:
    """Remove what workers and killed runs left in the folder of a task that has its result; but keep answers to other rows."""
    unfinished = [path for name in (SAMPLES, RESULTS, TIMINGS, MANIFEST, ANSWERS) for path in folder.glob(f".{name}.*")]
    for path in (*([] if stored.others else folder.glob(ANSWERS)), *folder.glob(FAILURES), *unfinished):
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep other runs out of a task's folder. Raises `ResultsError` if one is there already."""
    path = folder / LOCK
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path, 0.0)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _open_locked(path: Path, patience_s: float) -> BinaryIO:
    """Open a file that only one process may have open. The lock ends with the process, however that ends."""
    deadline = time.monotonic() + patience_s
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if time.monotonic() >= deadline:
                raise ResultsError(
                    f"Another run is writing to '{path.parent}'. Wait for its end, stop it, or give another --output-dir."
                ) from None
            time.sleep(0.1)
            continue
        except OSError as error:
            logger.warning("'%s' cannot be locked (%s): see that no other run writes there.", path, error.strerror)
            return file
        try:
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except FileNotFoundError:
            pass
        file.close()  # the holder before removed it: lock the one that others will find
