"""Comparison of two runs, sample by sample for measures that are means of samples, and only if both ran the same task.

n: samples that both runs have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from vila_core.config import Config
from vila_core.errors import listed
from vila_eval.errors import ResultsError
from vila_eval.metric import Measure, Unit
from vila_eval.records.schema import ModelIdentity, SampleRecord, TaskResult
from vila_eval.records.storage import RESULTS, find_results, read_result, read_samples
from vila_eval.report.formatting import shorten
from vila_eval.statistics import compare, holm

MAY_DIFFER = ("limit", "chat_template", "dtype")
"""Settings that may differ between two runs. A limit only leaves out samples.

Template and dtype belong to the model.
"""


QUESTION_SHOWN = 300
"""Number of characters of a question that are kept for a sample that is scored differently."""


class MeasureComparison(Config):
    """One measure in both runs. If it is a mean of samples, all numbers are over the samples that both runs have.

    Attributes:
        first, second: the measure's values. If it is not a mean of samples (a corpus score), as each run reports it.
        difference: second minus first.
        standard_error, p_value: paired, of the difference; null without a test (not a mean of samples, or too few).
        gained, lost: numbers of samples that the second run scores higher and lower; null without a test.
    """

    name: str
    unit: Unit
    higher_is_better: bool | None
    first: float
    second: float
    difference: float
    standard_error: float | None = None
    p_value: float | None = None
    gained: int | None = None
    lost: int | None = None


class Flip(Config):
    """A sample whose score differs: its values and answers in both runs, and the beginning of the question's text."""

    id: str
    first: float
    second: float
    first_answer: str
    second_answer: str
    reference: Any = None
    question: str = ""


class TaskComparison(Config):
    """One task in both runs.

    Attributes:
        task: its folder below the model's.
        measures: over all samples, the headline first; empty if the answers are scored elsewhere.
        paired: number of scored samples that both runs have.
        only_first, only_second: numbers of samples that only one run has.
        unjudged: number of samples that a judge failed on in either run; they are left out of both.
        adjusted_p_value: of the headline, Holm-adjusted over all tested tasks.
        flips: samples whose headline value differs, in the data's order.
        differences: what differs between the runs, such as "limit: 5, none".
        folders: the results that were compared; not part of the JSON.
    """

    task: str
    measures: tuple[MeasureComparison, ...]
    paired: int
    only_first: int
    only_second: int
    unjudged: int
    adjusted_p_value: float | None = None
    flips: tuple[Flip, ...] = ()
    differences: tuple[str, ...] = ()
    folders: tuple[Path, ...] = Field(default=(), exclude=True)

    @property
    def headline(self) -> MeasureComparison | None:
        return self.measures[0] if self.measures else None

    @property
    def notes(self) -> list[str]:
        """Differences between the runs, and samples left out; A is the first run."""
        notes = [f"the runs differ in {'; '.join(self.differences)}."] if self.differences else []
        if self.only_first or self.only_second:
            notes.append(f"left out: {self.only_first:,} samples only in A, {self.only_second:,} only in B.")
        if self.unjudged:
            notes.append(f"left out: {self.unjudged:,} not judged in one of the runs.")
        return notes


