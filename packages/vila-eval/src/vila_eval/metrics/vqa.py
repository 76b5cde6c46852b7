"""VQA accuracy, and the answer processing that is part of its definition."""

import re
from collections.abc import Callable, Iterable

from vila_core.errors import ConfigError
from vila_eval.metric import MeanMetric
from vila_eval.metrics.exact_match import DIGITS_OF_WORDS
from vila_eval.metrics.inputs import require_answers, require_text

_DIGITS = {"none": "0"} | DIGITS_OF_WORDS
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # neither apostrophe nor colon: "woman's", "10:30"
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
# Published as (?!<=\d)(\.)(?!\d), a typo for (?<!\d): the first group looks ahead for the text "<=" and always passes.
_PERIOD = re.compile(r"\.(?!\d)")
# Published as sub("", text, re.UNICODE), whose third argument is a count: re.UNICODE is 32.
_MOST_PERIODS = 32

# Every contraction in the published table, except I'm, I've and I'd've, which no lower-cased word can match.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _repairs(contractions: Iterable[str]) -> dict[str, str]:
    """Map each contraction that lacks one of its apostrophes to the complete one, as the published table does."""
    repairs = {
        whole[:at] + whole[at + 1 :]: whole
        for whole in contractions
        for at, letter in enumerate(whole)
        if letter == "'"
    }
    return repairs | {"somebody'd": "somebodyd"}  # the published table has this one reversed


_REPAIRS = _repairs(_CONTRACTIONS.split())


def process_vqa_answer(text: str) -> str:
    r"""Normalize an answer as the VQA v2 evaluation does; for VQAv2.

    In order: newlines and tabs become spaces, and outer white space is stripped; each of ``;/[]"{}()=+\_-><@`,?!`` is
    deleted if it is next to a space anywhere in the answer or if the answer has a comma between digits, and otherwise
    becomes a space; periods not before a digit are deleted (at most 32); words are lower-cased; number words from none
    (0) to ten become digits; the articles a, an and the are deleted; a missing apostrophe of a contraction is added.

    Source: `processPunctuation` and `processDigitArticle` of `vqaEval.py` in GT-Vision-Lab/VQA (commit a013f00),
    including its mistakes.
    """
    words = (_DIGITS.get(word, word) for word in strip_punctuation(_strip(text)).lower().split())
    return " ".join(_REPAIRS.get(word, word) for word in words if word not in _ARTICLES)


def process_evalai_answer(text: str) -> str:
    """Normalize an answer as EvalAI does for TextVQA and VizWiz: `process_vqa_answer` after an extra first pass.

    That pass lower-cases, deletes every "," and "?" and inserts a space before "'s": "red,blue" gives "redblue" here
    and "red blue" in `process_vqa_answer`. Source: `EvalAIAnswerProcessor` of facebookresearch/mmf, as lmms-eval copies
    it.
    """
    return process_vqa_answer(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(text: str) -> str:
    """Delete punctuation marks or replace them by spaces, as described at `process_vqa_answer`."""
    result = text
    has_comma = _COMMA_BETWEEN_DIGITS.search(text) is not None
    for mark in _PUNCTUATION:
        is_deleted = has_comma or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if is_deleted else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def vqa_accuracy(
    prediction: str, answers: list[str] | tuple[str, ...], process: Callable[[str], str] = process_vqa_answer
) -> float:
    """Return the mean over annotators of min(n / 3, 1), where n of the others gave the predicted answer; in [0, 1].

    With ten answers, 0, 1, 2, 3 and 4 or more matches score 0, 0.3, 0.6, 0.9 and 1. `process` is applied to both sides;
    use `process_evalai_answer` for TextVQA and VizWiz. An empty prediction (a failed sample) scores 0; in the published
    code it equals references such as "a" and "the", of which processing leaves nothing.

    Source: Antol et al. 2015 (arXiv 1505.00468) and visualqa.org/evaluation. Raises `ConfigError` for fewer than four
    answers, since none could then reach 1.
    """
    answers = _several(answers)
    if not require_text(prediction, "prediction").strip():
        return 0.0
    return _leave_one_out(process(prediction), [process(answer) for answer in answers])


def published_vqa_accuracy(prediction: str, answers: list[str] | tuple[str, ...]) -> float:
    """Return `vqa_accuracy` as the VQA v2 script computes it: without processing if all annotators agree; in [0, 1].

    The reply "Yes" then scores 0 against ten times "yes", so use this for replies that are already processed, or to
    agree with that script. lmms-eval's VQAv2 does not agree: 0.7.3 always processes, as `vqa_accuracy` does, and 0.3.0
    applies EvalAI's processing to the reply first. Source: `evaluate` of `vqaEval.py` in GT-Vision-Lab/VQA (commit
    a013f00).
    Raises `ConfigError` for fewer than four answers.
    """
    answers = [_strip(answer) for answer in _several(answers)]
    prediction = _strip(require_text(prediction, "prediction"))
    return _leave_one_out(prediction, answers) if len(set(answers)) == 1 else vqa_accuracy(prediction, answers)


def _several(answers: list[str] | tuple[str, ...]) -> list[str]:
    if isinstance(answers, str):
        raise ConfigError(
            f"VQA accuracy got one string, {answers!r}, as the answers; expected a list of answers, usually ten."
        )
    if len(answers) < 4:
        raise ConfigError(
            f"VQA accuracy got {len(answers)} answers; expected at least 4, usually ten. Use exact_match for fewer."
        )
    return require_answers(answers)


def _leave_one_out(given: str, answers: list[str]) -> float:
    matches = answers.count(given)
    # Sum whole thirds and divide once, so that ten out of ten give exactly 1.0.
    thirds = sum(min(matches - (answer == given), 3) for answer in answers)
    return thirds / (3 * len(answers))


VQA_ACCURACY = MeanMetric("vqa_accuracy", lambda answer, question: vqa_accuracy(answer, question.answer))
EVALAI_VQA_ACCURACY = MeanMetric(
    "evalai_vqa_accuracy", lambda answer, question: vqa_accuracy(answer, question.answer, process_evalai_answer)
)
"""VQA accuracy after `process_evalai_answer`; for TextVQA and VizWiz."""
