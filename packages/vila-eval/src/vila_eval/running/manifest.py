"""The manifest of a results folder (`run.json`): what was run. It is checked before answers are added."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from vila_core.settings_changes import describe_changes
from vila_eval.errors import ResultsError
from vila_eval.records.schema import RunFacts, TaskResult
from vila_eval.records.storage import (
    ANSWERS,
    JUDGE,
    JUDGE_SUMMARY,
    MANIFEST,
    PICTURES,
    RESULTS,
    SAMPLES,
    TIMINGS,
    read_record,
    read_result,
    write_record,
    writing,
)
from vila_eval.running.answers import keep_as_answers


class Manifest(RunFacts):
    """`run.json`.

    Attributes:
        rows: number of rows in the data.
        together: rows after the limit that belong to a row before it (`Task.keep_together`).
    """

    rows: int
    together: tuple[int, ...] = ()

    @property
    def selected(self) -> Sequence[int]:
        """The rows that are asked, in order."""
        limit = self.settings.limit
        first = range(self.rows if limit is None else min(limit, self.rows))
        return [*first, *self.together] if self.together else first


def read_manifest(folder: Path) -> Manifest | None:
    """Return the folder's manifest, or None. Raises `ResultsError` if it cannot be read."""
    return read_record(Manifest, folder / MANIFEST)


def check_folder(folder: Path, expected: Manifest) -> TaskResult | None:
    """Return the folder's result; None if there is none, or if it covers more or fewer rows.

    Raises:
        ResultsError: the folder holds results or answers that do not match `expected`; the message says why.
    """
    result = read_result(folder) if (folder / RESULTS).exists() else None
    found = read_manifest(folder)
    differences = describe_changes(_facts(found), _facts(expected)) if found is not None else []
    if result is not None and not differences:
        # a result does not say how many rows the data have; the manifest does
        wanted = {name: value for name, value in _facts(expected).items() if name != "rows"}
        differences = describe_changes(_facts(result), wanted)
    if found is None and result is None and any(folder.glob(ANSWERS)):
        differences = [f"it has answers, but no {MANIFEST} that says what they are of"]
    if differences:
        raise ResultsError(
            f"The folder '{folder}' holds results of something else: {'; '.join(differences)}. "
            "Run with --force to start over there, or give another --output-dir or --model-name."
        )
    return result if result is not None and result.settings.limit == expected.settings.limit else None


def _facts(record: RunFacts) -> dict[str, object]:
    """Fields that must match for answers to be reusable. A model is identified by its files, not by its name."""
    facts: dict[str, object] = record.model_dump(
        mode="json", include=set(RunFacts.model_fields) - {"model"}, exclude={"settings": {"limit"}}
    )
    facts["model (digest of its files)"] = record.model.digest
    if isinstance(record, Manifest):
        facts["rows"] = record.rows
    return facts


def begin(folder: Path, expected: Manifest, *, force: bool, submission: str | None) -> Manifest:
    """Prepare the folder for answers and return its manifest. `force` clears a folder that holds something else.

    Answers of a run with another limit are kept, but not its result.

    Raises:
        ResultsError: as for `check_folder`, without `force`.
    """
    try:
        result, found = check_folder(folder, expected), read_manifest(folder)
        if found is not None and asks_the_same(found, expected):
            return found
        if result is None:
            keep_as_answers(folder)
            with writing(folder):
                for name in (RESULTS, SAMPLES, *([submission] if submission else [])):
                    (folder / name).unlink(missing_ok=True)
    except ResultsError:
        if not force:
            raise
        clear(folder, submission)
    write_record(folder / MANIFEST, expected)
    return expected


def asks_the_same(one: Manifest, other: Manifest) -> bool:
    """Return whether two manifests of one task select the same rows of the same data."""
    return (one.data, one.rows, one.settings.limit, one.together) == (
        other.data,
        other.rows,
        other.settings.limit,
        other.together,
    )


def clear(folder: Path, submission: str | None) -> None:
    """Remove the files that runs write to a task's folder, and nothing else.

    The manifest goes last, so that leftovers of an interrupted removal are still known.
    """
    with writing(folder):
        for name in (RESULTS, SAMPLES, TIMINGS, JUDGE, JUDGE_SUMMARY, *([submission] if submission else [])):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
        for path in folder.glob(ANSWERS):
            path.unlink(missing_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