class RunComparison(Config):
    """Two runs: the tasks of both, and the tasks that only one has."""

    first: ModelIdentity
    second: ModelIdentity
    tasks: tuple[TaskComparison, ...]
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Explanations needed to read the numbers."""
        notes = [
            "Shares are in percent. Samples are paired: ± is the standard error of the difference, p is two-sided, – "
            "means no test. Gained and lost are the samples that B scores higher and lower."
        ]
        tested = sum(task.adjusted_p_value is not None for task in self.tasks)
        if tested > 1:
            notes.append(f"p (Holm) is adjusted for the {tested} headlines that are tested.")
        by_line: dict[str, list[str]] = {}
        for task in self.tasks:
            for line in task.notes:
                by_line.setdefault(line, []).append(task.task)
        for line, tasks in by_line.items():
            if len(tasks) == len(self.tasks) > 1:
                notes.append(f"All tasks: {line}")
            else:
                notes.append(f"{listed(tasks, 5)}: {line}")
        for name, tasks in (("A", self.only_first), ("B", self.only_second)):
            if tasks:
                notes.append(f"Only in {name}: {', '.join(tasks)}.")
        return notes


@dataclass(frozen=True)
class _Sample:
    """The part of a record that is kept in memory, since a run may have hundreds of thousands."""

    values: dict[str, float]
    is_unjudged: bool
    cluster: str | None
    answer: str
    reference: Any
    question: str


def compare_runs(first: Path, second: Path, *, allow_different: bool = False) -> RunComparison:
    """Compare two runs: two models' folders (all tasks that both have), or two tasks' folders.

    Args:
        first: a folder below `results/`; differences are second minus first.
        second: another one.
        allow_different: compare even if task, version, data, metric, judge or settings differ, and list the
            differences.

    Raises:
        ResultsError: a folder has no results, the folders are of different kinds or have nothing in common, or the runs
            differ and `allow_different` is false.
    """
    folders, others = _task_folders(first), _task_folders(second)
    if ("" in folders) != ("" in others):
        raise ResultsError(
            f"'{first}' and '{second}' are a model's folder and a task's folder. Give two folders of the same kind."
        )
    common = [name for name in folders if name in others]
    if not common:
        raise ResultsError(
            f"No task is in both: '{first}' has {', '.join(folders)}; '{second}' has {', '.join(others)}."
        )
    results = {name: (read_result(folders[name]), read_result(others[name])) for name in common}
    refused: list[str] = []
    for name, (one, other) in results.items():
        if found := _differences(one, other, MAY_DIFFER):
            refused.append(f"{name or one.task} ({'; '.join(found)})")
    if refused and not allow_different:
        raise ResultsError(
            f"The runs differ (first, second): {', '.join(refused)}. "
            "Run one of them again, or compare with --allow-different."
        )
    tasks = [
        _compare_task(name or one.task, folders[name], others[name], one, other)
        for name, (one, other) in results.items()
    ]
    one, other = results[common[0]]
    return RunComparison(
        first=one.model,
        second=other.model,
        tasks=tuple(_adjusted(tasks)),
        only_first=tuple(name for name in folders if name not in others),
        only_second=tuple(name for name in others if name not in folders),
    )


def _task_folders(folder: Path) -> dict[str, Path]:
    """Return the tasks of a model's folder by name, or a task's own folder under the empty name."""
    if (folder / RESULTS).exists():
        return {"": folder}
    found = find_results(folder)
    if not found:
        raise ResultsError(
            f"There are no results in '{folder}'. Name the folder of a model or of a task, such as "
            "results/vila-tiny/pope."
        )
    return found


def _differences(one: TaskResult, other: TaskResult, ignored: Sequence[str] = ()) -> list[str]:
    facts, others = _facts(one), _facts(other)
    return [
        f"{name}: {facts.get(name, 'none')}, {others.get(name, 'none')}"
        for name in dict.fromkeys([*facts, *others])
        if facts.get(name) != others.get(name) and name not in ignored
    ]


def _facts(result: TaskResult) -> dict[str, object]:
    """Return what must match for two runs of a task to be comparable, by name; missing values are left out."""
    facts: dict[str, object] = {
        "task": result.task,
        "version": result.task_version,
        "metric": result.metric,
        "judge": result.judge,
    }
    facts |= {f"data {name}": value for name, value in result.data.items()}
    facts |= result.settings.model_dump()
    return {name: value for name, value in facts.items() if value is not None and value != ()}


def _compare_task(name: str, folder: Path, other_folder: Path, one: TaskResult, other: TaskResult) -> TaskComparison:
    first, second = _read_samples(folder, one), _read_samples(other_folder, other)
    common = [sample for sample in first if sample in second]
    if not common:
        raise ResultsError(f"{name}: no sample is in both runs ({len(first):,} and {len(second):,} samples).")
    unjudged = {sample for sample in common if first[sample].is_unjudged or second[sample].is_unjudged}
    paired = [sample for sample in common if sample not in unjudged]
    if changed := [sample for sample in common if first[sample].reference != second[sample].reference]:
        raise ResultsError(
            f"{name}: the references of {len(changed):,} of {len(common):,} samples differ, such as '{changed[0]}'. "
            "The data changed."
        )
    pairs = {sample: (first[sample], second[sample]) for sample in paired}
    counterparts = {measure.name: measure for measure in other.measures if measure.group is None}
    measures: list[MeasureComparison] = []
    for measure in one.measures:
        if measure.group is None and measure.name in counterparts:
            counterpart = counterparts[measure.name]
            is_mean = _is_mean(measure, first) and _is_mean(counterpart, second)
            having = (
                [pair for pair in pairs.values() if all(measure.name in sample.values for sample in pair)]
                if is_mean
                else []
            )
            measures.append(_compare_measure(measure, counterpart, having))
    return TaskComparison(
        task=name,
        measures=tuple(measures),
        paired=len(paired),
        only_first=len(first) - len(common),
        only_second=len(second) - len(common),
        unjudged=len(unjudged),
        flips=tuple(_flips(measures, pairs)),
        differences=tuple(_differences(one, other)),
        folders=(folder, other_folder),
    )


def _read_samples(folder: Path, result: TaskResult) -> dict[str, _Sample]:
    return {
        record.id: _Sample(
            record.values or {},
            record.judge_error is not None,
            record.cluster,
            record.answer,
            record.reference,
            _question(record),
        )
        for record in read_samples(folder, result)
    }


def _question(record: SampleRecord) -> str:
    return shorten("\n".join(part.text.strip() for part in record.prompt if part.text is not None), QUESTION_SHOWN)


def _is_mean(measure: Measure, samples: Mapping[str, _Sample]) -> bool:
    """Return whether a measure is the mean of its samples' values, not a score of the whole (F1, CIDEr, a sum)."""
    values = [sample.values[measure.name] for sample in samples.values() if measure.name in sample.values]
    return bool(values) and math.isclose(math.fsum(values) / len(values), measure.value, abs_tol=1e-9)


