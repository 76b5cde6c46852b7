"""Scoring a letter that was read from an answer: shared by all readers."""

import hashlib
from collections.abc import Callable

from vila_core.errors import ConfigError
from vila_eval.metric import MeanMetric, Score
from vila_eval.metrics.inputs import require_options
from vila_eval.task import Question

UNREAD = "no single option named"
"""`Score.unread` of an answer without a letter."""


def option_letters(question: Question) -> str:
    """Return the letters of a question's options: "ABCD" for four."""
    return "".join(chr(ord("A") + index) for index in range(len(question.options)))


def letter_score(letter: str | None, question: Question) -> Score:
    """Score the letter that was read from an answer; None, or a letter of no option, is wrong and counted as unread.

    Raises: ConfigError if `question.answer` is not the letter of an option.
    """
    letters = [chr(ord("A") + index) for index in range(len(require_options(question.options)))]
    if question.answer not in letters:
        raise ConfigError(
            f"Question '{question.id}' has {len(letters)} options and the answer {question.answer!r}. "
            f"Expected one of the letters {', '.join(letters)}."
        )
    chosen = letter if letter in letters else None
    return Score({"accuracy": float(chosen == question.answer)}, chosen, unread=None if chosen else UNREAD)


def guess_letter(letters: str, question_id: str) -> str:
    """Return a letter for a submission that must hold one, drawn by the SHA-256 of the question's id.

    It is the same in every run, order and number of workers.
    """
    # random.Random(question_id).choice may draw differently in another Python version.
    return letters[int.from_bytes(hashlib.sha256(question_id.encode(errors="surrogatepass")).digest()) % len(letters)]


def letter_metric(name: str, read: Callable[[str, Question], str | None]) -> MeanMetric:
    """Return the accuracy of the letters that `read` finds in answers. An answer without a letter is wrong."""
    return MeanMetric(name, lambda answer, question: letter_score(read(answer, question), question))
