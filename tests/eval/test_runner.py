"""Running tasks with a fake model: files written, answers reused, errors. `test_runner_kill.py` uses a real model."""

import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vila_core.cli.progress import NoProgress
from vila_core.engine.completion import Completion, Timings, Usage
from vila_core.errors import GenerationError, PromptError, VilaError
from vila_core.media import Image, Video
from vila_core.prompt import PreparedPrompt
from vila_eval.data.sources import DataOptions
from vila_eval.metric import Answered, MeanMetric, Measure, Score, Scored, Submission
from vila_eval.metrics.exact_match import EXACT_MATCH
from vila_eval.options import JudgeOptions, ModelOptions, Planned, RunOptions, TaskOutcome
from vila_eval.records.schema import SampleRecord
from vila_eval.records.storage import read_records
from vila_eval.running.answering import LazyModel
from vila_eval.running.answers import locked
from vila_eval.running.job import SEARCH_AHEAD, select_rows, with_frames
from vila_eval.running.runner import evaluate
from vila_eval.statistics import Estimate
from vila_eval.task import Question, Row, Task


@dataclass
class Table:
    """Rows in memory."""

    rows: Sequence[Mapping[str, Any]]
    origin: Mapping[str, str] = field(default_factory=lambda: {"dataset": "table"})
    description: str = "a table"

    def open(self, options: DataOptions) -> "Table":
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def locate(self, path: str) -> Path:
        return Path(path)