def _compare_measure(one: Measure, other: Measure, pairs: Sequence[tuple[_Sample, _Sample]]) -> MeasureComparison:
    """Compare one measure; without pairs, use the runs' own results."""
    name, unit, higher_is_better = one.name, one.unit, one.higher_is_better
    if not pairs:
        return MeasureComparison(
            name=name,
            unit=unit,
            higher_is_better=higher_is_better,
            first=one.value,
            second=other.value,
            difference=other.value - one.value,
        )
    before, after = [pair[0].values[name] for pair in pairs], [pair[1].values[name] for pair in pairs]
    found = compare(before, after, _clusters([pair[0] for pair in pairs]))
    error = found.difference.standard_error
    gained, lost = (found.lost, found.gained) if higher_is_better is False else (found.gained, found.lost)
    return MeasureComparison(
        name=name,
        unit=unit,
        higher_is_better=higher_is_better,
        first=math.fsum(before) / len(before),
        second=math.fsum(after) / len(after),
        difference=found.difference.mean,
        standard_error=None if math.isnan(error) else error,
        p_value=None if math.isnan(error) else found.p_value,
        gained=gained,
        lost=lost,
    )


def _clusters(samples: Sequence[_Sample]) -> list[tuple[str, int | str]] | None:
    """Return the clusters of samples as metrics use them: a sample without a cluster is its own."""
    if all(sample.cluster is None for sample in samples):
        return None
    return [
        ("sample", i) if sample.cluster is None else ("cluster", sample.cluster) for i, sample in enumerate(samples)
    ]


def _flips(measures: Sequence[MeasureComparison], pairs: Mapping[str, tuple[_Sample, _Sample]]) -> Iterator[Flip]:
    """Yield the samples whose value of the first measure with a test differs."""
    name = next((measure.name for measure in measures if measure.gained is not None), None)
    for sample, (one, other) in pairs.items():
        before, after = (one.values.get(name), other.values.get(name)) if name is not None else (None, None)
        if before is not None and after is not None and before != after:
            yield Flip(
                id=sample,
                first=before,
                second=after,
                first_answer=one.answer,
                second_answer=other.answer,
                reference=one.reference,
                question=one.question,
            )


def _adjusted(tasks: Sequence[TaskComparison]) -> list[TaskComparison]:
    p_values = {
        task.task: task.headline.p_value
        for task in tasks
        if task.headline is not None and task.headline.p_value is not None
    }
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [task.model_copy(update={"adjusted_p_value": adjusted.get(task.task)}) for task in tasks]
