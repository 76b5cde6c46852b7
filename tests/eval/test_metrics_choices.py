"""Choices, boxes and breakdowns by group, against values computed by hand."""

import math
from typing import Any

import pytest

from vila_core.errors import ConfigError
from vila_eval.metric import Measure, Metric, Scored
from vila_eval.metrics import boxes
from vila_eval.metrics.boxes import Box, box_accuracy, box_iou, parse_box, unpad_square
from vila_eval.metrics.choices import mmmu, videomme
from vila_eval.metrics.choices.general import extract_letter
from vila_eval.metrics.choices.mmmu import DISCIPLINE_OF_SUBJECT, MMMU_METRIC, subject_of
from vila_eval.metrics.choices.videomme import VIDEO_MME_METRIC
from vila_eval.task import Question

PAINTINGS = ["Cubism", "Fauvism", "Futurism", "Pop art"]

# Each row follows from an official rule (MMMU-Benchmark/MMMU, mmmu/utils/eval_utils.py at bb0b95a), see the last
# column.
MULTI_CHOICE = [
    ("B", "B", "spaced", "a space is put at both ends"),
    ("B ", "B", "spaced", "the answer's own space does not matter"),
    ("B.", "B", "spaced", "the stop is stripped"),
    ("B;", "B", "spaced", "the semicolon is stripped"),
    ("'B'", "B", "spaced", "single quotes are stripped"),
    ("B.,", "B", "spaced", "the comma is stripped first, then the stop"),
    ("!?B?!", "B", "spaced", "'!' is stripped before '?'"),
    ("Option B", "B", "spaced", "' B '"),
    ("Answer: B", "B", "spaced", "' B '"),
    ("B (Fauvism)", "B", "spaced", "only letters in brackets are bracketed"),
    ("A or B", "B", "spaced", "the last letter"),
    ("A B C D", "D", "spaced", "the last letter"),
    ("I choose C because A is too old", "A", "spaced", "the last letter, though C was meant"),
    ("A painting by Matisse", "A", "spaced", "the article counts as a letter"),
    ("(C)", "C", "bracketed", "'(C)'"),
    ("The answer is (B).", "B", "bracketed", "'(B)'"),
    ("because(B)fits", "B", "bracketed", "no spaces needed around brackets"),
    ("(A) C", "A", "bracketed", "brackets go before spaces"),
    ("(A) is wrong, so it is (D)", "D", "bracketed", "the last letter"),
    ("(D) and not (A)", "A", "bracketed", "the last letter, though negated"),
    ("(A), (B), then (A) again", "A", "bracketed", "the last occurrence of each letter is compared"),
    ("The style of this painting is fauvism", "B", "content", "seven words, ignoring case"),
    ("It could be cubism but I say futurism", "C", "content", "the last text"),
    ("Not pop art, it is cubism instead I think", "A", "content", "the last text"),
    ("The painter was one of the neofauvisms", "B", "content", "a text counts inside a word"),
    ("Fauvism", None, "guess", "one word: option texts are not searched"),
    ("This painting shows Fauvism", None, "guess", "four words: option texts are not searched"),
    ("This one painting shows fauvism", None, "guess", "five words are not more than five"),
    ("b", None, "guess", "letters are case-sensitive"),
    ("option (b)", None, "guess", "letters are case-sensitive"),
    ("B\n", None, "guess", "white space is not stripped, and a line break is not a space"),
    ("B,.", None, "guess", "the comma is stripped first, so it stays behind the stop"),
    ("?!B!?", None, "guess", "'!' is stripped before '?', so it stays"),
    ("B. Fauvism", None, "guess", "'B.' has no space after the letter, and two words are too few for option texts"),
    ("B: Fauvism", None, "guess", "'B:' has no space after the letter"),
    ("Answer:B", None, "guess", "no space before the letter"),
    ("[B]", None, "guess", "square brackets are unknown"),
    ("**B**", None, "guess", "asterisks are not stripped"),
    ("(E)", None, "guess", "there are four options"),
    ("", None, "guess", "empty"),
    (
        "The answer is B\nbecause of the colours",
        None,
        "guess",
        "a line break is not a space, and there is no option text",
    ),
    ("Sorry, I cannot tell from this picture", None, "guess", "more than five words, but no option text"),
]