class Echo:
    """A model that answers with the last word of the prompt, and remembers what it was asked."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def prepare(self, prompt: Sequence[str | Image | Video]) -> PreparedPrompt:
        for part in prompt:
            if isinstance(part, Image):
                part.load()
        return PreparedPrompt(" ".join(part for part in prompt if isinstance(part, str)), [])

    def count_tokens(self, prepared: PreparedPrompt) -> dict[str, int]:
        if "too long" in prepared.text:
            raise PromptError("It is too long.")
        return {"text": 5}

    def complete_each(
        self, prompts: Iterable[PreparedPrompt | None], *, at_once: int, **settings: object
    ) -> Iterator[Completion | VilaError]:
        for prompt in prompts:
            if prompt is not None:
                self.prompts.append(prompt.text)
                yield self.answer(prompt.text)

    def answer(self, prompt: str) -> Completion | VilaError:
        if "alone" in prompt:
            return GenerationError("It breaks alone, too.")
        return Completion((prompt.split()[-1],), [7], "stop", Usage(5, 0, 1), Timings(0, 0, 0, 0))

    @property
    def asked(self) -> int:
        return len(self.prompts)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Echo:
    echo = Echo()
    monkeypatch.setattr(LazyModel, "get", lambda self: echo)
    return echo


def ask(row: Row) -> Question:
    prompt = [Image(row["image"]) if "image" in row else None, row["text"]]
    return Question(str(row.get("id", "")), prompt, row["answer"])


def words(count: int) -> list[dict[str, Any]]:
    return [{"text": f"say word{i}", "answer": f"word{i}"} for i in range(count)]


def task(rows: Sequence[Mapping[str, Any]], **changes: Any) -> Task:
    return replace(Task("words", Table(rows), ask, EXACT_MATCH), **changes)


def run(folder: Path, *tasks: Task, model: ModelOptions | None = None, **options: Any) -> list[TaskOutcome]:
    run_options = RunOptions(folder, DataOptions(folder / "cache"), **({"batch_size": 2} | options))
    return evaluate(model or ModelOptions(), [Planned(one, one.name) for one in tasks], run_options, NoProgress())


def samples(folder: Path, name: str = "words") -> list[SampleRecord]:
    return list(read_records(SampleRecord, folder / "vila-tiny" / name / "samples.jsonl"))


def test_a_run_writes_samples_in_order_results_and_merged_metrics(tmp_path: Path, model: Echo) -> None:
    rows = words(5)
    rows[3]["answer"] = "another"
    (outcome,) = run(tmp_path, task(rows))
    assert (outcome.error, outcome.waiting) == (None, None)
    assert outcome.result is not None
    assert outcome.result.headline is not None
    assert (outcome.result.headline.value, outcome.result.headline.n, outcome.result.counts.samples) == (0.8, 5, 5)
    assert [(one.id, one.index, one.answer) for one in samples(tmp_path)] == [(str(i), i, f"word{i}") for i in range(5)]
    assert [one.values for one in samples(tmp_path)][2:4] == [{"exact_match": 1.0}, {"exact_match": 0.0}]
    assert model.prompts == ["say word0", "say word1", "say word2", "say word3", "say word4"]
    folder = tmp_path / "vila-tiny" / "words"
    assert {path.name for path in folder.iterdir()} == {"samples.jsonl", "results.json", "timings.json", "run.json"}
    timings = json.loads((folder / "timings.json").read_text())
    assert (timings["answered"], timings["dtype"]) == (5, "float32")  # a small model on a CPU, where "auto" was asked
    assert json.loads((tmp_path / "vila-tiny" / "metrics.json").read_text()) == {"words": {"exact_match": 0.8}}


def test_a_complete_task_is_not_run_again_and_needs_no_model(
    tmp_path: Path, model: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = run(tmp_path, task(words(3)))
    monkeypatch.setattr(LazyModel, "get", lambda self: pytest.fail("the model was loaded"))
    (second,) = run(tmp_path, task(words(3)))
    assert second.result == first.result


def test_several_questions_of_a_row_follow_one_another(tmp_path: Path, model: Echo) -> None:
    def both(row: Row) -> list[Question]:
        return [Question("", [f"{row['text']} {part}"], part) for part in ("left", "middle", "right")]

    run(tmp_path, task(words(3), ask=both))
    assert [(one.id, one.index, one.answer) for one in samples(tmp_path)][2:5] == [
        ("0-2", 2, "right"),
        ("1-0", 3, "left"),
        ("1-1", 4, "middle"),
    ]
    assert model.prompts == [f"say word{i} {part}" for i in range(3) for part in ("left", "middle", "right")]


def interrupted(folder: Path, rows: Sequence[Mapping[str, Any]], torn: str = "") -> Path:
    """Leave the first three answers of a predicted task, as a crash in the second batch would; return their file."""
    run(folder, task(rows), phase="predict")
    file = folder / "vila-tiny" / "words" / "answers-0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + torn)
    file.with_name("samples.jsonl").unlink()
    return file


@pytest.mark.parametrize("torn", ["", '{"number": 0, "quest'], ids=["between writes", "in a write"])
def test_a_batch_that_was_cut_is_computed_whole_and_only_the_rest_is_kept(
    tmp_path: Path, model: Echo, torn: str
) -> None:
    file = interrupted(tmp_path, words(7), torn)
    model.prompts.clear()
    run(tmp_path, task(words(7)), phase="predict")
    assert model.prompts == ["say word2", "say word3", "say word4", "say word5", "say word6"]
    assert [json.loads(line)["sample"]["row"] for line in file.read_text().splitlines()] == list(range(7))
    assert [one.answer for one in samples(tmp_path)] == [f"word{i}" for i in range(7)]


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path, model: Echo) -> None:
    run(tmp_path / "whole", task(words(7)))
    interrupted(tmp_path / "cut", words(7), "{")
    left = tmp_path / "cut/vila-tiny/words/.samples.jsonl.a1b2.part"
    left.write_text("half of it")
    os.utime(left, (1, 1))
    run(tmp_path / "cut", task(words(7)))
    assert {path.name for path in (tmp_path / "cut/vila-tiny/words").iterdir()} == {
        *("samples.jsonl", "results.json", "timings.json", "run.json")
    }
    for name in ("words/results.json", "words/samples.jsonl", "words/run.json", "metrics.json"):
        assert (tmp_path / "whole" / "vila-tiny" / name).read_bytes() == (
            tmp_path / "cut" / "vila-tiny" / name
        ).read_bytes(), name
    assert json.loads((tmp_path / "cut/vila-tiny/words/timings.json").read_text())["answered"] == 4


def test_an_exception_leaves_what_was_answered(tmp_path: Path, model: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = model.answer
    monkeypatch.setattr(model, "answer", lambda prompt: answer(prompt) if prompt != "say word4" else 1 / 0)
    (outcome,) = run(tmp_path, task(words(6)))
    assert outcome.error is not None
    assert outcome.error.startswith("ZeroDivisionError: division by zero (test_runner.py, line")
    assert len((tmp_path / "vila-tiny/words/answers-0.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 2}, "task_version was 1 and is 2"),
        ({"max_new_tokens": 99}, "settings.max_new_tokens was 32 and is 99"),
        ({"source": Table(words(4), {"dataset": "revised"})}, 'data.dataset was "table" and is "revised"'),
        ({"source": Table(words(5))}, "rows was 4 and is 5"),
    ],
)
@pytest.mark.parametrize("phase", ["all", "predict"])
def test_results_of_something_else_are_refused_unless_forced(
    tmp_path: Path, model: Echo, change: dict[str, Any], named: str, phase: str
) -> None:
    run(tmp_path, task(words(4)), phase=phase)
    folder = tmp_path / "vila-tiny" / "words"
    (folder / "my notes.txt").write_text("kept")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (refused,) = run(tmp_path, task(words(4), **change))
    assert refused.result is None
    assert named in str(refused.error)
    assert "--force" in str(refused.error)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    asked = model.asked
    (forced,) = run(tmp_path, task(words(4), **change), force=True)
    assert forced.result is not None
    assert model.asked - asked == len(change.get("source", range(4)))
    assert (folder / "my notes.txt").read_text() == "kept"


def test_another_model_is_refused_and_the_same_one_elsewhere_is_not(tmp_path: Path, model: Echo) -> None:
    def checkpoint(place: str, weights: str) -> ModelOptions:
        folder = tmp_path / place / "mine"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(weights)
        return ModelOptions(str(folder))

    (first,) = run(tmp_path, task(words(2)), model=checkpoint("a", "weights"))
    (copy,) = run(tmp_path, task(words(2)), model=checkpoint("b", "weights"))
    assert first.result == copy.result
    assert model.asked == 2
    (other,) = run(tmp_path, task(words(2)), model=checkpoint("c", "others"))
    assert "model (digest of its files)" in str(other.error)


def files(folder: Path) -> dict[str, bytes]:
    """The files of the task "words" that do not depend on how they came about."""
    return {
        name: (folder / "vila-tiny/words" / name).read_bytes() for name in ("results.json", "samples.jsonl", "run.json")
    }


@pytest.mark.parametrize("phase", ["all", "predict"])
def test_a_limit_may_be_raised_and_what_is_answered_is_not_asked_again(tmp_path: Path, model: Echo, phase: str) -> None:
    (short,) = run(tmp_path / "a", task(words(7)), limit=3, phase=phase)
    assert (short.result is not None) == (phase == "all")
    model.prompts.clear()
    (longer,) = run(tmp_path / "a", task(words(7)))
    assert longer.result is not None
    assert (longer.result.settings.limit, longer.result.counts.samples) == (None, 7)
    assert model.prompts == ["say word2", "say word3", "say word4", "say word5", "say word6"], (
        "a batch is computed whole"
    )
    run(tmp_path / "b", task(words(7)))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert not list(tmp_path.rglob("answers-*"))


def test_a_lower_limit_scores_the_first_rows_and_keeps_the_answers_to_the_others(tmp_path: Path, model: Echo) -> None:
    rows = words(7)
    rows[5]["answer"] = "another"
    run(tmp_path / "a", task(rows))
    asked = model.asked
    (short,) = run(tmp_path / "a", task(rows), limit=3)
    assert short.result is not None
    assert (short.result.settings.limit, short.result.counts.samples, short.result.measures[0].value) == (3, 3, 1.0)
    run(tmp_path / "a", task(rows), limit=3)  # it is complete, and the other answers are still there
    run(tmp_path / "a", task(rows), limit=3, phase="score")
    run(tmp_path / "a", task(rows), limit=2, phase="predict")
    run(tmp_path / "a", task(rows), limit=3)
    assert model.asked == asked
    run(tmp_path / "b", task(rows), limit=3)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    model.prompts.clear()
    (whole,) = run(tmp_path / "a", task(rows))
    assert model.prompts == []
    run(tmp_path / "b", task(rows))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert whole.result is not None
    assert whole.result.counts.samples == 7


def test_limits_of_rows_that_belong_together_and_of_several_questions_a_row(tmp_path: Path, model: Echo) -> None:
    def both(row: Row) -> list[Question]:
        return [Question("", [f"{row['text']} {part}"], part) for part in ("left", "right")]

    rows = [{**row, "pair": pair} for row, pair in zip(words(6), "abcbad", strict=True)]
    paired = task(rows, keep_together="pair", ask=both)
    asked: list[int] = []
    for limit in (1, 2, 6, 2, None):
        run(tmp_path / "a", paired, limit=limit)
        asked.append(len(set(model.prompts)))
        run(tmp_path / f"{limit}", paired, limit=limit, force=True)
        assert files(tmp_path / "a") == files(tmp_path / f"{limit}"), limit
        model.prompts.clear()
    assert asked == [4, 8, 8, 0, 0]  # of whole batches: rows 0 and 4; 0, 1, 3 and 4; 2, 3, 4 and 5


def _killed(path: Path, record: object) -> None:
    raise KeyboardInterrupt


def test_a_crash_while_a_limit_is_raised_loses_nothing(
    tmp_path: Path, model: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, task(words(5)), limit=2)
    monkeypatch.setattr("vila_eval.running.manifest.write_record", _killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, task(words(5)))
    monkeypatch.undo()
    monkeypatch.setattr(LazyModel, "get", lambda self: model)
    asked = model.asked
    (again,) = run(tmp_path, task(words(5)), limit=2)
    assert again.result is not None
    assert again.result.counts.samples == 2
    assert model.asked == asked


def test_answers_to_other_prompts_are_not_used_again(tmp_path: Path, model: Echo) -> None:
    """If the data changes under the same name, only the changed sample's batch is recomputed."""
    run(tmp_path, task(words(4)), phase="predict")
    changed = words(4)
    changed[2] = {"text": "say again", "answer": "again"}
    model.prompts.clear()
    run(tmp_path, task(changed))
    assert model.prompts == ["say again", "say word3"]
    assert [one.answer for one in samples(tmp_path)] == ["word0", "word1", "again", "word3"]


