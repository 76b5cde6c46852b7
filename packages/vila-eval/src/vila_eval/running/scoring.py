"""Scoring: from answers to a task's result and the files beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.errors import ConfigError, PluginError
from vila_eval.errors import JudgeError, ResultsError
from vila_eval.metric import AnyMetric, Measure, Metric
from vila_eval.records.schema import FORMAT, Counts, SampleRecord, TaskResult
from vila_eval.records.storage import RESULTS, SAMPLES, read_records, write_record, write_records, write_whole, writing
from vila_eval.running.answers import StoredAnswers, locked, remove_answers
from vila_eval.running.manifest import Manifest, read_manifest
from vila_eval.statistics import Estimate
from vila_eval.task import Question, Task, plugin_errors, resolve_metric

if TYPE_CHECKING:
    from vila_core.cli.progress import Progress
    from vila_eval.options import RunOptions

JUDGE_NEEDED = "a judge (--judge-url URL)"
SCORING = "scoring"


@dataclass(frozen=True)
class Finished:
    """A task with all of its answers: its result, or what it is waiting for.

    `was_complete`: an earlier run had completed it, and this one changed nothing.
    """

    result: TaskResult | None = None
    waiting: str | None = None
    was_complete: bool = False


def finish_task(
    task: Task,
    manifest: Manifest,
    samples: Sequence[SampleRecord],
    folder: Path,
    options: RunOptions,
    progress: Progress,
    ask: Callable[[int], Question] | None = None,
) -> Finished:
    """Score a task's answers and write its files. `results.json` is written last: if it exists, the rest is complete.

    Args:
        task: its metric scores the answers.
        manifest: what was run.
        samples: all samples, in the order of the data. Earlier scores are ignored.
        folder: the task's results folder.
        options: the run's options.
        progress: shows the progress of judging.
        ask: returns a sample's question with its media, for the report's images; None: the data is not available.

    Raises:
        ConfigError: two samples share an id, or the metric rejects a reference.
        PluginError: the metric or the submission's `write` fails; the message says where.
        JudgeError: no sample could be judged.
        ResultsError: a file cannot be written.
    """
    _check_ids(task, samples)
    samples = [sample.unscored() for sample in samples]
    metric = resolve_metric(task)
    judged = metric is not None and not isinstance(metric, Metric)
    waiting = SCORING if options.phase == "predict" else JUDGE_NEEDED if judged and options.judge is None else None
    if waiting is not None:
        with writing(folder / SAMPLES):
            write_records(folder / SAMPLES, samples)
        return Finished(waiting=waiting)
    samples, measures, judge = _score(metric, samples, folder, options, progress)
    result = TaskResult(
        task=task.name,
        task_version=task.version,
        distribution=manifest.distribution,
        model=manifest.model,
        settings=manifest.settings,
        data=manifest.data,
        metric=None if metric is None else metric.name,
        judge=judge,
        measures=tuple(measures),
        counts=count(samples),
        submission=None if task.submission is None else task.submission.filename,
    )
    _write_files(task, result, samples, folder, ask)
    return Finished(result)


def _score(
    metric: AnyMetric | None, samples: Sequence[SampleRecord], folder: Path, options: RunOptions, progress: Progress
) -> tuple[Sequence[SampleRecord], Sequence[Measure], str | None]:
    """Return the samples with their scores, the task's measures, and the judge's model."""
    if metric is None:
        return samples, (), None
    if isinstance(metric, Metric):
        samples = [_scored(metric, sample) for sample in samples]
        return samples, _summarized(metric, samples), None
    from vila_eval.judging.judge import judge_model, judge_samples

    assert options.judge is not None, "a judged task without a judge waits"
    samples = judge_samples(metric, samples, folder, options.judge, progress)
    judged = [sample for sample in samples if sample.values is not None]
    if not judged:
        raise JudgeError(f"Not one of {len(samples)} answers could be judged. The first: {samples[0].judge_error}")
    return samples, _summarized(metric, judged), judge_model(metric, options.judge)


def _write_files(
    task: Task,
    result: TaskResult,
    samples: Sequence[SampleRecord],
    folder: Path,
    ask: Callable[[int], Question] | None,
) -> None:
    """Write the samples, the submission file, the report's images and, last, `results.json`."""
    submitted = None
    if task.submission is not None:
        with plugin_errors(f"The submission file of task '{task.name}' cannot be made"):
            submitted = task.submission.write([sample.answered for sample in samples])
    with writing(folder / SAMPLES):
        write_records(folder / SAMPLES, samples)
        if task.submission is not None and submitted is not None:
            write_whole(folder / task.submission.filename, submitted)
        if ask is not None:
            from vila_eval.report.pictures import save_pictures

            better = result.headline.higher_is_better if result.headline is not None else None
            save_pictures(samples, ask, folder, higher_is_better=better is not False)
        write_record(folder / RESULTS, result)


