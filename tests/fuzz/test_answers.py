"""Hostile answers: every benchmark's metric scores them, and sums them up, within bounds."""

import random
import tempfile
from functools import partial
from pathlib import Path

import pytest
from tests.fuzz.bounded import assert_bounded

from vila_eval.data.sources import DataOptions
from vila_eval.metric import Metric
from vila_eval.metrics.choices.general import extract_letter
from vila_eval.metrics.choices.mmbench import extract_mmbench_choice
from vila_eval.task import Question, Task, as_questions, resolve_metric
from vila_eval.tasks import ALL

pytestmark = pytest.mark.slow

PIECES = (
    *(
        "A",
        "(B) ",
        "B or ",
        "not ",
        "the answer is ",
        "Answer: ",
        "<think>",
        "</think>",
        "\\boxed{",
        "[",
        "0.1, ",
        "9" * 50,
    ),
    *(
        "\ud800",
        "\0",
        "\u202e",
        "\uff22",
        "答案是",
        "정답은 ",
        "\n",
        " ",
        ".",
        ",",
        "'",
        "{",
        "nan",
        "inf",
        "-",
        "1e999",
        "%",
    ),
)
HOSTILE = (
    "",
    " \n\t",
    "\ud800\udfff",
    "\0\x1b[31m",
    "1" * 5000,
    "[" * 3000,
    "nan",
    "-inf",
    "1e400",
    *(piece * (200_000 // len(piece)) for piece in ("B ", "a", " ", "(", ".,", "the answer is ", "no ")),
)


def first_question(task: Task) -> Question:
    with tempfile.TemporaryDirectory() as cache:
        return as_questions(task, task.source.open(DataOptions(cache=Path(cache), fixtures=True)), 0)[0]


def score(metric: Metric, question: Question, answers: tuple[str, ...]) -> None:
    for answer in answers:
        scored = metric.score(answer, question)
        assert all(value == value for value in scored.values.values()), (metric.name, answer[:50])


def metrics_with_questions() -> dict[str, tuple[Metric, Question]]:
    found: dict[str, tuple[Metric, Question]] = {}
    for task in ALL:
        metric = resolve_metric(task)
        if isinstance(metric, Metric) and not hasattr(metric, "judge_model") and metric.name not in found:
            found[metric.name] = metric, first_question(task)
    return found


def test_every_metric_scores_hostile_answers() -> None:
    generator = random.Random(12)
    mixed = tuple("".join(generator.choices(PIECES, k=generator.randint(1, 30))) for _ in range(60))
    cases = {}
    for name, (metric, question) in metrics_with_questions().items():
        cases[f"{name}: mixed"] = partial(score, metric, question, mixed)
        for answer in HOSTILE:
            cases[f"{name}: {answer[:20]!r} ({len(answer)})"] = partial(score, metric, question, (answer,))
    assert len(cases) > 200
    assert_bounded(cases)


def test_readers_take_a_million_characters() -> None:
    options = ["the red cube", "the blue ball"]
    answers = [piece * (10**6 // len(piece)) for piece in PIECES]
    assert_bounded(
        {
            f"{read.__name__}: {answer[:20]!r}": partial(read, answer, options)
            for read in (extract_letter, extract_mmbench_choice)
            for answer in answers
        },
        seconds=10,
    )