def test_a_sample_that_cannot_be_read_fails_with_its_reason_and_counts_as_wrong(tmp_path: Path, model: Echo) -> None:
    picture = tmp_path / "a.png"
    PIL.Image.new("RGB", (8, 8)).save(picture)
    rows = [{"text": f"say word{i}", "answer": f"word{i}", "image": str(picture)} for i in range(4)]
    rows[1]["image"] = str(tmp_path / "missing.png")
    (outcome,) = run(tmp_path, task(rows))
    assert outcome.result is not None
    assert outcome.result.headline is not None
    assert (outcome.result.headline.value, outcome.result.counts.failed) == (0.75, 1)
    failed = samples(tmp_path)[1]
    assert "missing.png' does not exist" in str(failed.error)
    assert (failed.answer, failed.values, failed.prompt[0].digest) == ("", {"exact_match": 0.0}, None)
    assert model.prompts == ["say word0", "say word2", "say word3"]


def test_a_prompt_that_fails_leaves_its_batch_whole(tmp_path: Path, model: Echo) -> None:
    rows = [*words(2), {"text": "say word2", "answer": "word2"}, {"text": "not even alone", "answer": "alone"}]
    run(tmp_path, task(rows), batch_size=4)
    assert [one.answer for one in samples(tmp_path)] == ["word0", "word1", "word2", ""]
    assert [one.error is None for one in samples(tmp_path)] == [True, True, True, False]
    assert "It breaks alone, too." in str(samples(tmp_path)[3].error)