def score_again(task: Task, folder: Path, options: RunOptions, progress: Progress) -> Finished:
    """Score a task's stored answers, without the model and the data. Images of an earlier report stay.

    Raises:
        ResultsError: answers are missing, or are those of another version of the task.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ResultsError(f"There are no answers in '{folder}'. Run without --score-only first.")
    stated, here = (manifest.format, manifest.task, manifest.task_version), (FORMAT, task.name, task.version)
    if stated != here:
        raise ResultsError(
            f"The answers in '{folder}' are of format {stated[0]}, task '{stated[1]}', version {stated[2]}; "
            f"here it is format {here[0]}, task '{here[1]}', version {here[2]}. "
            "Run without --score-only to answer again."
        )
    with locked(folder):
        finished = finish_task(task, manifest, _stored_samples(folder, manifest), folder, options, progress)
        if finished.result is not None:
            remove_answers(folder, _read_answers(folder, manifest))
    return finished


def _stored_samples(folder: Path, manifest: Manifest) -> list[SampleRecord]:
    if (folder / SAMPLES).exists():  # complete, since it is written in one step
        return list(read_records(SampleRecord, folder / SAMPLES))
    stored = _read_answers(folder, manifest)
    complete, wanted = stored.complete - stored.contradicted, manifest.selected
    if len(complete) < len(wanted):
        raise ResultsError(
            f"'{folder}' has the answers to {len(complete)} of {len(wanted)} rows. "
            "Run without --score-only to answer the rest."
        )
    return stored.merged(wanted)


def _read_answers(folder: Path, manifest: Manifest) -> StoredAnswers:
    stored = StoredAnswers(folder, manifest.selected)
    stored.update()
    return stored


def judge_again(
    task: Task, result: TaskResult, folder: Path, options: RunOptions, progress: Progress
) -> Finished | None:
    """Judge again those answers of a complete task that got no verdict; return None if there are none.

    Raises:
        ResultsError: the result comes from another judge.
    """
    metric = resolve_metric(task)
    if metric is None or isinstance(metric, Metric) or options.judge is None or options.phase == "predict":
        return None
    from vila_eval.judging.judge import judge_model

    if result.judge != judge_model(metric, options.judge):
        raise ResultsError(
            f"'{folder}' was judged by '{result.judge}', not by '{judge_model(metric, options.judge)}'. "
            "Run with --score-only to have the other judge score its answers."
        )
    return score_again(task, folder, options, progress) if result.counts.judge_failed else None


def count(samples: Sequence[SampleRecord]) -> Counts:
    """Count failed, truncated, unread and unjudged samples. A failed sample counts only as failed."""
    return Counts(
        samples=len(samples),
        failed=sum(sample.error is not None for sample in samples),
        truncated=sum(sample.finish_reason == "length" for sample in samples),
        unread=sum(sample.unread is not None and sample.error is None for sample in samples),
        judge_failed=sum(sample.judge_error is not None for sample in samples),
    )


def _scored(metric: Metric, sample: SampleRecord) -> SampleRecord:
    with plugin_errors(f"Metric '{metric.name}' cannot score sample '{sample.id}'"):
        score = metric.score(sample.answer, sample.question)
        values = {name: float(value) for name, value in score.values.items()}
    if not all(map(math.isfinite, values.values())):
        raise PluginError(f"Metric '{metric.name}' gives sample '{sample.id}' a score that is not finite: {values}.")
    return sample.model_copy(update={"values": values, "parsed": score.parsed, "unread": score.unread})


def _summarized(metric: AnyMetric, samples: Sequence[SampleRecord]) -> Sequence[Measure]:
    with plugin_errors(f"Metric '{metric.name}' cannot summarize {len(samples)} samples"):
        measures = metric.summarize([sample.scored for sample in samples])
    if unusable := [measure.name for measure in measures if not _is_finite(measure.estimate)]:
        raise PluginError(f"Metric '{metric.name}' gives a measure that is not finite: {', '.join(unusable)}.")
    return measures


def _is_finite(found: Estimate) -> bool:
    """Return whether all numbers are finite. An unknown standard error is NaN."""
    error = 0.0 if math.isnan(found.standard_error) else found.standard_error
    return all(map(math.isfinite, (found.mean, error, *(found.interval or ()))))


def _check_ids(task: Task, samples: Sequence[SampleRecord]) -> None:
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample.id] = counts.get(sample.id, 0) + 1
    if twice := [name for name, number in counts.items() if number > 1]:
        shown = ", ".join(f"'{name}'" for name in twice[:10]) + (
            f" and {len(twice) - 10} more" if len(twice) > 10 else ""
        )
        raise ConfigError(
            f"Task '{task.name}' gives the same id to several questions: {shown}. "
            "Ids must be unique; leave them empty to number the rows."
        )
