"""`check_task` finds mistakes that would make a run fail, and names each kind."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vila_core import Image
from vila_core.errors import ConfigError, MediaError
from vila_eval import DataOptions, LocalFiles, MeanMetric, Question, Row, Score, Submission, Task
from vila_eval.errors import DataError
from vila_eval.fixtures.writing import picture
from vila_eval.testing import check_task

COLUMNS = {"id": "unique", "picture": "file name", "answer": "one word"}


def right(answer: str, question: Question) -> float:
    return float(answer == question.answer)


def ask(row: Row) -> Question:
    return Question(row["id"], [Image(row["picture"]), "What color?"], row["answer"], groups={"color": row["answer"]})


@pytest.fixture
def task(tmp_path: Path) -> Task:
    rows = [
        {"id": str(number), "picture": f"{color}.png", "answer": color}
        for number, color in enumerate(("red", "blue", "red"))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for color in ("red", "blue"):
        (tmp_path / f"{color}.png").write_bytes(picture(0, color=color))
    return Task("colors", LocalFiles(tmp_path / "rows.jsonl", COLUMNS), ask, MeanMetric("right", right))


def asking(**changes: Any) -> Callable[[Row], Question]:
    return lambda row: replace(ask(row), **changes)


def test_a_valid_task_returns_its_measures(task: Task) -> None:
    measures = check_task(task, answer=lambda question: "red")
    assert [(measure.group, measure.estimate.mean, measure.estimate.n) for measure in measures] == [
        (None, pytest.approx(2 / 3), 3),
        (("color", "red"), 1.0, 2),
        (("color", "blue"), 0.0, 1),
    ]
    assert check_task(task, limit=2)[0].estimate.n == 2


def test_the_submission_gets_every_answer(task: Task) -> None:
    written: list[list[str]] = []

    def write(answered: Any) -> str:
        written.append([one.answer for one in answered])
        return ""

    check_task(replace(task, metric=None, submission=Submission("answers.json", write, "https://example.org")))
    assert written == [["red", "blue", "red"]]


counter = itertools.count()
WAYS_TO_FAIL: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one id for all": ({"ask": asking(id="same")}, ConfigError, "two questions one id"),
    "another id every time": (
        {"ask": lambda row: replace(ask(row), id=str(next(counter)))},
        ConfigError,
        "asks a row in two ways",
    ),
    "asks nothing": ({"ask": lambda row: []}, ConfigError, "asks nothing"),
    "a set as the reference": ({"ask": asking(answer={"red"})}, ConfigError, "must be JSON"),
    "not a number": ({"ask": asking(fields={"weight": float("nan")})}, ConfigError, "must be JSON"),
    "a number as a group": ({"ask": asking(groups={"things": 3})}, ConfigError, r"groups\.things.*got 3"),
    "a picture that is not there": (
        {"ask": lambda row: replace(ask(row), prompt=[Image("none.png")])},
        MediaError,
        "none.png",
    ),
    "scores of two kinds": (
        {"metric": MeanMetric("right", lambda answer, question: Score({answer or "none": 1.0}))},
        ConfigError,
        "scores of different names",
    ),
    "an unknown metric": ({"metric": "exact_macth"}, ConfigError, "Did you mean 'exact_match'"),
    "other columns": ({"columns": {**COLUMNS, "box": "where"}}, DataError, "no column 'box'"),
}


@pytest.mark.parametrize("way", WAYS_TO_FAIL)
def test_each_mistake_is_named(way: str, task: Task) -> None:
    changes, error, message = WAYS_TO_FAIL[way]
    if "columns" in changes:
        assert isinstance(task.source, LocalFiles)
        changes = {"source": replace(task.source, columns=changes["columns"])}
    with pytest.raises(error, match=message):
        check_task(replace(task, **changes))


def test_metrics_get_stored_answers(task: Task) -> None:
    """Tuples become lists and images are absent, as when stored answers are scored without the data."""
    seen: list[Question] = []

    def score(answer: str, question: Question) -> float:
        seen.append(question)
        return 0.0

    check_task(replace(task, ask=asking(answer=("red", "crimson")), metric=MeanMetric("seen", score)), limit=1)
    assert seen[0].answer == ["red", "crimson"]
    assert seen[0].prompt == ["What color?"]


def test_rows_of_a_file_can_name_media_by_absolute_path(task: Task, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}.png"
    elsewhere.write_bytes(picture(0, color="red"))
    rows = task.source.open(DataOptions(cache=tmp_path))
    assert rows.locate(str(elsewhere)) == elsewhere
    assert rows.locate("/red.png") == tmp_path / "red.png"