def test_a_prompt_that_is_too_long_fails_and_leaves_its_batch_whole(tmp_path: Path, model: Echo) -> None:
    run(tmp_path, task([*words(2), {"text": "too long", "answer": "long"}, *words(1)]), batch_size=4)
    assert model.prompts == ["say word0", "say word1", "say word0"]
    assert [one.error for one in samples(tmp_path)] == [None, None, "It is too long.", None]


def fail(*_: object) -> Any:
    raise KeyError("no such thing")  # this line is named


def failing_line() -> int:
    return fail.__code__.co_firstlineno + 1


@dataclass(frozen=True)
class Summarizing:
    name: str = "odd"

    def score(self, answer: str, question: Question) -> Score:
        return Score({"odd": 1.0})

    def summarize(self, samples: Sequence[Any]) -> list[Any]:
        return fail()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"metric": MeanMetric("odd", fail)}, "Metric 'odd' cannot score sample '0'"),
        ({"metric": Summarizing()}, "Metric 'odd' cannot summarize 3 samples"),
        (
            {"submission": Submission("submit.json", fail, "https://example.org")},
            "The submission file of task 'broken' cannot be made",
        ),
    ],
)
def test_a_metrics_own_fault_names_its_line_and_the_other_tasks_go_on(
    tmp_path: Path, model: Echo, changes: dict[str, Any], what: str
) -> None:
    broken, good = run(tmp_path, task(words(3), name="broken", **changes), task(words(3)))
    assert str(broken.error) == f"{what}: KeyError: 'no such thing' (test_runner.py, line {failing_line()})."
    assert good.result is not None
    asked = model.asked
    (mended,) = run(tmp_path, task(words(3), name="broken"))
    assert mended.result is not None
    assert model.asked == asked, "the answers are kept"


