"""How the harnesses of video benchmarks read a letter out of an answer: each rule is its benchmark's own, oddities kept.

Rules that draw a random letter from an answer without one do so here by the SHA-256 of the question's id, and say that it is a guess.
A `Question` has its `options`, and a letter as its answer. `multiple_choice.extract_letter` is what a new benchmark should take.
"""

import re
from collections.abc import Callable
from dataclasses import replace

from vila_eval.metric import MeanMetric, Score
from vila_eval.metrics.inputs import require_text
from vila_eval.metrics.mmmu import guess_letter, last_standing
from vila_eval.metrics.multiple_choice import letter_score
from vila_eval.metrics.vqa import strip_punctuation
from vila_eval.task import Question

_ANSWER_PREFIXES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option is", "The correct option is", "Best answer:", "Best option:"),
)
_ANSWER_PHRASES = (
    *(
        "the answer is",
        "answer is",
        "the correct answer is",
        "correct answer is",
        "the best answer is",
        "best answer is",
    ),
    *("the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is"),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_MARKED = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))


def letters_of(question: Question) -> str:
    """Return the letters of a question's options, "ABCD" for four."""
    return "".join(chr(ord("A") + index) for index in range(len(question.options)))


def extract_initial(answer: str) -> str | None:
    """Return the first character, or None: "B) red" and "Blue" give "B", "b" is no letter of an option.

    Source: Event-Bench and VNBench in the reference implementation, and `evaluation_utils.py` of joez17/VideoNIAH.
    """
    return require_text(answer, "answer").strip()[:1] or None


def extract_vila_choice(answer: str, letters: str) -> str | None:
    """Return the letter that stands last as "(B)", else as " B ", after ",", ".", "!", "?", ";", ":", "'" are stripped in this order.

    Source: `parse_choice` of the reference implementation, which then draws one at random.
    """
    text = _padded(answer)
    return last_standing(text, {letter: f"({letter})" for letter in letters}) or last_standing(
        text, {letter: f" {letter} " for letter in letters}
    )


def extract_nextqa_choice(answer: str, options: tuple[str, ...]) -> str | None:
    """Return the letter that stands last as "(B)"; else one before a space, or else before a full stop, even inside a word.

    Of several such letters the one that stands last by itself (" B ") counts, or the first if none does. An answer of more than five
    words without any may hold an option's text. Source: `parse_multi_choice_response` of NExT-QA in lmms-eval, which then draws one.
    """
    text = _padded(answer)
    letters = [chr(ord("A") + index) for index in range(len(options))]
    if bracketed := last_standing(text, {letter: f"({letter})" for letter in letters}):
        return bracketed
    for mark in " .":
        if found := [letter for letter in letters if f"{letter}{mark}" in text]:
            return found[0] if len(found) == 1 else max(found, key=lambda letter: text.rfind(f" {letter} "))
    if len(text.split()) <= 5:
        return None
    return last_standing(
        text.lower(), {letter: option.lower() for letter, option in zip(letters, options, strict=True)}
    )


def extract_longvideobench_choice(answer: str) -> str | None:
    """Return the first of the capitals A to E, even inside a word, once openings such as "The best answer is" are cut out.

    "Answer: B" thus gives "A". Source: `parse_multi_choice_response` of LongVideoBench in lmms-eval, which then draws a letter.
    """
    text = require_text(answer, "answer").strip()
    for prefix in _ANSWER_PREFIXES:
        text = text.replace(prefix, "")
    found = re.search("[A-E]", text)
    return found[0] if found else None


def extract_perceptiontest_choice(answer: str) -> str | None:
    """Return the first of the capitals A to D that stands as a word. Source: `perceptiontest_val_process_results_mc` of lmms-eval."""
    found = re.search(r"\b[A-D]\b", require_text(answer, "answer"))
    return found[0] if found else None