@pytest.mark.parametrize(
    ("response", "letter", "rule", "why"), MULTI_CHOICE, ids=[repr(row[0]) for row in MULTI_CHOICE]
)
def test_mmmu_multi_choice_like_the_official_parser(response: str, letter: str | None, rule: str, why: str):
    parsed = mmmu.parse_multi_choice_response(response, PAINTINGS, "validation_Art_1")
    assert parsed.rule == rule, why
    if letter is None:
        assert parsed.letter in "ABCD"
    else:
        assert parsed.letter == letter, why


@pytest.mark.parametrize(
    ("response", "options", "letter"),
    [
        (
            "It must be the red light there now",
            ["red", "red light"],
            "A",
        ),  # both begin at the same place: the first option
        ("It must be the red light there now", ["red light", "red"], "A"),
        ("the value that we want is 12 exactly", ["1", "12"], "A"),  # "1" begins where "12" does
        ("the value that we want is 21 exactly", ["21", "1"], "B"),  # "1" begins later than "21"
        ("I believe that it is one cat here", ["dog", ""], "B"),  # an empty text is in every answer
    ],
)
def test_mmmu_content_rule_with_overlapping_texts(response: str, options: list[str], letter: str):
    assert mmmu.parse_multi_choice_response(response, options, "q") == (letter, "content")


def test_mmmu_guess_depends_only_on_the_question():
    # `printf validation_Art_1 | sha256sum` ends in f0; 4 divides 256, so 0xf0 mod 4 = 0 picks the first letter.
    first = mmmu.parse_multi_choice_response("?", PAINTINGS, "validation_Art_1")
    assert first == ("A", "guess")
    mmmu.parse_multi_choice_response("?", PAINTINGS, "validation_Art_2")
    assert mmmu.parse_multi_choice_response("no idea", PAINTINGS, "validation_Art_1") == first
    letters = [mmmu.parse_multi_choice_response("?", PAINTINGS, f"validation_Art_{i}").letter for i in range(4000)]
    # 1000 expected of each, standard deviation 27
    assert all(abs(letters.count(letter) - 1000) < 150 for letter in "ABCD")