def test_a_score_that_is_no_number_is_refused(tmp_path: Path, model: Echo) -> None:
    (outcome,) = run(tmp_path, task(words(2), metric=MeanMetric("odd", lambda answer, question: float("nan"))))
    assert "Metric 'odd' gives sample '0' a score that is not finite: {'odd': nan}" in str(outcome.error)


@pytest.mark.parametrize(
    "estimate",
    [
        Estimate(math.nan, math.nan, 2),
        Estimate(0.5, math.inf, 2),
        Estimate(0.5, 0.1, 2, (-math.inf, 1.0)),
        Estimate(0.5, 0.1, 2, (0.4, math.nan)),
    ],
    ids=["mean", "error", "low", "high"],
)
def test_a_measure_that_is_no_number_is_refused(tmp_path: Path, model: Echo, estimate: Estimate) -> None:
    class Odd(MeanMetric):
        def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
            return [Measure("odd", estimate)]

    (outcome,) = run(tmp_path, task(words(2), metric=Odd("odd", lambda answer, question: 1.0)))
    assert "Metric 'odd' gives a measure that is not finite: odd." in str(outcome.error)


def test_ctrl_c_does_not_wait_for_what_is_read_ahead(
    tmp_path: Path, model: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()
    prepare = model.prepare

    def slowly(prompt: Sequence[str | Image | Video]) -> PreparedPrompt:
        if "say word2" in prompt:
            reading.set()
            assert go_on.wait(120)
        assert "say word3" not in prompt, "the rest of the batch is not read any more"
        return prepare(prompt)

    def interrupted(prompt: str) -> Completion:
        assert reading.wait(120)
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "prepare", slowly)
    monkeypatch.setattr(model, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, task(words(4)))
    assert not go_on.is_set()
    go_on.set()


