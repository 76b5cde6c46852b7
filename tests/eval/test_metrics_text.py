"""Text metrics against values computed by hand. Comments mark pitfalls of other harnesses."""

import math

import pytest

from vila_core.errors import ConfigError
from vila_eval.metrics.anls import anls, levenshtein
from vila_eval.metrics.choices.ai2d import extract_leading_letter
from vila_eval.metrics.choices.realworldqa import extract_option, flexible_extract_match
from vila_eval.metrics.exact_match import exact_match, normalized_exact_match
from vila_eval.metrics.relaxed_accuracy import relaxed_accuracy, strict_relaxed_accuracy
from vila_eval.metrics.vqa import process_evalai_answer, process_vqa_answer, published_vqa_accuracy, vqa_accuracy
from vila_eval.metrics.yes_no import (
    MME_COGNITION,
    MME_PERCEPTION,
    MmeAnswer,
    first_word_yes_no,
    mme_scores,
    mme_yes_no,
    pope_scores,
    pope_yes_no,
)


def test_exact_match_needs_equality_with_any_reference():
    assert exact_match("cat", ["dog", "cat"]) == 1.0
    assert exact_match("Cat", ["cat"]) == 0.0
    assert exact_match("cat ", ["cat"]) == 0.0


def test_a_string_is_one_reference():
    assert exact_match("c", "cat") == 0.0
    assert normalized_exact_match("Cat.", "cat") == 1.0


@pytest.mark.parametrize("metric", [exact_match, normalized_exact_match, anls])
def test_no_reference_is_an_error(metric):
    with pytest.raises(ConfigError, match="no expected answer"):
        metric("cat", [])


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("Yes.", "yes", 1.0),
        (" yes .", "yes", 1.0),
        ("t-shirt", "tshirt", 1.0),
        ("t-shirt", "t shirt", 0.0),
        ("the cat", "cat", 0.0),  # GQA keeps articles
        ("two", "2", 0.0),
    ],
)
def test_normalized_exact_match(prediction, reference, score):
    assert normalized_exact_match(prediction, [reference]) == score


@pytest.mark.parametrize(
    ("reply", "extracted"),
    [("B. a cat", "B"), ("  C.", "C"), ("B", "B"), ("b. a cat", "b. a cat"), ("(B)", "(B)"), ("It is B.", "It is B.")],
)
def test_leading_letter(reply, extracted):
    assert extract_leading_letter(reply) == extracted


QUESTION = "Which way?\nA. Left\nB. Turn right\nC. It's straight\nAnswer with the letter."


@pytest.mark.parametrize(
    ("reply", "extracted"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("Turn right.", "B"),
        ("I would go Left, or Turn right", "A"),  # leftmost in the reply
        ("turn right", "turn right"),  # option texts are case-sensitive
        ("It's straight", "Its straight"),  # punctuation is removed from the reply but not from the option: never found
        ("Leftover", "A"),  # inside a word
        ("Three", "3"),
        ("three cars", "three cars"),
    ],
)
def test_flexible_extract_of_realworldqa(reply, extracted):
    assert extract_option(reply, QUESTION) == extracted


def test_flexible_extract_without_options_and_with_letters_out_of_order():
    assert extract_option("Yes!", "Is it day?") == "Yes"
    assert extract_option("cat", "Which?\nC. cat\nD. dog") == "A"  # lettered by position
    assert flexible_extract_match("Two.", "How many cars?", "two") == 1.0
    assert flexible_extract_match("two", "How many cars?", " 2 ") == 1.0
    assert flexible_extract_match("a", QUESTION, "A") == 1.0
    assert flexible_extract_match("Turn right", QUESTION, "A") == 0.0


@pytest.mark.parametrize(
    "metric",
    [
        exact_match,
        normalized_exact_match,
        anls,
        relaxed_accuracy,
        strict_relaxed_accuracy,
        lambda p, a: vqa_accuracy(p, [a] * 10),
    ],
)
def test_a_prediction_must_be_text(metric):
    with pytest.raises(ConfigError, match="Got None"):
        metric(None, "cat")