# As above: the official parser's result, an expected answer, whether it is right, and the rule.
OPEN: list[tuple[str, list[str | float], str | list[str], bool, str]] = [
    ("42", [42.0], "42", True, "a number is rounded; its copy from the number search goes"),
    ("The answer is 42.", [42.0], "42", True, "'42' after 'is ' is shorter than 'is 42' after 'answer '"),
    ("-5", [-5.0], "-5", True, "a sign belongs to the number"),
    ("x = 3.14159", [3.14], "3.142", True, "'=' in the last line; both sides rounded to two decimals"),
    ("final answer 3.999", [4.0], "4", True, "'answer ' leaves the shortest tail"),
    ("Answer: 10", ["answer: 10", 10.0], "10", True, "'answer ' needs its space; the number is found anyway"),
    ("A=3, B=4", [4.0], "3", False, "after the last '='"),
    ("x = 5\nHence y", ["x = 5\nhence y", 5.0], "5", True, "'=' counts in the last line only; without a key the whole "
    "text"),
    ("The area is 12 because the side is 4", [4.0], "12", False, "after the last 'is '"),
    ("The answer is 7. So x holds.", ["x holds"], "7", False, "not split at '. ': the shortest tail hides 7"),
    ("The answer is 7.\nSo x holds.", [7.0, "x holds"], "7", True, "split at the line break: one key a line"),
    ("Try this 5", [5.0], "5", True, "'is ' matches inside 'this '"),
    ("The answer is :", ["the answer is :"], "5", False, "a trivial tail is no key"),
    ("", [""], "5", False, "empty"),
    ("1,234", [1234.0, 234.0], "1234", True, "commas go; the plain form refuses '1' before a comma but finds the tail"),
    ("1,234.5", [1234.5, 1234.0, 234.5], "1234.5", True, "the text is a number; the number search breaks it at comma "
    "or point"),
    ("1,234.5 dollars", ["1,234.5 dollars", 1234.0, 234.5], "1234.5", False, "the number search breaks it"),
    ("2,5", [25.0, 5.0], "2.5", False, "a decimal comma is taken for a thousands comma"),
    (".5", [5.0], "0.5", False, "the leading point is stripped as a stop"),
    ("1/2", ["1/2", 1.0, 2.0], "0.5", False, "fractions are not computed"),
    ("1/2", ["1/2", 1.0, 2.0], ["0.5", "1/2"], True, "any expected answer will do"),
    ("2 - 5", ["2 - 5", 2.0, 5.0], "-5", False, "a sign stands next to its digits"),
    ("3-5", ["3-5", 3.0, -5.0], "-5", True, "a hyphen is a sign"),
    ("about 50%", ["about 50%", 50.0], "50%", True, "text in text"),
    ("about 50%", ["about 50%", 50.0], "50", True, "number equals number"),
    ("12abc", ["12abc"], "12", False, "a number needs a word's end, and is never sought in a text"),
    ("The result is 5e3 m", ["5e3 m", 5000.0, 3.0], "5000", True, "exponent form, then the plain form finds its tail"),
    ("1.5e-3 mol", ["1.5e-3 mol", 0.0, 1.0, -3.0], "0.0015", True, "rounds to 0.0, as the expected answer does"),
    ("Paris", ["paris"], ["London", "Paris"], True, "case aside, any expected answer will do"),
    ("The capital is Paris, France", ["paris, france"], "Paris", True, "text in text"),
    ("Y", [" y", "y "], "y", True, "a lone character gets a space on either side"),
    ("This is a yes", ["a yes"], "a", True, "'a ' begins the text"),
    ("the car", ["the car"], "c", True, "' c' is in the text, though c was not meant"),
    ("scar", ["scar"], "c", False, "c inside a word does not count"),
    ("infinity", [math.inf], "inf", True, "float reads it"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("response", "parsed", "expected", "is_right", "why"), OPEN, ids=[f"{row[0]!r}-{row[2]}" for row in OPEN]
)
def test_mmmu_open_like_the_official_parser(
    response: str, parsed: list[str | float], expected: Any, is_right: bool, why: str
):
    assert mmmu.parse_open_response(response) == parsed, why
    assert mmmu.eval_open(expected, parsed) is is_right, why


def test_mmmu_multi_choice_is_right_when_equal():
    assert mmmu.eval_multi_choice("B", "B")
    assert mmmu.eval_multi_choice(["A", "B"], "B")
    assert not mmmu.eval_multi_choice("AB", "B")
    assert not mmmu.eval_multi_choice("b", "B")


def summarize(metric: Metric, answers: list[tuple[Question, str]]) -> list[Measure]:
    scored = [Scored(question, answer, metric.score(answer, question)) for question, answer in answers]
    return metric.summarize(scored)


def group_means(measures: list[Measure], dimension: str) -> dict[str, tuple[float, int]]:
    """The mean and the number of samples of each group of a dimension."""
    return {
        measure.group[1]: (measure.estimate.mean, measure.estimate.n)
        for measure in measures
        if measure.group and measure.group[0] == dimension
    }


def mmmu_question(question_id: str, answer: str, options: tuple[str, ...] = ("cat", "dog")) -> Question:
    subject = subject_of(question_id)
    groups = {"discipline": DISCIPLINE_OF_SUBJECT[subject], "subject": subject}
    return Question(question_id, ["?"], answer, options, groups)


def test_mmmu_weights_subjects_by_size():
    measures = summarize(
        MMMU_METRIC,
        [
            (mmmu_question("validation_Art_1", "A"), "A"),
            (mmmu_question("validation_Art_2", "A"), "B"),
            (mmmu_question("validation_Art_Theory_1", "B"), "(B)"),
            (mmmu_question("validation_Math_12", "7", ()), "7"),
            (mmmu_question("validation_Diagnostics_and_Laboratory_Medicine_3", "B"), "A"),
        ],
    )
    assert (measures[0].estimate.mean, measures[0].estimate.n) == (3 / 5, 5)
    assert group_means(measures, "discipline") == {
        "Art and Design": (2 / 3, 3),
        "Science": (1.0, 1),
        "Health and Medicine": (0.0, 1),
    }
    assert group_means(measures, "subject") == {
        "Art": (1 / 2, 2),
        "Art_Theory": (1.0, 1),
        "Math": (1.0, 1),
        "Diagnostics_and_Laboratory_Medicine": (0.0, 1),
    }


def test_mmmu_guesses_are_unread_and_open_answers_are_not():
    assert MMMU_METRIC.score("?", mmmu_question("dev_Music_1", "A")).unread
    assert MMMU_METRIC.score("(A)", mmmu_question("dev_Music_1", "A")).unread is None
    assert MMMU_METRIC.score("?", mmmu_question("dev_Music_1", "7", ())).unread is None


def test_mmmu_has_six_disciplines_and_thirty_subjects():
    assert len(mmmu.SUBJECTS_OF_DISCIPLINE) == 6
    assert len(mmmu.DISCIPLINE_OF_SUBJECT) == 30


CUBES = ["The red cube", "The blue cube", "red", "The ball isn't there"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        # 1. a letter alone
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("[B]", "B"), ("B.", "B"), ("B)", "B"), (" B\n", "B"),
        ("**B**", "B"), ('"B"', "B"),
        ("E", None), ("", None), ("?", None),
        # 2. an option's text
        ("the  BLUE cube.", "B"), ("Red", "C"), ("The ball isn't there", "D"),
        # 3. an announced letter
        ("Answer: B", "B"), ("answer: b", "B"), ("The correct answer is (b), clearly", "B"),
        ("**Answer:** C", "C"), ("Option C fits", "C"),
        ("Answer: A, or rather, the answer is B", "B"), ("So $\\boxed{D}$", "D"), ("The answer is: B", "B"),
        ("Answer: A because it is", "A"),
        ("Answer: B or C", None), ("Answer: A man", None), ("The answer is a mystery", None),
        ("The answer is not B", None),
        ("Answer: E", None), ("Answer: Blue", None), ("Answer: C, I think", "C"), ("Answer: B/C", None),
        ("The answer is Option B.", "B"),
        # 4. a letter at the start
        ("B. The blue cube", "B"), ("B: something", "B"), ("B) something", "B"), ("**B.** something", "B"),
        ("C\nIt is small.", "C"),
        ("B) or C)", None), ("B, C", None), ("A or B", None),
        # 5. a letter in brackets
        ("(B) The blue cube", "B"), ("I choose (B), surely", "B"), ("(B) is better than (C)", None),
        ("(B), certainly (B)", "B"),
        # 6. an option's text inside the answer
        ("It is the blue cube, I think", "B"), ("I see the red cube.", "A"), ("something red there", "C"),
        ("the red cube or the blue cube", None),
        ("the red cube is red", None), ("It is not the red cube", None), ("I say: the ball isn't there!", "D"),
        ("a bored red-haired man", None),
        ("Vitamin C", None),
    ],
)  # fmt: skip
def test_extract_letter(answer: str, letter: str | None):
    assert extract_letter(answer, CUBES) == letter


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        ("It costs 5.2 dollars", ["5", "2"], None),
        ("It is -5 degrees", ["5", "-5"], "B"),
        ("about 5% of it", ["5", "50"], None),
        ("I use C++ here", ["C", "C++"], "B"),
        ("same", ["same", "same"], None),
        ("it is the same", ["same", "same"], None),
        ("a picture", ["", ""], None),
        ("J", [str(number) for number in range(10)], "J"),
    ],
)
def test_extract_letter_with_awkward_texts(answer: str, options: list[str], letter: str | None):
    assert extract_letter(answer, options) == letter