def test_two_questions_of_one_id_are_refused_by_name(tmp_path: Path, model: Echo) -> None:
    rows = words(6)
    rows[0]["id"] = rows[4]["id"] = "twin"
    (outcome,) = run(tmp_path, task(rows))
    assert "gives the id 'twin' to two questions (rows 0 and 4)" in str(outcome.error)
    assert model.asked == 4


def test_predicted_answers_are_scored_without_model_and_data(
    tmp_path: Path, model: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    (predicted,) = run(tmp_path, task(words(4)), phase="predict")
    assert (predicted.result, predicted.waiting) == (None, "scoring")
    assert [one.values for one in samples(tmp_path)] == [None] * 4
    monkeypatch.setattr(LazyModel, "get", lambda self: pytest.fail("the model was loaded"))
    monkeypatch.setattr(Table, "open", lambda self, options: pytest.fail("the data was opened"))
    (scored,) = run(tmp_path, task(words(4)), phase="score")
    assert scored.result is not None
    assert scored.result.headline is not None
    assert scored.result.headline.value == 1.0
    lenient = MeanMetric("always", lambda answer, question: 1.0)
    (again,) = run(tmp_path, task(words(4), metric=lenient), phase="score")
    assert again.result is not None
    assert [one.values for one in samples(tmp_path)] == [{"always": 1.0}] * 4
    (other,) = run(tmp_path, task(words(4), version=2), phase="score")
    assert "version 1" in str(other.error)


def test_scoring_says_how_many_answers_are_missing(tmp_path: Path, model: Echo) -> None:
    interrupted(tmp_path, words(7))
    (outcome,) = run(tmp_path, task(words(7)), phase="score")
    assert "has the answers to 3 of 7 rows" in str(outcome.error)
    (nothing,) = run(tmp_path, task(words(7), name="others"), phase="score")
    assert "There are no answers in" in str(nothing.error)
    assert not (tmp_path / "vila-tiny" / "others").exists()


def test_scored_from_stored_answers_is_the_same_as_at_once(tmp_path: Path, model: Echo) -> None:
    run(tmp_path / "once", task(words(4)))
    run(tmp_path / "twice", task(words(4)), phase="predict")
    run(tmp_path / "twice", task(words(4)), phase="score")
    for name in ("results.json", "samples.jsonl"):
        assert (tmp_path / "once/vila-tiny/words" / name).read_bytes() == (
            tmp_path / "twice/vila-tiny/words" / name
        ).read_bytes()


@dataclass(frozen=True)
class Judged:
    name: str = "judged"
    judge_model: str = "judge-1"

    def together(self, samples: Sequence[Answered]) -> list[Question]:
        return [sample.question for sample in samples]

    def requests(self, answer: str, question: Question) -> list[Any]:
        return []

    def read(self, replies: Sequence[str], answer: str, question: Question) -> Any:
        raise NotImplementedError

    def summarize(self, samples: Sequence[Any]) -> list[Any]:
        return MeanMetric("judged", lambda answer, question: 0.0).summarize(samples)


def judge(decide: Callable[[SampleRecord], dict[str, Any]]) -> Callable[..., list[SampleRecord]]:
    return lambda metric, samples, folder, options, progress: [one.model_copy(update=decide(one)) for one in samples]


def test_a_judged_task_waits_for_a_judge_and_then_counts_its_failures(
    tmp_path: Path, model: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = task(words(4), metric=Judged())
    (waiting,) = run(tmp_path, judged)
    assert waiting.result is None
    assert "--judge-url" in str(waiting.waiting)
    assert [one.answer for one in samples(tmp_path)] == [f"word{i}" for i in range(4)]

    options = JudgeOptions("http://judge")
    unsure = judge(lambda one: {"judge_error": "no verdict"} if one.index == 3 else {"values": {"judged": 0.5}})
    monkeypatch.setattr("vila_eval.judging.judge.judge_samples", unsure)
    (partly,) = run(tmp_path, judged, judge=options)
    assert partly.result is not None
    assert partly.result.headline is not None
    assert (partly.result.headline.value, partly.result.headline.n, partly.result.counts.judge_failed) == (0.5, 3, 1)
    assert partly.result.judge == "judge-1"
    assert model.asked == 4

    (other,) = run(tmp_path, judged, judge=replace(options, model="judge-2"))
    assert "was judged by 'judge-1', not by 'judge-2'" in str(other.error)
    monkeypatch.setattr("vila_eval.judging.judge.judge_samples", judge(lambda one: {"values": {"judged": 1.0}}))
    (mended,) = run(tmp_path, judged, judge=options)
    assert mended.result is not None
    assert mended.result.counts.judge_failed == 0
    monkeypatch.setattr(
        "vila_eval.judging.judge.judge_samples", judge(lambda one: {"judge_error": "the judge is asleep"})
    )
    (asleep,) = run(tmp_path, judged, judge=options, phase="score")
    assert "the judge is asleep" in str(asleep.error)


def test_hidden_answers_leave_a_submission_and_no_measure(tmp_path: Path, model: Echo) -> None:
    def write(answers: Sequence[Answered]) -> str:
        return json.dumps({one.question.id: one.answer for one in answers})

    hidden = task(words(2), metric=None, submission=Submission("submit.json", write, "https://example.org"))
    (outcome,) = run(tmp_path, hidden)
    assert outcome.result is not None
    assert (outcome.result.measures, outcome.result.submission) == ((), "submit.json")
    assert json.loads((outcome.folder / "submit.json").read_text()) == {"0": "word0", "1": "word1"}


def test_a_task_that_fails_does_not_stop_the_others(tmp_path: Path, model: Echo) -> None:
    outcomes = run(
        tmp_path, task([], name="empty"), task(words(2)), task(words(2), name="odd", metric="no such metric")
    )
    assert "has no row" in str(outcomes[0].error)
    assert outcomes[1].result is not None
    assert "no such metric" in str(outcomes[2].error)


def test_a_second_run_on_a_folder_is_refused(tmp_path: Path, model: Echo) -> None:
    with locked(tmp_path / "vila-tiny" / "words"):
        (outcome,) = run(tmp_path, task(words(2)))
    assert "Another run is writing to" in str(outcome.error)
    assert model.asked == 0
    (after,) = run(tmp_path, task(words(2)))
    assert after.result is not None


def test_a_limit_keeps_together_what_belongs_together(tmp_path: Path, model: Echo) -> None:
    rows = [{**row, "pair": pair} for row, pair in zip(words(6), "abcbad", strict=True)]
    assert list(select_rows(Table(rows), 2, "pair")) == [0, 1, 3, 4]
    assert list(select_rows(Table(rows), 3, "pair")) == [0, 1, 2, 3, 4]
    assert list(select_rows(Table(rows), 2, None)) == [0, 1]
    assert list(select_rows(Table(rows), 9, "pair")) == list(range(6))
    (outcome,) = run(tmp_path, task(rows, keep_together="pair"), limit=2)
    assert outcome.result is not None
    assert [one.answer for one in samples(tmp_path)] == ["word0", "word1", "word3", "word4"]
    far = [{"pair": str(i)} for i in range(SEARCH_AHEAD + 2)]
    far[SEARCH_AHEAD] = far[SEARCH_AHEAD + 1] = {"pair": "0"}
    assert list(select_rows(Table(far), 1, "pair")) == [0, SEARCH_AHEAD, SEARCH_AHEAD + 1]
    far[SEARCH_AHEAD] = {"pair": "none"}
    assert list(select_rows(Table(far), 1, "pair")) == [0]


def test_frames_are_set_for_videos_without_a_number_of_their_own() -> None:
    question = Question("1", [Video("a.mp4", fps=2.0), Video("b.mp4", frames=3), "What?"])
    first, second, _ = with_frames(question, 8).prompt
    assert isinstance(first, Video)
    assert isinstance(second, Video)
    assert (first.frames, first.fps, second.frames) == (8, 2.0, 3)