@pytest.mark.parametrize(
    ("text", "processed"),
    [
        ("The Cat\n", "cat"),
        ("a\tman and an apple", "man and apple"),
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),  # two missing apostrophes: not in the table
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),  # the published mistake
        ("hed", "he'd"),
        ("im", "im"),  # the published key is "Im", which no lower-cased word matches
        ("were", "were"),
        ("woman's", "woman's"),
        ("10:30", "10:30"),
        ("1,000", "1000"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),  # one hyphen next to a space deletes them all
        ("1,000 and/or 2", "1000 andor 2"),  # a comma between digits deletes every mark
        ("3.5", "3.5"),
        ("3.", "3"),
        ("u.s.a.", "usa"),
        ("1.a", "1a"),
        (".5", ".5"),
        ("-5", "5"),
        ("x" + "." * 40, "x" + "." * 8),  # the published call removes at most 32
        ("yes!", "yes"),
        ("a", ""),
        ("", ""),
    ],
)
def test_vqa_answer_processing(text, processed):
    assert process_vqa_answer(text) == processed


@pytest.mark.parametrize(
    ("text", "processed"),
    [("red,blue", "redblue"), ("The dog's", "dog 's"), ("Who?me", "whome"), ("1,000", "1000"), ("Two", "2")],
)
def test_evalai_processing(text, processed):
    assert process_evalai_answer(text) == processed


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_leaves_one_out(matches, score):
    # 1: leaving out that person leaves none, any other leaves one: 9/10 * 1/3. 2: (2 * 1/3 + 8 * 2/3) / 10. 3: (3 * 2/3
    # + 7) / 10.
    assert vqa_accuracy("two", ["2"] * matches + ["dog"] * (10 - matches)) == pytest.approx(score, abs=1e-15)


def test_vqa_accuracy_processes_both_sides():
    assert vqa_accuracy("dont know.", ["Don't know"] * 10) == 1.0
    assert vqa_accuracy("redblue", ["red,blue"] * 10) == 0.0
    assert vqa_accuracy("redblue", ["red,blue"] * 10, process_evalai_answer) == 1.0


def test_published_vqa_accuracy_skips_processing_if_all_agree():
    assert published_vqa_accuracy("Yes", ["yes"] * 10) == 0.0
    assert vqa_accuracy("Yes", ["yes"] * 10) == 1.0
    assert published_vqa_accuracy("yes\n", [" yes"] * 10) == 1.0
    assert published_vqa_accuracy("The 2", ["two"] * 4 + ["three"] * 6) == 1.0


@pytest.mark.parametrize("metric", [vqa_accuracy, published_vqa_accuracy])
@pytest.mark.parametrize("answers", [[], ["cat"] * 3, "cat and dog"])
def test_vqa_accuracy_needs_a_list_of_answers(metric, answers):
    with pytest.raises(ConfigError, match="VQA accuracy got"):
        metric("cat", answers)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abc", "abc", 0), ("ab", "ba", 2)],
)
def test_levenshtein(a, b, distance):
    assert levenshtein(a, b) == levenshtein(b, a) == distance


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("cd        ", ["ab"], 0.0),  # pitfall: 0.8 when divided by the raw length
        ("ab", ["cd        "], 0.0),
        ("  Hello ", ["hello"], 1.0),
        ("a  b", ["a b"], 1.0),
        ("kitten", ["sitting"], 4 / 7),
        ("ab", ["ac"], 0.5),  # exactly the threshold counts
        ("abc", ["ade"], 0.0),  # 1/3 is below it
        ("abc", ["xyz", "abd", "ab"], 2 / 3),
        ("", ["abc"], 0.0),
        ("", [" "], 1.0),
        ("answer", "answer", 1.0),
    ],
)
def test_anls(prediction, references, score):
    assert anls(prediction, references) == pytest.approx(score, abs=1e-15)


