"""Exam tasks, from the fixture of their data to their measures and submission files."""

import json
import tempfile
from pathlib import Path

import pytest

from vila_core.media import Image
from vila_eval.data.sources import DataOptions
from vila_eval.metric import Answered, Measure
from vila_eval.metrics.choices.mathvista import normalize_reply
from vila_eval.metrics.choices.mmmu import MMMU_METRIC
from vila_eval.task import Question, Task, as_questions
from vila_eval.tasks.knowledge import KNOWLEDGE_TASKS
from vila_eval.tasks.knowledge.mathvista import MATHVISTA_TEST, MATHVISTA_TESTMINI
from vila_eval.tasks.knowledge.mmmu import MMMU_PRO_STANDARD, MMMU_PRO_VISION, MMMU_TEST, MMMU_VAL
from vila_eval.testing import check_task


def questions_of(task: Task) -> dict[str, Question]:
    with tempfile.TemporaryDirectory() as cache:
        rows = task.source.open(DataOptions(cache=Path(cache), fixtures=True))
        return {question.id: question for index in range(len(rows)) for question in as_questions(task, rows, index)}


def shares(measures: list[Measure]) -> dict[str, float]:
    return {measure.group[1] if measure.group else measure.name: measure.estimate.mean for measure in measures}


def test_names_and_tags_are_those_of_vila() -> None:
    assert {task.name: set(task.tags) - {"mmmu_pro"} for task in KNOWLEDGE_TASKS} == {
        "mmmu_val": {"core", "local", "regression"},
        "mmmu_test": {"core", "submission"},
        "mmmu_pro_standard": {"core", "local"},
        "mmmu_pro_vision": {"core", "local"},
        "mathvista_testmini": {"core", "local"},
        "mathvista_test": {"submission"},
    }
    assert {task.name for task in KNOWLEDGE_TASKS if "mmmu_pro" in task.tags} == {
        "mmmu_pro_standard",
        "mmmu_pro_vision",
    }


def test_mmmu_reads_letters_texts_and_lists_of_texts() -> None:
    answers = {
        "validation_Art_1": "The answer is (A).",
        "validation_Art_Theory_2": "A",  # wrong
        "validation_Music_3": "Yes",  # no letter, and too short to search for option texts
        "validation_Math_15": "The side is 3.43",  # 3.429, rounded as the official script rounds
        "validation_Physics_5": "about 1.07",  # wrong
        "validation_Computer_Science_6": "It is [0, 5)",
    }
    measures = check_task(MMMU_VAL, lambda question: answers[question.id])
    found = shares(measures)
    assert found == {
        "accuracy": pytest.approx(3 / 6),
        "Art and Design": pytest.approx(1 / 3),
        "Science": 0.5,
        "Tech and Engineering": 1.0,
        "Art": 1.0,
        "Art_Theory": 0.0,
        "Music": 0.0,
        "Math": 1.0,
        "Physics": 0.0,
        "Computer_Science": 1.0,
    }
    assert shares(check_task(MMMU_VAL))["accuracy"] == 1.0


def test_mmmu_draws_no_letters() -> None:
    question = questions_of(MMMU_VAL)["validation_Music_3"]
    score = MMMU_METRIC.score("Yes", question)
    assert (score.values["accuracy"], score.parsed) == (0.0, None)
    assert score.unread == "no single option named"
    assert MMMU_METRIC.score("(B)", question).unread is None


def test_mmmu_puts_the_referenced_images_first() -> None:
    asked = questions_of(MMMU_VAL)
    two = asked["validation_Art_Theory_2"].prompt
    assert [type(part) for part in two] == [Image, Image, str]
    assert two[2] == (
        "Which of the two is a circle?\nA. <image 1>\nB. <image 2>\n\nAnswer with the option's letter from the given "
        "choices directly."
    )
    assert asked["validation_Physics_5"].prompt[1:] == [
        "What is the force in <image 1>, in newtons?\n\nAnswer the question using a single word or phrase."
    ]


def test_mmmu_test_writes_letters_and_open_answers_for_the_server() -> None:
    assert check_task(MMMU_TEST, lambda question: "B") == []
    assert MMMU_TEST.submission is not None
    answers = {"test_Art_1": "(C) a triangle", "test_Math_15": " 24/7 meters", "test_Art_Theory_2": "B."}
    answered = [
        Answered(question, answers[name]) for name, question in questions_of(MMMU_TEST).items() if name in answers
    ]
    assert json.loads(MMMU_TEST.submission.write(answered)) == {
        "test_Art_1": "C",
        "test_Art_Theory_2": "B",
        "test_Math_15": " 24/7 meters",
    }


