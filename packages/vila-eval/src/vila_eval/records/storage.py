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

import json
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from vila_core.config import Config
from vila_core.errors import first_problem
from vila_eval.errors import ResultsError
from vila_eval.metric import Measure
from vila_eval.records.schema import FORMAT, TaskResult

logger = logging.getLogger("vila_eval")

SAMPLES, RESULTS, TIMINGS, MANIFEST = "samples.jsonl", "results.json", "timings.json", "run.json"
JUDGE, JUDGE_SUMMARY, PICTURES = "judge.jsonl", "judge.json", "pictures"
METRICS, REPORT = "metrics.json", "report.html"
ANSWERS, FAILURES = "answers-*.jsonl", "failed-*.txt"

Record = TypeVar("Record", bound=Config)


def encode(record: Config) -> str:
    """Return a record as one line of JSON: keys in the order of the class, without defaults and NaN."""
    return json.dumps(record.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False, allow_nan=False)


def decode(kind: type[Record], text: str, where: str) -> Record:
    """Read a record. Raises `ResultsError` naming `where`."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ResultsError(
            f"{where} does not have this version's format ({first_problem(error)}). Run with --force to start over."
        ) from None


def read_records(kind: type[Record], path: Path) -> Iterator[Record]:
    """Yield the records of a JSONL file. A missing file has none."""
    for line, where in read_lines(path):
        yield decode(kind, line, where)


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (line, where it is) of a file; nothing if it does not exist.

    A last line without a line end was cut off by a crash and is skipped.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.endswith("\n"):
                yield line, f"'{path}', line {number}"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically, even if the process crashes. Text is written as UTF-8, with line ends unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def write_records(path: Path, records: Iterable[Config]) -> None:
    """Write a JSONL file atomically."""
    write_whole(path, "".join(f"{encode(record)}\n" for record in records))


def write_record(path: Path, record: Config) -> None:
    """Write one record as an indented JSON file."""
    write_whole(path, json.dumps(record.model_dump(mode="json"), ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def read_result(folder: Path) -> TaskResult:
    """Read a task's `results.json`. Raises `ResultsError`: missing, damaged, of another format."""
    path = folder / RESULTS
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"There is no result in '{folder}': {error.strerror}.") from None
    result = decode(TaskResult, text, f"'{path}'")
    if result.format != FORMAT:
        raise ResultsError(f"'{path}' has format {result.format}; this version reads {FORMAT}.")
    return result


def find_results(folder: Path) -> dict[str, Path]:
    """Return the folder of every task below a model's results, by the path below it ("pope", "vila/count"), sorted."""
    return {path.parent.relative_to(folder).as_posix(): path.parent for path in sorted(folder.rglob(RESULTS))}


def write_metrics(root: Path) -> None:
    """Write a model's `metrics.json` of all tasks that have a result."""
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
    return {name: {_label(measure): measure.value for measure in result.measures} for name, result in results.items()}


def _label(measure: Measure) -> str:
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
