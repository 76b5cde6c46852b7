"""Tasks for fine-tuned models, from the fixture of their data to their measures."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vila_core.media import Image
from vila_eval.data.sources import DataOptions
from vila_eval.metric import Measure
from vila_eval.metrics.boxes import BOX_ACCURACY, BoxAccuracyMetric
from vila_eval.metrics.counting import find_number
from vila_eval.metrics.word_overlap import count_words, spell_number, word_exact_match, word_f1
from vila_eval.task import Question, Task, as_questions
from vila_eval.tasks.finetuning.medical import PATHVQA, PMCVQA
from vila_eval.tasks.finetuning.refcoco import REFCOCO_TASKS, ask
from vila_eval.tasks.finetuning.tallyqa import TALLYQA
from vila_eval.tasks.finetuning.widgetcap import WIDGETCAP
from vila_eval.testing import check_task


def questions_of(task: Task) -> dict[str, Question]:
    with tempfile.TemporaryDirectory() as cache:
        rows = task.source.open(DataOptions(cache=Path(cache), fixtures=True))
        return {question.id: question for index in range(len(rows)) for question in as_questions(task, rows, index)}


def by_id(answers: dict[str, str]) -> Callable[[Question], str]:
    return lambda question: answers[question.id]


def values(measures: list[Measure]) -> dict[str, float]:
    return {
        measure.name if measure.group is None else f"{measure.name}, {measure.group[1]}": measure.estimate.mean
        for measure in measures
    }


def test_refcoco_has_eight_splits_with_one_tag() -> None:
    assert [task.name for task in REFCOCO_TASKS] == [
        *("refcoco_val", "refcoco_testA", "refcoco_testB"),
        *("refcoco+_val", "refcoco+_testA", "refcoco+_testB"),
        *("refcocog_val", "refcocog_test"),
    ]
    assert all({"refcoco", "refcoco-train", "finetuning"} <= set(task.tags) for task in REFCOCO_TASKS)
    assert [task.name for task in REFCOCO_TASKS if "refcocog" in task.tags] == ["refcocog_val", "refcocog_test"]


@pytest.mark.parametrize("task", REFCOCO_TASKS, ids=lambda task: task.name)
def test_refcoco_reads_digits_on_the_padded_square(task: Task) -> None:
    # The square is at 72 to 128 by 22 to 78 in an image of 200 by 100; after padding, at 72 to 128 by 72 to 128.
    answers = {
        "0-0": "[36, 36, 64, 64]",  # 0.36 of 200 is 72
        "0-1": "I think it is [0.36, 0.36, 0.64, 0.64].",
        "1": "[0.36, 0.1, 0.64, 0.9]",  # from 30 above the image to 30 below it: IoU 56 / 160
    }
    assert values(check_task(task, by_id(answers))) == {
        "accuracy": pytest.approx(2 / 3),
        "accuracy_continuous": pytest.approx(2 / 3),
    }


def test_refcoco_asks_for_every_phrase_and_clusters_by_image() -> None:
    asked = questions_of(REFCOCO_TASKS[0])
    assert [question.prompt[1] for question in asked.values()] == [
        "Please provide the bounding box coordinate of the region this sentence describes: red square.",
        "Please provide the bounding box coordinate of the region this sentence describes: the square in the middle.",
        "Please provide the bounding box coordinate of the region this sentence describes: blue thing.",
    ]
    assert [question.cluster for question in asked.values()] == [
        "COCO_train2014_000000000000",
        "COCO_train2014_000000000000",
        "COCO_train2014_000000000001",
    ]
    assert asked["1"].answer == [72.0, 22.0, 128.0, 78.0]


def test_box_accuracy_in_both_pixel_conventions() -> None:
    # 4 x 2 of 4 x 5 between the corners is 0.4; with the outermost pixels it is 5 x 3 of 5 x 6, one half.
    question = Question("1", [], answer=[0, 0, 4, 5], fields={"width": 10, "height": 10})
    metric = BoxAccuracyMetric(coordinates="pixels", padded=False)
    assert metric.score("[0, 0, 4, 2]", question).values == {"accuracy": 1.0, "accuracy_continuous": 0.0}
    assert metric.score("[0, 0, 4, 3]", question).values == {"accuracy": 1.0, "accuracy_continuous": 1.0}


def test_missing_boxes_and_image_sizes_are_unread() -> None:
    question = Question("1", [], answer=[0, 0, 4, 5], fields={"width": 10, "height": 10})
    for answer in ("", "on the left", "[1, 2, 3]", "[64, 36, 36, 64]"):
        score = BOX_ACCURACY.score(answer, question)
        assert (score.values["accuracy"], score.unread) == (0.0, "no box found")
    row = {
        "image": Image(b"not a picture"),
        "answer": ["it"],
        "bbox": [0, 0, 4, 5],
        "file_name": "COCO_train2014_000000000001_1.jpg",
    }
    (unreadable,) = ask(row)
    assert BOX_ACCURACY.score("[0, 0, 4, 5]", unreadable).unread == "no box found"


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3", "3"),
        ("Three", "3"),
        ("There are 12 birds.", "12"),
        ("two dogs and 3 cats", "3"),  # digits before words
        ("I see Twenty of them", "20"),
        ("two.", None),
        ("-3", "3"),
        ("1,000", "1"),
        ("none", None),
        ("", None),
    ],
)
def test_counting_reads_the_first_number(answer: str, number: str | None) -> None:
    assert find_number(answer) == number


def test_tallyqa_reports_types_and_counts() -> None:
    answers = {"0-0": "one", "0-1": "1", "1": "0", "2-0": "There is 1.", "2-1": "many"}
    measures = check_task(TALLYQA, by_id(answers))
    assert values(measures) == {
        "accuracy": 0.6,
        "accuracy, simple": 1.0,
        "accuracy, complex": pytest.approx(1 / 3),
        "accuracy, 1": 1.0,
        "accuracy, 0": 0.5,  # 16 is above the reported counts
    }
    assert values(check_task(TALLYQA))["accuracy"] == 1.0


def test_tallyqa_clusters_by_image() -> None:
    clusters = [question.cluster for question in questions_of(TALLYQA).values()]
    assert clusters[0] == clusters[1]
    assert clusters[3] == clusters[4]
    assert len(set(clusters)) == 3


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (21, "twenty-one"),
        (40, "forty"),
        (100, "one hundred"),
        (105, "one hundred and five"),
        (1000, "one thousand"),
        (1005, "one thousand and five"),
        (1105, "one thousand, one hundred and five"),
        (2_000_342, "two million, three hundred and forty-two"),
        (12_000_042, "twelve million and forty-two"),
    ],
)
def test_numbers_are_spelled_like_num2words(number: int, words: str) -> None:
    assert spell_number(number) == words


def test_words_are_letters_and_numbers_are_spelled() -> None:
    assert count_words("The 21 cells, the T-cell's 2nd") == {"the": 2, "twentyone": 1, "cells": 1, "tcells": 1, "nd": 1}


@pytest.mark.parametrize(
    ("answer", "reference", "exact_match", "f1"),
    [
        ("Yes.", "yes", 1.0, 1.0),
        ("yes it is", "yes", 1 / 3, 0.5),
        ("no", "yes", 0.0, 0.0),
        ("", "yes", 0.0, 0.0),
        ("2", "two", 1.0, 1.0),
        ("a red circle", "the red circle here", 2 / 3, 4 / 7),  # 2 hits of 3 words, 2 of 4 missed
        ("red red", "red cell", 0.5, 0.8),  # one of two words; 2 hits, 1 miss
    ],
)
def test_word_overlap(answer: str, reference: str, exact_match: float, f1: float) -> None:
    assert word_exact_match(answer, reference) == pytest.approx(exact_match)
    assert word_f1(answer, reference) == pytest.approx(f1)


def test_pathvqa_scores_yes_or_no_and_phrases_separately() -> None:
    pytest.importorskip("pycocoevalcap")
    answers = {"0": "yes", "1": "red circle", "2": "Yes", "3": "two squares"}
    assert values(check_task(PATHVQA, by_id(answers))) == {
        "exact_match": pytest.approx((1 + 1 + 0 + 0.5) / 4),
        "f1": pytest.approx((1 + 0.8 + 0 + 2 / 3) / 4),
        "exact_match, yes or no": 0.5,
        "f1, yes or no": 0.5,
        "exact_match, free-form": 0.75,
        "f1, free-form": pytest.approx((0.8 + 2 / 3) / 2),
        # "two" is not "2" to BLEU, so 2 of 4 words are right; 4 words of 4 in all, so no brevity penalty. Pairs: 1 of
        # 2. Triples: none.
        "bleu_1, free-form": pytest.approx(50),
        "bleu_2, free-form": pytest.approx(50),
        "bleu_3, free-form": pytest.approx(
            100 * (0.5 * 0.5 * 1e-6) ** (1 / 3)
        ),  # which the scorer counts as one in a million
    }


def test_pmcvqa_accepts_only_the_letter() -> None:
    answers = {"0": "A", "1": "B.", "2": " C\n", "3": "b"}
    assert values(check_task(PMCVQA, by_id(answers))) == {"accuracy": 0.5}
    assert values(check_task(PMCVQA)) == {"accuracy": 1.0}
    question = questions_of(PMCVQA)["2"]
    assert question.prompt[1] == (
        "Which shape is shown?\nA. The circle\nB. The square\nC. The triangle\nD. The star\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_widgetcap_scores_phrases_as_one_corpus() -> None:
    pytest.importorskip("pycocoevalcap")

    def cider(answers: dict[str, str]) -> float:
        return values(check_task(WIDGETCAP, lambda question: answers.get(question.id, "")))["cider"]

    phrases = {"0": "go back", "1": "search for a song", "2": "open the menu", "3": "share the picture"}
    everything = cider(phrases)
    assert everything > 100
    assert cider({}) == 0.0
    halves = [cider({name: phrases[name] for name in names}) for names in ("01", "23")]
    assert sum(halves) == pytest.approx(everything)
    assert cider({"0": "Go back."}) < cider({"0": "go back"}) / 2  # case and punctuation are kept


def test_widgetcap_names_the_element_by_its_box() -> None:
    question = questions_of(WIDGETCAP)["1"]
    assert question.prompt[1] == (
        "Describe the function of the user interface element in the box [0.220, 0.220, 0.780, 0.780] in a short phrase."
    )
    assert (question.answer, question.cluster) == (["search for a song", "search button"], "1")