def test_anls_threshold():
    assert anls("abc", ["ade"], threshold=0.0) == pytest.approx(1 / 3)
    assert anls("kitten", ["sitting"], threshold=0.6) == 0.0
    with pytest.raises(ConfigError, match="threshold"):
        anls("a", ["a"], threshold=50)


@pytest.mark.parametrize(
    ("prediction", "target", "published", "strict"),
    [
        ("105", "100", 1.0, 1.0),
        ("95", "100", 1.0, 1.0),
        ("106", "100", 0.0, 0.0),
        ("-100", "100", 0.0, 0.0),
        ("-96", "-100", 1.0, 1.0),
        ("Yes", "yes", 1.0, 1.0),
        ("yes", "no", 0.0, 0.0),
        ("12", "twelve", 0.0, 0.0),
        # pitfalls: the published code is wrong, the strict one is not
        ("2013", "2010", 1.0, 0.0),
        ("2010", "2010", 1.0, 1.0),
        ("2010.0", "2010", 1.0, 1.0),
        ("2200", "2150", 1.0, 1.0),  # not a year
        ("2013", "2010.5", 1.0, 1.0),
        ("2,013", "2,010", 0.0, 1.0),  # a year has no comma
        ("0.0", "0", 0.0, 1.0),
        ("0.01", "0", 0.0, 0.0),
        ("5", "5%", 0.0, 1.0),
        ("5%", "5", 0.0, 1.0),
        ("5.2 %", "5%", 1.0, 1.0),
        ("0.05", "5%", 1.0, 0.0),
        ("1,000", "1000", 0.0, 1.0),
        ("1000", "1,000", 0.0, 1.0),
        ("1,00", "100", 0.0, 0.0),
        ("1_000", "1000", 1.0, 0.0),
        ("1.05", "1", 0.0, 1.0),  # 0.05000000000000004 in binary
        (" 42.", "42", 1.0, 1.0),
        ("Blue.", "blue", 0.0, 1.0),
        ("light  blue ", "Light blue", 0.0, 1.0),
        ("nan", "nan", 0.0, 1.0),
        ("inf", "100", 0.0, 0.0),
        ("", "", 1.0, 1.0),
    ],
)
def test_relaxed_accuracy_as_published_and_strict(prediction, target, published, strict):
    assert relaxed_accuracy(prediction, target) == published
    assert strict_relaxed_accuracy(prediction, target) == strict


@pytest.mark.parametrize("metric", [relaxed_accuracy, strict_relaxed_accuracy])
def test_relaxed_accuracy_tolerance(metric):
    assert metric("110", "100", tolerance=0.1) == 1.0
    assert metric("101", "100", tolerance=0) == 0.0
    for tolerance in (-0.05, math.nan, math.inf):
        with pytest.raises(ConfigError, match="tolerance"):
            metric("1", "1", tolerance=tolerance)


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Yes, there is no dog.", "yes"),
        ("**No**", "no"),
        ("__Yes__", "yes"),
        ("There is no dog.", None),
        ("Not at all", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_first_word(reply, read):
    assert first_word_yes_no(reply) == read


def test_pope_scores_by_hand():
    # TP 2, FP 1, TN 1, and empty replies to one yes and one no.
    replies = ["Yes", "yes, two", "Yes.", "No", "", " "]
    scores = pope_scores(replies, ["yes", "yes", "no", "no", "Yes", "no"])
    assert scores.accuracy == pytest.approx(3 / 6)
    assert scores.precision == pytest.approx(2 / 3)
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(2 / 3)
    assert scores.yes_ratio == pytest.approx(3 / 6)
    assert scores.parse_failure_rate == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("There is no dog.", "no"),
        ("No, there is a dog", "no"),
        ("no", "no"),
        ("I do not see one", "no"),
        ("Yes. There is no cat.", "yes"),  # only the first sentence counts
        ("There is a dog", "yes"),
        ("Nothing", "yes"),  # not the word "no"
        ("", None),
        (" \n", None),
    ],
)
def test_pope_reads_replies_like_its_own_script(reply: str, read: str | None):
    # evaluate.py of AoiDragon/POPE, except for empty replies
    assert pope_yes_no(reply) == read