def extract_lmms_choice(answer: str, letters: str) -> str | None:
    """Return the best candidate for the letter, the last of equally good ones.

    From best to worst: alone at the start; alone at the end; any capital, even inside a word, after "answer is", "i choose" and the like;
    "(B)"; "B."; "B:"; "B)"; "B "; anywhere. "The answer is B because A is wrong" thus gives "A".
    Source: `extract_mcq_answer` of lmms-eval 0.7, for Video-MME and MLVU.
    """
    text = require_text(answer, "answer").strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    core = text.strip()
    text = f" {text} "
    found = [
        (rank, text.rfind(form.format(letter)), letter)
        for form, rank in _MARKED
        for letter in letters
        if form.format(letter) in text
    ]
    for phrase in _ANSWER_PHRASES:
        begin = text.lower().find(phrase)
        if begin >= 0:
            places = {letter: text.find(letter, begin + len(phrase)) for letter in letters}
            found += [(7, place, letter) for letter, place in places.items() if place >= 0]
    found += [(10, 0, letter) for letter in letters if core[:1] == letter and not core[1:2].isalpha()]
    found += [(9, len(text), letter) for letter in letters if core[-1:] == letter and not core[-2:-1].isalpha()]
    found = found or [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(found, key=lambda candidate: candidate[:2])[2] if found else None


def extract_mvbench_choice(answer: str) -> str | None:
    """Return the letter, A to E in either case, of an answer "b. a cat", or the first that stands as a word once punctuation is gone.

    "A man opens the door" thus gives "A". Source: `mcq_acc` of MVBench in lmms-eval.
    """
    text = require_text(answer, "answer").strip()
    if leading := re.match(r"([A-E])\.\s*.+$", text, re.IGNORECASE):
        return leading[1].upper()
    found = re.search(r"\b[A-E]\b", strip_punctuation(text.replace("\n", " ").replace("\t", " ")), re.IGNORECASE)
    return found[0].upper() if found else None


def _padded(answer: str) -> str:
    text = require_text(answer, "answer")
    for mark in ",.!?;:'":
        text = text.strip(mark)
    return f" {text} "


def _guessing(read: Callable[[str, Question], str | None]) -> Callable[[str, Question], Score]:
    """Let a letter be drawn where `read` finds none. A guess is counted among the unread answers, right or wrong."""

    def score(answer: str, question: Question) -> Score:
        if letter := read(answer, question):
            return letter_score(letter, question)
        guess = guess_letter(list(letters_of(question)), question.id)
        return replace(letter_score(guess, question), unread="no option found: the letter is a guess")

    return score


def score_mvbench(answer: str, question: Question) -> Score:
    """Score the letter that `extract_mvbench_choice` reads."""
    return letter_score(extract_mvbench_choice(answer), question)


def score_lmms_choice(answer: str, question: Question) -> Score:
    """Score the letter that `extract_lmms_choice` reads."""
    return letter_score(extract_lmms_choice(answer, letters_of(question)), question)


INITIAL = MeanMetric("initial", lambda answer, question: letter_score(extract_initial(answer), question))
"""Accuracy of the letters that `extract_initial` reads. The reference leaves answers without one out; here they are wrong."""
VILA_CHOICE = MeanMetric(
    "vila_choice", _guessing(lambda answer, question: extract_vila_choice(answer, letters_of(question)))
)
"""The same with `extract_vila_choice`; for EgoSchema and CinePile."""
NEXTQA_CHOICE = MeanMetric(
    "nextqa_choice", _guessing(lambda answer, question: extract_nextqa_choice(answer, tuple(question.options)))
)
"""The same with `extract_nextqa_choice`."""
LONGVIDEOBENCH_CHOICE = MeanMetric(
    "longvideobench_choice", _guessing(lambda answer, _: extract_longvideobench_choice(answer))
)
"""The same with `extract_longvideobench_choice`."""
PERCEPTIONTEST_CHOICE = MeanMetric(
    "perceptiontest_choice", lambda answer, question: letter_score(extract_perceptiontest_choice(answer), question)
)
"""The same with `extract_perceptiontest_choice`."""