@pytest.mark.parametrize(
    ("answer", "coordinates", "box"),
    [
        ("[10, 20, 30, 40]", "pixels", (10, 20, 30, 40)),
        ("It is at [10,20.5 ,30, 40.].", "pixels", (10, 20.5, 30, 40)),
        ("[0.1, 0.2, 0.5, 1]", "normalized", (20, 20, 100, 100)),
        ("[.1, -0.2, .5, 1.0] or [0, 0, 1, 1]", "normalized", (20, -20, 100, 100)),
        ("[100, 200, 500, 999]", "digits", (20, 20, 100, 99.9)),
        ("[1, 02, 5, 8]", "digits", (20, 2, 100, 80)),  # "5" and "500" are both 0.5; "02" is 0.02
        ("[0, 0.2, 0.5, 1]", "digits", (0, 20, 100, 100)),  # one decimal: all are taken as written
        ("[30, 20, 10, 40]", "pixels", None),
        ("[10, 20, 30]", "pixels", None),
        ("[10, 20, 30, 40, 50]", "pixels", None),
        ("10, 20, 30, 40", "pixels", None),
        ("there is none", "pixels", None),
        (f"[0, 0, {'9' * 400}, 1]", "pixels", None),
    ],
)
def test_parse_box(answer: str, coordinates: boxes.Coordinates, box: tuple[float, ...] | None):
    parsed = parse_box(answer, 200, 100, coordinates)
    assert parsed == (None if box is None else pytest.approx(box))


