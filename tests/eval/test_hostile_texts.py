"""Lone surrogates, control characters and other unlucky values in rows and answers: stored, or refused by row."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.eval.test_runner import Echo, Table, run, task

from vila_core.engine.completion import Completion, Timings, Usage
from vila_eval.metric import MeanMetric
from vila_eval.options import TaskOutcome
from vila_eval.records.schema import SampleRecord
from vila_eval.records.storage import read_records
from vila_eval.report.html import write_report
from vila_eval.running.answering import LazyModel
from vila_eval.task import Question, Row, Task
from vila_eval.texts import escape_surrogates, one_line, printable

LONE = "half \ud83d of an emoji"
"""What `json.loads` makes of an emoji that was cut in two."""

HOSTILE = {"lone": LONE, "low": "\udc00", "null": "a\0b", "escape": "\x1b[31mred", "bidi": "\u202eevil", "next": "\x85"}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Echo:
    echo = Echo()
    monkeypatch.setattr(LazyModel, "get", lambda self: echo)
    return echo


def hostile(text: str) -> Task:
    """A task with one hostile row among three: everything that a row can set is `text`."""

    def ask(row: Row) -> Question:
        if row["id"] != "1":
            return Question(row["id"], ["say fine"], "fine")
        return Question(
            text, [f"say {text}"], [text], (text, "other"), {"kind": text}, text, {text: {"nested": [text, 1]}}
        )

    return replace(task([{"id": str(number)} for number in range(3)]), ask=ask)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_row_is_stored_and_the_others_are_answered(kind: str, tmp_path: Path, model: Echo) -> None:
    text = HOSTILE[kind]
    outcomes = run(tmp_path, hostile(text))
    assert [outcome.error for outcome in outcomes] == [None]
    folder = tmp_path / "vila-tiny/words"
    samples = list(read_records(SampleRecord, folder / "samples.jsonl"))
    assert [sample.id for sample in samples] == ["0", escape_surrogates(text), "2"]
    assert samples[1].prompt[0].text == escape_surrogates(f"say {text}")
    assert samples[1].reference == [escape_surrogates(text)]
    page = write_report(tmp_path / "vila-tiny").read_text(encoding="utf-8")
    assert not {"\0", "\x1b", "\u202e", "\x85"} & set(page)
    assert run(tmp_path, hostile(text))[0].was_complete


def test_surrogates_in_an_answer_are_escaped(tmp_path: Path, model: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(prompt: str) -> Completion:
        return Completion((LONE,), [7], "stop", Usage(5, 0, 1), Timings(0, 0, 0, 0))

    monkeypatch.setattr(model, "answer", answer)
    (outcome,) = run(tmp_path, hostile("fine"))
    assert outcome.error is None
    samples = read_records(SampleRecord, tmp_path / "vila-tiny/words/samples.jsonl")
    assert {sample.answer for sample in samples} == {"half \\ud83d of an emoji"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"answer": float("inf")}, "'words', row 1: Question 'x': all but the prompt must be JSON"),
        ({"answer": {"red"}}, "must be JSON"),
        ({"fields": {"picture": b"bytes"}}, "must be JSON"),
        ({"options": (1, 2)}, r"options.*got 1"),
        ({"prompt": ["say x", 7]}, "a part of the prompt is of type int; expected text, Image or Video"),
    ],
)
def test_a_row_that_cannot_be_stored_is_named_and_other_tasks_continue(
    change: dict[str, Any], named: str, tmp_path: Path, model: Echo
) -> None:
    def ask(row: Row) -> Question:
        question = Question("x" if row["id"] == "1" else "", ["say fine"], "fine")
        return replace(question, **change) if row["id"] == "1" else question

    bad = replace(hostile("fine"), ask=ask)
    outcomes: list[TaskOutcome] = run(tmp_path, bad, replace(hostile("fine"), name="after"))
    assert outcomes[0].error is not None
    assert re.search(named, outcomes[0].error)
    assert outcomes[1].error is None


@pytest.mark.parametrize("error", [ValueError("two\nlines"), SystemExit(3), MemoryError(), RecursionError("deep")])
@pytest.mark.parametrize("place", ["ask", "source", "score"])
def test_any_exception_ends_its_own_task_alone(error: BaseException, place: str, tmp_path: Path, model: Echo) -> None:
    def fail(*_: Any) -> Any:
        raise error

    good = hostile("fine")
    bad = replace(good, name="bad")
    if place == "ask":
        bad = replace(bad, ask=fail)
    elif place == "source":
        source = Table([{"id": "0"}])
        source.open = fail  # type: ignore[method-assign]
        bad = replace(bad, source=source)
    else:
        bad = replace(bad, metric=MeanMetric("fails", fail))
    outcomes = run(tmp_path, bad, replace(good, name="after"))
    assert outcomes[0].error is not None
    assert type(error).__name__ in outcomes[0].error
    assert "\n" not in outcomes[0].error
    assert outcomes[1].error is None


def test_ids_may_be_numbers(tmp_path: Path, model: Echo) -> None:
    asked = replace(hostile("fine"), ask=lambda row: Question(int(row["id"]), ["say fine"], "fine"))  # type: ignore[arg-type]
    run(tmp_path, asked)
    samples = read_records(SampleRecord, tmp_path / "vila-tiny/words/samples.jsonl")
    assert [sample.id for sample in samples] == ["0", "1", "2"]


def test_texts_for_terminals() -> None:
    assert printable("a\tb\r\nc\x1b[31m\0\u202e") == "a\tb\nc\\x1b[31m\\x00\\u202e"
    assert one_line("two\n lines " + "x" * 100, 20) == "two lines xxxxxxxxx…"
    assert json.loads(json.dumps(escape_surrogates(LONE))) == "half \\ud83d of an emoji"
