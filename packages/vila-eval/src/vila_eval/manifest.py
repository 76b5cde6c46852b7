"""What a task's results folder is of: written before the first answer, and compared before another is added.

results/<model>/<task>/run.json             a Manifest
results/<model>/<task>/answers-<rank>.jsonl answers as they come (see `vila_eval.answers`); gone when there is a result
results/<model>/<task>/failed-<rank>.txt    why a worker could not answer its share (see `vila_eval.workers`)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vila_core.config import Config
from vila_eval.errors import ResultsError
from vila_eval.records import (
    FORMAT,
    JUDGE,
    JUDGE_SUMMARY,
    PICTURES,
    RESULTS,
    SAMPLES,
    TIMINGS,
    ModelIdentity,
    RunSettings,
    TaskResult,
    decode,
    read_result,
    write_record,
)

MANIFEST = "run.json"
ANSWERS, FAILURES = "answers-*.jsonl", "failed-*.txt"


class Manifest(Config):
    """`run.json`. `rows` are those of the data, `selected` those that are asked (`--limit`)."""

    format: int = FORMAT
    task: str
    task_version: int
    distribution: str
    model: ModelIdentity
    settings: RunSettings
    data: dict[str, str]
    rows: int
    selected: int


def read_manifest(folder: Path) -> Manifest | None:
    """Return the folder's manifest, None where there is none. Raises `ResultsError`: it cannot be read."""
    path = folder / MANIFEST
    try:
        return decode(Manifest, path.read_text(encoding="utf-8"), f"'{path}'")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResultsError(f"'{path}' cannot be read: {error.strerror}.") from None


def check_folder(folder: Path, expected: Manifest) -> TaskResult | None:
    """Return the result that the folder holds, if any.

    Raises:
        ResultsError: the folder holds results or answers of something else than `expected`. The message names what differs.
    """
    result = read_result(folder) if (folder / RESULTS).exists() else None
    found = read_manifest(folder)
    differences = list(_differences(_facts(found), _facts(expected))) if found is not None else []
    if result is not None and not differences:
        # rows and selected are not in a result; the manifest tells of them
        wanted = {name: value for name, value in _facts(expected).items() if name not in ("rows", "selected")}
        differences = list(_differences(_facts(result), wanted))
    if found is None and result is None and any(folder.glob(ANSWERS)):
        differences = [f"it has answers, but no {MANIFEST} that says what they are of"]
    if differences:
        raise ResultsError(
            f"The folder '{folder}' holds results of something else: {'; '.join(differences)}. "
            "Run with --force to start anew there, or give another --output-dir or --model-name."
        )
    return result


def _facts(record: Manifest | TaskResult) -> dict[str, object]:
    """What makes two runs the same. A model is what its files are, under whichever path or name."""
    stated = record.model_dump(mode="json", include={"format", "task", "task_version", "distribution", "settings", "data"})
    facts = dict(_flat(stated)) | {"model (digest of its files)": record.model.digest}
    return facts | ({"rows": record.rows, "selected": record.selected} if isinstance(record, Manifest) else {})


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", inner) for key, inner in _flat(value))
        else:
            yield name, value


def _differences(found: Mapping[str, object], expected: Mapping[str, object]) -> Iterator[str]:
    for name in dict.fromkeys([*expected, *found]):
        if found.get(name) != expected.get(name) and name in {*expected, *found}:
            yield f"{name} is {found.get(name)!r} there, {expected.get(name)!r} here"


def begin(folder: Path, expected: Manifest, *, force: bool, submission: str | None) -> Manifest:
    """Make the folder ready for answers: check it, or (`force`) empty it where it is of something else; return its manifest.

    Raises:
        ResultsError: as for `check_folder`, without `force`.
    """
    try:
        check_folder(folder, expected)
        found = read_manifest(folder)
    except ResultsError:
        if not force:
            raise
        clear(folder, submission)
        found = None
    if found is None:
        write_record(folder / MANIFEST, expected)
    return found or expected


def clear(folder: Path, submission: str | None) -> None:
    """Remove what runs write to a task's folder, and nothing else. The manifest goes last: what is left is still known then."""
    for name in (RESULTS, SAMPLES, TIMINGS, JUDGE, JUDGE_SUMMARY, *([submission] if submission else [])):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / PICTURES, ignore_errors=True)
    for path in folder.glob(ANSWERS):
        path.unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)


def remove_answers(folder: Path) -> None:
    """Remove what workers and killed runs left in the folder of a task that has its result."""
    unfinished = [path for name in (SAMPLES, RESULTS, TIMINGS, MANIFEST) for path in folder.glob(f".{name}.*")]
    for path in (*folder.glob(ANSWERS), *folder.glob(FAILURES), *unfinished):
        path.unlink(missing_ok=True)
