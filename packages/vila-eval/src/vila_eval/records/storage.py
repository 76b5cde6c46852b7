"""The files of a run: their names, and reading and writing records.

results/<model>/<task>/samples.jsonl        one SampleRecord per line, in the order of the data
results/<model>/<task>/results.json         a TaskResult, without dates and timings: the same run gives the same bytes
results/<model>/<task>/timings.json         Timings
results/<model>/<task>/run.json             what is run (`vila_eval.running.manifest`)
results/<model>/<task>/answers-<rank>.jsonl answers so far (`vila_eval.running.answers`); later merged
results/<model>/<task>/failed-<rank>.txt    why a worker failed (`vila_eval.running.failures`)
results/<model>/<task>/judge.jsonl          one JudgeRecord per line, for judged metrics
results/<model>/<task>/judge.json           a JudgeSummary: requests, tokens and cost of judging
results/<model>/<task>/<submission>         the file for the benchmark's server, for tasks that have one
results/<model>/<task>/pictures/            thumbnails of wrong answers, for the report
results/<model>/metrics.json                every task's measures, merged
results/<model>/report.html                 the report
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import re
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from pydantic import ValidationError

from vila_core.config import Config
from vila_core.errors import first_problem
from vila_core.input_files import open_regular_file
from vila_core.new_file import make_folder, new_file
from vila_eval.errors import ResultsError
from vila_eval.metric import Measure
from vila_eval.records.schema import FORMAT, SampleRecord, TaskResult
from vila_eval.texts import escape_all, one_line

logger = logging.getLogger("vila_eval")

SAMPLES, RESULTS, TIMINGS, MANIFEST = "samples.jsonl", "results.json", "timings.json", "run.json"
JUDGE, JUDGE_SUMMARY, PICTURES = "judge.jsonl", "judge.json", "pictures"
METRICS, REPORT = "metrics.json", "report.html"
ANSWERS, FAILURES = "answers-*.jsonl", "failed-*.txt"

MAX_RECORD_BYTES = 64 * 2**20
"""Largest record: a line of a JSONL file, or a file with one record."""
LOCKED_AFTER_S = 1.0
"""A file that is older, and that nobody has locked, is not just about to be locked by its writer."""

_START_OVER = "Repeat the run with --force to start over."
_UPDATE = "Use the vila-eval that wrote it, or repeat the run with --force to start over."

RecordType = TypeVar("RecordType", bound=Config)


def encode(record: Config) -> str:
    """Return a record as one line of JSON: keys in the order of the class, without defaults and NaN."""
    return json.dumps(record.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False, allow_nan=False)


def decode(kind: type[RecordType], text: str, where: str) -> RecordType:
    """Read a record. Raises `ResultsError` naming `where`."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        problem = error
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError):
        raise ResultsError(
            f"{where} is not a JSON object. It may be damaged or of another program. {_START_OVER}"
        ) from None
    stated = cast("dict[str, object]", content).get("format") if isinstance(content, dict) else None
    if isinstance(stated, int) and stated != FORMAT:
        raise ResultsError(f"{where} has format {one_line(str(stated), 20)}; this version reads {FORMAT}. {_UPDATE}")
    try:  # a lone surrogate, which another program wrote as an escape
        return kind.model_validate(escape_all(content))
    except ValidationError as error:
        problem = error
    except RecursionError:
        pass
    raise ResultsError(
        f"{where} does not have this version's format ({one_line(str(first_problem(problem)), 200)}). {_START_OVER}"
    )


def open_file(path: Path) -> BinaryIO:
    """Open a file of a results folder for reading.

    Raises:
        FileNotFoundError: it does not exist.
        ResultsError: it cannot be opened, or is a folder, pipe or device.
    """
    try:
        return open_regular_file(path)[0]
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise ResultsError(f"'{path}' cannot be read: {error.strerror}.") from None


def read_text(path: Path) -> str | None:
    """Return the text of a small file of a results folder, or None if it does not exist. Raises `ResultsError`."""
    try:
        file = open_file(path)
    except FileNotFoundError:
        return None
    with file, _reading(path):
        content = file.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        raise ResultsError(f"'{path}' has more than {MAX_RECORD_BYTES:,} bytes. No run writes that. {_START_OVER}")
    return _as_text(content, f"'{path}'")


def read_record(kind: type[RecordType], path: Path) -> RecordType | None:
    """Read a file with one record, or return None if it does not exist. Raises `ResultsError`."""
    text = read_text(path)
    return None if text is None else decode(kind, text, f"'{path}'")


def read_records(kind: type[RecordType], path: Path) -> Iterator[RecordType]:
    """Yield the records of a JSONL file. A missing file has none. Raises `ResultsError`."""
    for line, where in read_lines(path):
        yield decode(kind, line, where)