def test_unpad_square():
    # 200x100 padded to 200x200: 50 rows above and below.
    assert unpad_square(Box(10, 60, 20, 150), 200, 100) == (10, 10, 20, 100)
    assert unpad_square(Box(60, 10, 150, 20), 100, 200) == (10, 10, 100, 20)


@pytest.mark.parametrize(
    ("first", "second", "continuous", "inclusive"),
    [
        (Box(0, 0, 10, 10), Box(0, 0, 10, 10), 1, 1),
        (Box(0, 0, 10, 10), Box(5, 5, 15, 15), 25 / 175, 36 / 206),  # 121 + 121 - 36
        (Box(0, 0, 10, 10), Box(10, 0, 20, 10), 0, 11 / 231),  # the touching column is shared
        (Box(0, 0, 10, 10), Box(11, 0, 20, 10), 0, 0),
        (Box(0, 0, 10, 10), Box(2, 2, 4, 4), 4 / 100, 9 / 121),
        (Box(5, 5, 5, 5), Box(5, 5, 5, 5), 0, 1),  # a point, or one pixel
    ],
)
def test_box_iou_in_both_conventions(first: Box, second: Box, continuous: float, inclusive: float):
    for a, b in [(first, second), (second, first)]:
        assert box_iou(a, b, "continuous") == pytest.approx(continuous)
        assert box_iou(a, b, "inclusive") == pytest.approx(inclusive)


def test_box_accuracy_includes_the_threshold_and_counts_no_box_as_wrong():
    expected = [Box(0, 0, 2, 1)] * 4
    predicted = [
        Box(0, 0, 2, 1),
        Box(0, 0, 1, 1),
        None,
        Box(1, 0, 3, 1),
    ]  # IoU 1, 1/2, none, 1/3; inclusive 1, 4/6, none, 4/8
    assert box_accuracy(predicted, expected, "continuous") == 2 / 4
    assert box_accuracy(predicted, expected, "inclusive") == 3 / 4
    assert box_accuracy(predicted, expected, "continuous", threshold=0.6) == 1 / 4