@pytest.mark.parametrize("task", [MMMU_PRO_STANDARD, MMMU_PRO_VISION])
def test_mmmu_pro_scores_by_subject(task: Task) -> None:
    answers = {"test_History_0": "A", "test_Art_Theory_1": "It must be (B)", "test_Math_2": "J", "test_Physics_3": "A."}
    assert shares(check_task(task, lambda question: answers[question.id])) == {
        "accuracy": 0.75,
        "Humanities and Social Science": 1.0,
        "Art and Design": 1.0,
        "Science": 0.5,
        "History": 1.0,
        "Art_Theory": 1.0,
        "Math": 0.0,
        "Physics": 1.0,
    }


def test_mmmu_pro_vision_shows_the_question_only_as_an_image() -> None:
    for question in questions_of(MMMU_PRO_VISION).values():
        assert question.prompt[1:] == ["Answer with the option letter from the given choices directly."]
    standard = questions_of(MMMU_PRO_STANDARD)["test_History_0"].prompt[1]
    assert isinstance(standard, str)
    assert standard.startswith("What does <image 1> show?\nA. a red circle\nB. a red square\n")


@pytest.mark.parametrize(
    ("reply", "choices", "answer_type", "precision", "text", "is_read"),
    [
        ("8/11", ["3/11", "8/11"], "text", None, "8/11", True),
        ("B", ["3/11", "8/11"], "text", None, "8/11", True),
        ("The correct answer is (b) 8/11.", ["3/11", "8/11"], "text", None, "8/11", True),
        ('The answer is "A".', ["3/11", "8/11"], "text", None, "3/11", True),
        ("8 / 11", ["3/11", "8/11"], "text", None, "8/11", False),  # two edits away, against three
        (
            "C",
            ["3/11", "8/11"],
            "text",
            None,
            "3/11",
            False,
        ),  # there is no third choice; both are equally far, so the first is taken
        ("", ["Yes", "No"], "text", None, None, False),  # the official script takes the shortest text
        ("14", [], "integer", None, "14", True),
        ("14.9", [], "integer", None, "14", True),  # truncated, not rounded
        ("14 cm", [], "integer", None, None, False),
        ("inf", [], "integer", None, None, False),
        ("1.249", [], "float", 1.0, "1.2", True),
        ("1", [], "float", 1.0, "1.0", True),
        ("$1.20", [], "float", 2.0, None, False),
        ("[2007, 2008]", [], "list", None, "[2007, 2008]", True),
        ("2007 and 2008", [], "list", None, "2007 and 2008", False),
    ],
)
def test_mathvista_reads_replies_by_the_published_rules(
    reply: str, choices: list[str], answer_type: str, precision: float | None, text: str | None, is_read: bool
) -> None:
    question = Question("1", [], options=choices, fields={"answer_type": answer_type, "precision": precision})
    found = normalize_reply(reply, question)
    assert found.text == text
    assert (found.unread is None) == is_read


def test_mathvista_scores_by_task_and_by_skill() -> None:
    answers = {"1": "(B)", "2": "6/11", "3": "1", "4": "1.24", "5": "[2007,2008]"}  # the last lacks a space: wrong
    measures = check_task(MATHVISTA_TESTMINI, lambda question: answers[question.id])
    found = {measure.group: measure.estimate.mean for measure in measures}
    assert found[None] == 0.6
    assert found["answer_type", "float"] == 1.0
    assert found["question_type", "multi_choice"] == 0.5
    assert found["task", "geometry problem solving"] == 1.0
    assert found["task", "figure question answering"] == pytest.approx(1 / 3)
    assert found["skills", "geometry reasoning"] == 1.0
    assert found["skills", "arithmetic reasoning"] == 0.5  # 3 and 4 of 2, 3, 4, 5
    assert shares(check_task(MATHVISTA_TESTMINI))["accuracy"] == 1.0


def test_mathvista_submission_leaves_unread_replies_to_the_authors() -> None:
    assert check_task(MATHVISTA_TEST, lambda question: "1") == []
    assert MATHVISTA_TEST.submission is not None
    replies = {"1": "square", "3": "I see 1 shape."}
    answered = [
        Answered(question, replies[name]) for name, question in questions_of(MATHVISTA_TEST).items() if name in replies
    ]
    written = json.loads(MATHVISTA_TEST.submission.write(answered))
    assert list(written) == ["1", "3"]
    assert written["1"]["extraction"] == "square"
    assert written["1"]["query"].startswith("Hint: Please answer the question and provide the correct option letter")
    assert written["3"]["response"] == "I see 1 shape."
    assert "extraction" not in written["3"]