def read_samples(folder: Path, result: TaskResult) -> Iterator[SampleRecord]:
    """Yield a finished task's samples. Raises `ResultsError`, also if there are more or fewer than `result` counts."""
    number = 0
    for sample in read_records(SampleRecord, folder / SAMPLES):
        number += 1
        yield sample
    if number != result.counts.samples:
        raise ResultsError(
            f"'{folder / SAMPLES}' has {number:,} samples, but {RESULTS} counts {result.counts.samples:,}: a part is "
            "missing. Copy the folder again, or delete it and repeat the run."
        )


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (line, where it is) of a file; nothing if it does not exist. Raises `ResultsError`.

    A last line without a line end was cut off by a crash and is skipped.
    """
    with suppress(FileNotFoundError):
        for line, where, _ in read_lines_from(path, 0):
            yield line, where


def read_lines_from(path: Path, start: int) -> Iterator[tuple[str, str, int]]:
    """Yield (line, where it is, byte after it) of a file from byte `start` on, as `read_lines` does.

    Raises:
        FileNotFoundError: the file does not exist.
        ResultsError: the file or a line cannot be read.
    """
    with open_file(path) as file:
        file.seek(start)
        for number in itertools.count(1):
            where = f"'{path}', line {number}" + (f" after byte {start}," if start else ",")
            with _reading(path):
                line = file.readline(MAX_RECORD_BYTES)
            if not line.endswith(b"\n"):
                if len(line) == MAX_RECORD_BYTES:
                    raise ResultsError(f"{where} has more than {MAX_RECORD_BYTES:,} bytes. {_START_OVER}")
                return
            yield _as_text(line, where), where, file.tell()


def _as_text(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ResultsError(
            f"{where} is not UTF-8 text. It may be damaged or of another program. {_START_OVER}"
        ) from None


@contextmanager
def _reading(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise ResultsError(f"'{path}' cannot be read: {error.strerror}.") from None


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all, even if the process crashes. Raises `OutputError`.

    Text is written as UTF-8, with line ends unchanged and lone surrogates as escapes, which JSON reads back.
    """
    make_folder(path.parent)
    with ExitStack() as after_renaming, new_file(path) as temporary:
        file = after_renaming.enter_context(temporary.open("wb"))
        _lock(file)  # `remove_unfinished` leaves locked files alone, so it stays locked until it has its name
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished(folder: Path) -> None:
    """Remove what killed runs left of files that they were writing, but nothing that another run is writing now."""
    for path in folder.glob(".*.part"):
        with suppress(OSError), open_regular_file(path)[0] as file:
            age = time.time() - os.fstat(file.fileno()).st_mtime
            if age > LOCKED_AFTER_S and _lock(file):
                path.unlink()


def _lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed; return whether that succeeded."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by another process, or the file system has no locks
        return False
    return True


def write_records(path: Path, records: Iterable[Config]) -> None:
    """Write a JSONL file atomically."""
    write_whole(path, "".join(f"{encode(record)}\n" for record in records))


def write_record(path: Path, record: Config) -> None:
    """Write one record as an indented JSON file."""
    write_whole(path, json.dumps(record.model_dump(mode="json"), ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def read_result(folder: Path) -> TaskResult:
    """Read a task's `results.json`. Raises `ResultsError`: missing, damaged, of another format."""
    path = folder / RESULTS
    result = read_record(TaskResult, path)
    if result is None:
        raise ResultsError(f"There is no result in '{folder}': expected the file {RESULTS}.")
    if result.format != FORMAT:
        raise ResultsError(f"'{path}' has format {result.format}; this version reads {FORMAT}. {_UPDATE}")
    return result


def find_results(folder: Path) -> dict[str, Path]:
    """Return the folder of every task below a model's results, by the path below it ("pope", "vila/count").

    Sorted as people count: "videomme-16" is before "videomme-128".
    """
    found = {path.parent.relative_to(folder).as_posix(): path.parent for path in folder.rglob(RESULTS)}
    return dict(sorted(found.items(), key=lambda item: natural_order(item[0])))


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key for names with numbers in them."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part[:18]), part) if part[:1] in "0123456789" and part else (-1, part) for part in parts]


def write_metrics(root: Path) -> None:
    """Write a model's `metrics.json` of all tasks that have a result, and clear what killed runs left beside it."""
    remove_unfinished(root)
    results: dict[str, TaskResult] = {}
    for name, folder in find_results(root).items():
        try:
            results[name] = read_result(folder)
        except ResultsError as error:
            logger.warning("Left out of %s: %s", METRICS, error)
    with writing(root / METRICS):
        write_whole(
            root / METRICS, json.dumps(merged_metrics(results), ensure_ascii=False, allow_nan=False, indent=2) + "\n"
        )


def merged_metrics(results: Mapping[str, TaskResult]) -> dict[str, dict[str, float]]:
    """Return the contents of `metrics.json`: task -> measure -> value.

    The measure of a group is called "name/dimension=value".
    """
    return {
        name: {measure_label(measure): measure.value for measure in result.measures} for name, result in results.items()
    }


def measure_label(measure: Measure) -> str:
    """Return the name of a measure in `metrics.json`."""
    return measure.name if measure.group is None else f"{measure.name}/{'='.join(measure.group)}"


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn an `OSError` into a `ResultsError` that names the file."""
    try:
        yield
    except OSError as error:
        raise ResultsError(
            f"'{path}' cannot be written: {error.strerror}. Check its folder's permissions and the disk's space."
        ) from error