def video_question(duration: str, domain: str, sub_category: str, task_type: str) -> Question:
    groups = {"duration": duration, "domain": domain, "sub_category": sub_category, "task_type": task_type}
    return Question("", ["?"], "A", ("cat", "dog"), groups)


def test_video_mme_breakdowns():
    measures = summarize(
        VIDEO_MME_METRIC,
        [
            (video_question("long", "Knowledge", "Astronomy", "OCR Problems"), "A"),
            (video_question("short", "Knowledge", "Law", "Counting Problem"), "B"),
            (video_question("short", "Multilingual", "Multilingual", "Counting Problem"), "A"),
        ],
    )
    assert (measures[0].estimate.mean, measures[0].estimate.n) == (2 / 3, 3)
    assert list(group_means(measures, "duration").items()) == [("short", (1 / 2, 2)), ("long", (1.0, 1))]
    assert group_means(measures, "domain") == {"Knowledge": (1 / 2, 2), "Multilingual": (1.0, 1)}
    assert group_means(measures, "sub_category") == {
        "Astronomy": (1.0, 1),
        "Law": (0.0, 1),
        "Multilingual": (1.0, 1),
    }
    assert group_means(measures, "task_type") == {"OCR Problems": (1.0, 1), "Counting Problem": (1 / 2, 2)}


def test_video_mme_has_six_domains_thirty_sub_categories_and_twelve_task_types():
    names = (videomme.DOMAINS, videomme.SUB_CATEGORIES, videomme.TASK_TYPES)
    assert [len(set(group)) for group in names] == [6, 30, 12]


NOT_TEXT: Any = None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mmmu.parse_multi_choice_response(NOT_TEXT, ["a"], "q"), "Got None"),
        (lambda: mmmu.parse_multi_choice_response("B", [], "q"), "Got 0 options"),
        (lambda: mmmu.parse_multi_choice_response("B", "cat", "q"), "Expected a list"),
        (lambda: mmmu.parse_multi_choice_response("A", ["a"], NOT_TEXT), "question id"),
        (lambda: mmmu.parse_open_response(NOT_TEXT), "response"),
        (lambda: mmmu.eval_open([], [1.0]), "no expected answer"),
        (lambda: mmmu.eval_open(NOT_TEXT, [1.0]), "expected answer"),
        (lambda: mmmu.eval_multi_choice([], "A"), "no expected answer"),
        (lambda: mmmu.subject_of("validation_Musik_1"), "Did you mean 'Music'"),
        (lambda: mmmu.subject_of("7"), "<split>_<subject>_<number>"),
        (lambda: extract_letter(NOT_TEXT, ["a"]), "answer"),
        (lambda: extract_letter("B", ["a"] * 27), "Got 27 options"),
        (lambda: parse_box(NOT_TEXT, 1, 1, "pixels"), "answer"),
        (lambda: parse_box("[0, 0, 1, 1]", 0, 1, "pixels"), "0x1"),
        (lambda: parse_box("[0, 0, 1, 1]", 1, 1, "normalised"), "Did you mean 'normalized'"),  # pyright: ignore[reportArgumentType]
        (lambda: box_iou(Box(2, 0, 1, 1), Box(0, 0, 1, 1), "continuous"), "x1 <= x2"),
        (lambda: box_iou(Box(0, 0, math.nan, 1), Box(0, 0, 1, 1), "continuous"), "finite"),
        (lambda: box_iou(Box(0, 0, 1, 1), Box(0, 0, 1, 1), "inklusive"), "Did you mean 'inclusive'"),  # pyright: ignore[reportArgumentType]
        (lambda: box_accuracy([], [], "continuous"), "at least one"),
        (lambda: box_accuracy([None], [Box(0, 0, 1, 1)], "continuous", threshold=50), "at most 1"),
        (
            lambda: VIDEO_MME_METRIC.score("A", video_question("Short", "Knowledge", "Law", "OCR Problems")),
            "Did you mean 'short'",
        ),
    ],
)
def test_invalid_input_is_named(call: Any, message: str):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        call()
