"""Image tasks, from the fixture of their data to measures and submission files, against values computed by hand."""

import io
import json
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from vila_core.errors import ConfigError
from vila_core.media import Image
from vila_eval import Answered, DataOptions, LocalFiles, Question, Row, Task
from vila_eval.data.sources import HubDataset
from vila_eval.errors import DataError
from vila_eval.fixtures import Repository, picture
from vila_eval.metric import Scored
from vila_eval.metrics.yes_no import MME_METRIC
from vila_eval.prompts import letter, lettered, multiple_choice_prompt
from vila_eval.task import as_questions
from vila_eval.tasks.images import IMAGE_TASKS
from vila_eval.testing import check_task

BY_NAME = {task.name: task for task in IMAGE_TASKS}


def questions(name: str, cache: Path) -> list[Question]:
    task = BY_NAME[name]
    rows = task.source.open(DataOptions(cache=cache, fixtures=True))
    return [question for index in range(len(rows)) for question in as_questions(task, rows, index)]


def text(question: Question) -> str:
    return "".join(part for part in question.prompt if isinstance(part, str))


def measured(name: str, answers: Mapping[str, str] | Callable[[Question], str]) -> dict[str, float]:
    """Return measures by "name" or "name/group". `answers` maps ids to answers.

    All other questions are answered right.
    """

    def answer(question: Question) -> str:
        if callable(answers):
            return answers(question)
        reference = question.answer[0] if isinstance(question.answer, list) else question.answer
        return answers.get(question.id, str(reference))

    return {
        measure.name if measure.group is None else f"{measure.name}/{measure.group[1]}": measure.estimate.mean
        for measure in check_task(BY_NAME[name], answer)
    }


# Source: VILA's registry.yaml. MMBench's five tasks share a tag, which is VILA's name for them.
TAGS = {
    "ai2d": "core local regression",
    "ai2d_no_mask": "core local regression",
    "chartqa": "core local regression",
    "docvqa_test": "submission",
    "docvqa_val": "core local regression",
    "gqa": "core local regression",
    "infovqa_test": "submission",
    "infovqa_val": "core local regression",
    "mmbench_cn_cc": "core submission mmbench",
    "mmbench_cn_dev": "core submission mmbench",
    "mmbench_cn_test": "core submission mmbench",
    "mmbench_en_dev": "core submission mmbench",
    "mmbench_en_test": "core submission mmbench",
    "mme": "core local regression",
    "ocrbench": "core local regression",
    "pope": "core local regression",
    "realworldqa": "core local regression",
    "scienceqa_full": "core local regression",
    "seedbench": "core local regression",
    "textvqa": "core local regression",
    "textvqa_test": "submission",
    "textvqa_val": "core local",
    "vizwiz_vqa_test": "core submission",
    "vizwiz_vqa_val": "local",
    "vqav2_test": "core submission",
    "vqav2_val": "local regression",
    "vstar": "core local",
}


def test_tags_are_those_of_vila() -> None:
    assert {task.name: " ".join(task.tags) for task in IMAGE_TASKS} == TAGS


def test_tasks_scored_elsewhere_write_a_submission() -> None:
    assert {task.name for task in IMAGE_TASKS if task.metric is None} == {
        name for name, tags in TAGS.items() if "submission" in tags and not name.endswith(("_dev", "_cc"))
    }
    assert all((task.metric is None) == (task.submission is not None) for task in IMAGE_TASKS)


