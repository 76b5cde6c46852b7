"""Tests that every plugin with a benchmark should have. They need neither a model nor a network."""

import pytest

from vila_core.testing import check_plugin
from vila_eval import Question
from vila_eval.testing import check_task
from vila_eval_example.plugin import SCENES
from vila_eval_example.word_error_rate import word_error_rate


def test_plugin() -> None:
    assert check_plugin("vila_eval_example.plugin") == {
        "vila_tasks": ("example/scenes",),
        "vila_metrics": ("word_error_rate",),
    }


def test_benchmark() -> None:
    right = check_task(SCENES)
    assert (right[0].name, right[0].estimate.mean, right[0].estimate.n) == ("word_error_rate", 0.0, 8)
    assert check_task(SCENES, answer=lambda question: "")[0].estimate.mean == 1.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A red star.", 0.0),
        ("A red heart.", 1 / 3),  # one word changed
        ("A star.", 1 / 3),  # one removed
        ("A big red star.", 1 / 3),  # one added
        ("", 1.0),
        ("I see a picture of one red star.", 2.0),  # one changed, five added
    ],
)
def test_word_error_rate(answer: str, expected: float) -> None:
    assert word_error_rate(answer, Question("1", [], answer="A red star.")) == expected