def test_pope_yes_ratio_is_of_the_replies():
    scores = pope_scores(["yes", "yes", "yes", "no"], ["yes", "no", "no", "no"])
    assert scores.yes_ratio == 0.75  # lmms-eval: 0.25
    assert scores.precision == pytest.approx(1 / 3)
    assert scores.recall == 1.0
    assert scores.f1 == pytest.approx(0.5)


def test_pope_ratios_without_a_yes_are_zero():
    scores = pope_scores(["no", "no"], ["no", "yes"])
    assert (scores.accuracy, scores.precision, scores.recall, scores.f1, scores.yes_ratio) == (0.5, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("replies", "labels"), [([], []), (["yes"], ["yes", "no"]), (["yes"], ["maybe"])])
def test_pope_rejects_invalid_input(replies, labels):
    with pytest.raises(ConfigError):
        pope_scores(replies, labels)


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("Yes.", "yes"),
        ("n", "no"),
        ("Y", "yes"),
        ("No, it is not", "no"),
        (" yes it is", "yes"),
        ("not sure", "no"),
        ("a no", "no"),
        ("I say yes", None),
        ("true", None),
        ("", None),
    ],
)
def test_mme_reads_four_characters(reply, read):
    assert mme_yes_no(reply) == read


def mme_pair(category, name, *replies):
    labels = ("Yes", "No")[: len(replies)]
    return [
        MmeAnswer(category, name, f"Is it {label}?", reply, label) for reply, label in zip(replies, labels, strict=True)
    ]


def test_mme_scores_by_hand():
    scores = mme_scores(
        [
            *mme_pair("count", "1.jpg", "yes", "no"),  # both right
            *mme_pair("count", "2.jpg", "yes", "yes"),  # one right
            *mme_pair("OCR", "1.jpg", "no", "perhaps"),  # none
            *mme_pair("code_reasoning", "1.jpg", "yes", "no"),
        ]
    )
    assert scores.categories["count"].accuracy == 0.75
    assert scores.categories["count"].accuracy_plus == 0.5
    assert scores.categories["count"].score == 125.0
    assert scores.perception == 125.0
    assert scores.cognition == 200.0
    assert "existence" in scores.missing_categories
    assert "OCR" not in scores.missing_categories


def test_a_perfect_mme_has_2000_and_800_points():
    answers = [
        answer for category in MME_PERCEPTION + MME_COGNITION for answer in mme_pair(category, "1.jpg", "yes", "no")
    ]
    scores = mme_scores(reversed(answers))
    assert (scores.perception, scores.cognition, scores.missing_categories) == (2000.0, 800.0, ())


def test_mme_names_the_missing_partner():
    with pytest.raises(
        ConfigError, match=r"'2\.jpg' of category 'count'.*'Is it Yes\?'.*partner, whose answer is 'no', is missing"
    ):
        mme_scores([*mme_pair("count", "1.jpg", "yes", "no"), *mme_pair("count", "2.jpg", "yes")])


def test_mme_rejects_invalid_input():
    pair = mme_pair("count", "1.jpg", "yes", "no")
    with pytest.raises(ConfigError, match="3 questions"):
        mme_scores([*pair, pair[0]])
    with pytest.raises(ConfigError, match="Did you mean 'count'"):
        mme_scores(mme_pair("counts", "1.jpg", "yes", "no"))
    with pytest.raises(ConfigError, match="'maybe'"):
        mme_scores([pair[0], MmeAnswer("count", "1.jpg", "Is it?", "yes", "maybe")])
    with pytest.raises(ConfigError, match="no answers"):
        mme_scores([])