PROMPTS = {
    "ai2d": "What shape is in the diagram?\nA. circle\nB. square\nC. triangle\nD. star\n"
    "Answer with the option's letter from the given choices directly.",
    "chartqa": "How many years are shown?\nAnswer the question with a single word.",
    "docvqa_val": "What is the number of the invoice?\nAnswer the question using a single word or phrase.",
    "infovqa_test": "What share uses it daily?\nAnswer the question using a single word or phrase.",
    "textvqa": "What is the brand of this camera?\nReference OCR token: NOKIA, 50\nAnswer the question using a single "
    "word or phrase.",
    "textvqa_val": "What is the brand of this camera?\nAnswer the question using a single word or phrase.",
    "ocrbench": "what is written in the image?",
    "gqa": "What color is the circle?\nAnswer the question using a single word or phrase.",
    "vqav2_test": "Is the shape red?\nAnswer the question using a single word or phrase.",
    "vizwiz_vqa_val": "What is in the can?\nWhen the provided information is insufficient, respond with "
    "'Unanswerable'.\n"
    "Answer the question using a single word or phrase.",
    "realworldqa": "Which object is closer to us?\n\nA. Circle\nB. Square\nC. They are equally close\n"
    "Please answer directly with only the letter of the correct option and nothing else.",
    "pope": "Is there a circle in the image?\nAnswer the question using a single word or phrase.",
    "mme": "Is there a circle in the image?\nAnswer the question using a single word or phrase.",
    "scienceqa_full": "Context: Look at the shapes.\nWhich is rounder?\nA. the circle\nB. the square\n"
    "Answer with the option's letter from the given choices directly.",
    "seedbench": "What is in the picture?\nA. a circle\nB. one\nC. rolling\nD. stop\n"
    "Answer with the option's letter from the given choices directly.",
    "vstar": "What is the material of the glove?\nA. rubber\nB. cotton\nC. kevlar\nD. leather\n"
    "Answer with the option's letter from the given choices directly.",
    "mmbench_en_dev": "Which shape is it? There are several options:\nA. circle\nB. square\nC. star\n\n"
    "Answer with the option's letter from the given choices directly.",
    "mmbench_cn_test": "这是什么形状? There are several options:\nA. 圆形\nB. 正方形\nC. 星形\n\n"
    "请直接使用所提供的选项字母作为答案回答。",
    # mmbench_cn_cc_doc_to_text in lmms_eval/tasks/mmbench/cc_utils.py: no hint
    "mmbench_cn_cc": "这是什么形状? There are several options:\nA. 圆形\nB. 正方形\nC. 星形\n\n"
    "请直接使用所提供的选项字母作为答案回答。",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_the_first_prompt_has_the_image_and_the_reference_text(name: str, tmp_path: Path) -> None:
    first = questions(name, tmp_path)[0]
    assert isinstance(first.prompt[0], Image)
    assert text(first) == PROMPTS[name]


def test_options_are_lettered_in_order() -> None:
    assert lettered(["red", "blue"]) == "A. red\nB. blue"
    assert [letter(0), letter(25)] == ["A", "Z"]
    with pytest.raises(ConfigError, match="27 options"):
        lettered(["x"] * 27)


def test_a_third_party_task_can_use_multiple_choice(tmp_path: Path) -> None:
    rows = [{"text": "Pick.", "choices": ["red", "blue", "a cat"], "right": right} for right in (0, 1, 2, 2)]
    (tmp_path / "pick.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def ask(row: Row) -> Question:
        prompt = multiple_choice_prompt(row["text"], row["choices"])
        return Question(id="", prompt=[prompt], answer=letter(row["right"]), options=row["choices"])

    pick = Task(
        "pick", LocalFiles(tmp_path / "pick.jsonl", {"text": "", "choices": "", "right": ""}), ask, "multiple_choice"
    )
    said = {"0": "(a)", "1": "The answer is B.", "2": "It is a cat.", "3": "A or B"}
    (accuracy,) = check_task(pick, lambda question: said[question.id])
    assert (accuracy.name, accuracy.estimate.mean) == ("accuracy", 0.75)
    with pytest.raises(ConfigError, match="answer 'D'"):
        check_task(replace(pick, ask=lambda row: replace(ask(row), answer="D")))


def test_pope_counts_a_false_positive() -> None:
    assert {name: value for name, value in measured("pope", lambda question: "yes").items() if "/" not in name} == {
        "accuracy": 0.5,
        "precision": 0.5,
        "recall": 1.0,
        "f1": 2 / 3,
        "yes_ratio": 1.0,
    }


def test_ai2d_reads_a_letter_alone_or_before_a_full_stop() -> None:
    # "a" is right ignoring case, "(B)" ignoring punctuation; "D. a bud" is read as D; "C is right" lacks the full stop.
    assert measured("ai2d", {"0": "a", "1": "(B)", "2": "D. a bud", "3": "C is right"})["exact_match"] == 0.75


def test_chartqa_reports_published_and_strict_accuracy() -> None:
    # "2013" for 2010 is within 5 % (published), but another year (strict). "50" for 52.5 is right in both, "10 " is 10,
    # "Blue" is wrong.
    found = measured("chartqa", {"0": "10 ", "1": "Blue", "2": "2013", "3": "50"})
    assert found == {
        "relaxed_accuracy": 0.75,
        "strict_relaxed_accuracy": 0.5,
        "relaxed_accuracy/human": 0.5,
        "strict_relaxed_accuracy/human": 0.5,
        "relaxed_accuracy/augmented": 1.0,
        "strict_relaxed_accuracy/augmented": 0.5,
    }
    assert next(iter(found)) == "relaxed_accuracy"


def test_docvqa_gives_partial_credit() -> None:
    # "43" for "42": one of two characters, exactly the threshold. "dr. lea": one of seven. "May 7, 1984": five of 13.
    found = measured("docvqa_val", {"49153": "43", "49154": "1,250", "49155": "dr. lea", "49156": "no idea"})
    assert found["anls"] == pytest.approx((0.5 + 1 + 6 / 7 + 0) / 4)
    assert found["anls/form"] == 0.5
    assert found["anls/several"] == 1.0


def test_infovqa_accepts_any_reference() -> None:
    found = measured("infovqa_val", {"98300": "40", "98301": "BLUE, red", "98302": "99", "98303": "the year in shapes"})
    assert (found["anls"], found["anls/single span"], found["anls/non-extractive"]) == (0.75, 1.0, 0.0)


@pytest.mark.parametrize("name", ["textvqa", "textvqa_val"])
def test_textvqa_counts_agreeing_annotators(name: str) -> None:
    # 7 of 10 say nokia: 1. All say copenhagen: 1. "3", "three", "3." and "the 3" are five: 1. One says 10:30: 0.3, by
    # leaving one out.
    said = {"34602": "Nokia.", "34603": "copenhagen", "34604": "3", "34605": "10:30"}
    assert measured(name, said)["evalai_vqa_accuracy"] == pytest.approx((1 + 1 + 1 + 0.3) / 4)


def test_ocrbench_counts_contained_texts_and_formulas_are_case_sensitive() -> None:
    said = {
        "0": "The word is 'Centre'.",
        "1": "horse",
        "2": "It costs 4.99",
        "3": "April 7, 1984",
        "4": "acme sdn bhd",
        "5": "x^{2}+y",  # lower case: wrong in a formula
    }
    found = measured("ocrbench", said)
    assert (found["accuracy"], found["score"], found["accuracy/Text Recognition"]) == (pytest.approx(4 / 6), 4.0, 0.5)
    assert found["accuracy/Handwritten Mathematical Expression Recognition"] == 0.0
    assert measured("ocrbench", {"5": "$x^{2}+Y$"})["score"] == 6.0


def test_gqa_joins_images_and_ignores_case_and_punctuation(tmp_path: Path) -> None:
    found = measured("gqa", {"200": "Red.", "201": "yes", "202": "A triangle", "203": "T-Shirt"})
    assert found["exact_match"] == 0.5  # the article makes the third wrong
    assert (found["exact_match/query"], found["exact_match/verify"], found["exact_match/choose"]) == (1.0, 0.0, 0.0)
    asked = questions("gqa", tmp_path)
    assert [question.cluster for question in asked] == ["n0", "n0", "n1", "n1"]
    first, third = asked[0].prompt[0], asked[2].prompt[0]
    assert isinstance(first, Image)
    assert isinstance(third, Image)
    assert (first.source, third.source) == (
        picture(0, color="red", shape="circle"),
        picture(1, color="blue", shape="triangle"),
    )


def test_gqa_names_a_missing_image(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        columns = {
            "id": "string",
            "imageId": "string",
            "question": "string",
            "answer": "string",
            "types": {"structural": "string"},
        }
        row = {"id": "1", "imageId": "n7", "question": "?", "answer": "a", "types": {"structural": "query"}}
        with Repository(folder) as repository:
            repository.add("testdev", [row], columns, config="testdev_balanced_instructions")
            images = [{"id": "n0", "image": picture(0)}]
            repository.add("testdev", images, {"id": "string", "image": "image"}, config="testdev_balanced_images")

    source = BY_NAME["gqa"].source
    source = replace(
        source, questions=replace(source.questions, fixture=broken), pictures=replace(source.pictures, fixture=broken)
    )  # type: ignore[call-overload]
    with pytest.raises(DataError, match="names the picture 'n7'"):
        source.open(DataOptions(cache=tmp_path, fixtures=True))[0]


def test_vqav2_processes_both_sides() -> None:
    # "Yes." though all ten say "yes": 1. "one" is 1: 9 of 10. "a ball": 5. "in the middle" is said by 3: 0.9.
    said = {"262148000": "Yes.", "262148001": "one", "262148002": "a ball", "262148003": "in the middle"}
    found = measured("vqav2_val", said)
    assert found["vqa_accuracy"] == pytest.approx((1 + 1 + 1 + 0.9) / 4)
    assert found["vqa_accuracy/other"] == pytest.approx(0.95)
    assert measured("vqav2_val", {"262148001": "2"})["vqa_accuracy/number"] == pytest.approx(0.3)


def test_vizwiz_accepts_unanswerable_as_an_answer() -> None:
    ids = [f"VizWiz_val_{number:08}" for number in range(4)]
    found = measured("vizwiz_vqa_val", dict(zip(ids, ("Soup", "Unanswerable", "yes", "3"), strict=True)))
    # 3 of 10 say yes: 0.9. "3" and "three" are three of ten, too: 0.9.
    assert found["evalai_vqa_accuracy"] == pytest.approx((1 + 1 + 0.9 + 0.9) / 4)
    assert found["evalai_vqa_accuracy/unanswerable"] == 1.0


def test_realworldqa_finds_the_option_by_its_text() -> None:
    # "Circle." is the text of A, "(B)" is B without brackets, "two" is 2; "No, it is red" is not "No".
    assert (
        measured("realworldqa", {"0": "Circle.", "1": "(B)", "2": "two", "3": "No, it is red"})["exact_match"] == 0.75
    )


def test_mme_adds_accuracy_and_pairs() -> None:
    # existence: 1 of 2 in the first pair, both in the second: 75 + 50. OCR: none right: 0. code_reasoning: both right:
    # 200.
    wrong = {"existence/0001.png:no": "Yes", "OCR/0001.jpg:yes": "no", "OCR/0001.jpg:no": "maybe"}
    found = measured("mme", wrong)
    assert found == {
        "perception": 125.0,
        "cognition": 200.0,
        "score/existence": 125.0,
        "score/OCR": 0.0,
        "score/code_reasoning": 200.0,
    }
    measures = {
        measure.name if measure.group is None else measure.group[1]: measure for measure in check_task(BY_NAME["mme"])
    }
    assert all(measure.unit == "points" for measure in measures.values())


def test_mme_standard_errors_are_over_pairs(tmp_path: Path) -> None:
    asked = [question for question in questions("mme", tmp_path) if question.groups["category"] == "existence"]
    said = ["Yes", "Yes", "Yes", "No"]  # 50 and 200 points
    samples = [
        Scored(question, answer, MME_METRIC.score(answer, question))
        for question, answer in zip(asked, said, strict=True)
    ]
    perception, existence = MME_METRIC.summarize(samples)
    # mean 125, deviations 75, s² = 2 · 75² / 1, error = sqrt(s² / 2) = 75
    assert perception.estimate.standard_error == existence.estimate.standard_error == pytest.approx(75.0)


def test_mme_needs_both_questions_of_an_image(tmp_path: Path) -> None:
    samples = [
        Scored(question, "Yes", MME_METRIC.score("Yes", question)) for question in questions("mme", tmp_path)[:3]
    ]
    with pytest.raises(ConfigError, match=r"existence/0002\.png.*its partner, whose answer is 'no', is missing"):
        MME_METRIC.summarize(samples)
    assert BY_NAME["mme"].keep_together == "question_id"


def test_scienceqa_reports_questions_with_images_separately(tmp_path: Path) -> None:
    # "b" is B, "C. Paris" is C; "(A)" and "The circle" are unread.
    found = measured("scienceqa_full", {"0": "The circle", "1": "b", "2": "C. Paris", "3": "(A)"})
    assert (found["accuracy"], found["accuracy/image"], found["accuracy/text"]) == (0.5, pytest.approx(1 / 3), 1.0)
    assert (found["accuracy/1-6"], found["accuracy/7-12"]) == (0.5, 0.5)
    without = questions("scienceqa_full", tmp_path)[1]
    assert [type(part) for part in without.prompt] == [str]
    assert text(without).startswith("Which word rhymes with bee?\nA. cat")  # no context line


def test_seedbench_reads_one_character_and_shows_all_frames(tmp_path: Path) -> None:
    found = measured("seedbench", {"0": "a) a circle", "1": "Both", "2": "", "3": "The circle rolls"})
    # "Both" begins with B, which is right. The empty answer and "T" are wrong.
    assert (found["accuracy"], found["accuracy/image"], found["accuracy/video"]) == (0.5, pytest.approx(2 / 3), 0.0)
    assert found["accuracy/Text Understanding"] == 0.0
    assert [type(part).__name__ for part in questions("seedbench", tmp_path)[3].prompt] == ["Image"] * 3 + ["str"]


def test_vstar_reads_letters_and_texts_by_category(tmp_path: Path) -> None:
    said = {
        "direct_attributes/0": "Rubber",
        "direct_attributes/1": "Black",  # the text of B, though C is right
        "direct_attributes/2": "The answer is (B).",
        "relative_position/3": "b",
    }
    found = measured("vstar", said)
    assert found == {
        "accuracy": 0.75,
        "accuracy/direct_attributes": pytest.approx(2 / 3),
        "accuracy/relative_position": 1.0,
    }
    assert list(questions("vstar", tmp_path)[3].options) == [
        "The red car is on the left side of the dog.",
        "The red car is on the right side of the dog.",
    ]


@pytest.mark.parametrize("name", ["mmbench_en_dev", "mmbench_cn_dev", "mmbench_cn_cc"])
def test_mmbench_counts_a_question_only_if_all_rotations_are_right(name: str) -> None:
    found = measured(name, {"2000241": "A"})  # the third rotation of the first question: B is right
    assert (found["accuracy"], found["single_pass_accuracy"]) == (0.5, 1.0)
    assert (found["accuracy/object_localization"], found["accuracy/attribute_recognition"]) == (0.0, 1.0)
    always_a = measured(name, lambda question: "A")
    assert (always_a["accuracy"], always_a["single_pass_accuracy"]) == (0.0, 1.0)


def answered(name: str, cache: Path) -> list[Answered]:
    return [Answered(question, f" answer {number}") for number, question in enumerate(questions(name, cache))]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("docvqa_test", {"questionId": 49153, "answer": "answer 0"}),
        ("infovqa_test", {"questionId": 98300, "answer": "answer 0"}),
        ("textvqa_test", {"question_id": 34602, "answer": "answer 0"}),
        ("vqav2_test", {"question_id": 262148000, "answer": "answer 0"}),
        ("vizwiz_vqa_test", {"image": "VizWiz_test_00000000.jpg", "answer": "answer 0"}),
    ],
)
def test_submission_files_have_one_object_per_question(name: str, first: dict[str, object], tmp_path: Path) -> None:
    submission = BY_NAME[name].submission
    assert submission is not None
    written = json.loads(submission.write(answered(name, tmp_path)))
    assert written[0] == first
    assert len(written) == 4


def test_mmbench_submission_is_the_sheet_for_its_server(tmp_path: Path) -> None:
    submission = BY_NAME["mmbench_en_test"].submission
    assert submission is not None
    samples = answered("mmbench_en_test", tmp_path)
    content = submission.write(samples)
    assert isinstance(content, bytes)
    assert content == submission.write(samples)
    assert sheet(content)[:3] == [
        ["index", "question", "A", "B", "C", "D", "prediction", "category", "l2_category"],
        ["241", "Which shape is it?", "circle", "square", "star", "", " answer 0", "object_localization", L2],
        ["242", "What color is it?", "red", "blue", "", "", " answer 1", "attribute_recognition", L2],
    ]


L2 = "finegrained_perception (instance-level)"


def sheet(content: bytes) -> list[list[str]]:
    """The cells of the first sheet of an Excel file."""
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        texts = ["".join(item.itertext()) for item in ET.fromstring(file.read("xl/sharedStrings.xml"))]
        rows = ET.fromstring(file.read("xl/worksheets/sheet1.xml")).iter(f"{space}row")
        found: list[list[str]] = []
        for row in rows:
            cells = [""] * 9
            for cell in row:
                value = cell.findtext(f"{space}v") or ""
                cells[ord(cell.attrib["r"][0]) - ord("A")] = texts[int(value)] if cell.get("t") == "s" else value
            found.append(cells)
        return found


def test_a_different_schema_is_rejected_listing_both(tmp_path: Path) -> None:
    def renamed(folder: Path) -> None:
        with Repository(folder) as repository:
            repository.add("test", [{"query": "?", "label": "a"}], {"query": "string", "label": "string"})

    source = BY_NAME["chartqa"].source
    assert isinstance(source, HubDataset)
    with pytest.raises(DataError, match=r"no column 'type', 'question', 'answer', 'image'.*Found: query, label"):
        replace(source, fixture=renamed).open(DataOptions(cache=tmp_path, fixtures=True))
