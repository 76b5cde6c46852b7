"""lmms-eval's shared reader of letters, for MLVU. Source: `extract_mcq_answer` of lmms-eval 0.7.3.

MLVU's own `choice_bench.py` (JUNJIE99/MLVU) reads less: the character before the first ")", or else an answer that is
the letter alone. lmms-eval 0.3.0 takes the first capital from A to D, as `videomme.py` does.
"""

from typing import NamedTuple

from vila_eval.metric import Score
from vila_eval.metrics.choices.scoring import letter_score, option_letters
from vila_eval.metrics.inputs import require_text
from vila_eval.task import Question

_ANSWER_PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is"),
    *("the best answer is", "best answer is"),
    *("the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is"),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_RANK_OF_FORM = {"({})": 6, "{}.": 5, "{}:": 4, "{})": 3, "{} ": 2}


class _Candidate(NamedTuple):
    """A letter found in an answer. The highest rank wins, then the last position."""

    rank: int
    position: int
    letter: str


def extract_lmms_choice(answer: str, letters: str) -> str | None:
    """Return the best candidate for the letter, the last of equally good ones.

    From best to worst: alone at the start; alone at the end; any capital, even inside a word, after "answer is",
    "i choose" and the like; "(B)"; "B."; "B:"; "B)"; "B "; anywhere. "The answer is B because A is wrong" gives "A".
    """
    text = require_text(answer, "answer").strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    core = text.strip()
    text = f" {text} "
    candidates = [
        *_candidates_by_form(text, letters),
        *_candidates_after_phrases(text, letters),
        *(_Candidate(10, 0, letter) for letter in letters if core[:1] == letter and not core[1:2].isalpha()),
        *(_Candidate(9, len(text), letter) for letter in letters if core[-1:] == letter and not core[-2:-1].isalpha()),
    ]
    anywhere = [_Candidate(0, text.rfind(letter), letter) for letter in letters if letter in text]
    best = max(candidates or anywhere, key=lambda candidate: candidate[:2], default=None)
    return best.letter if best else None


def _candidates_by_form(text: str, letters: str) -> list[_Candidate]:
    return [
        _Candidate(rank, text.rfind(form.format(letter)), letter)
        for form, rank in _RANK_OF_FORM.items()
        for letter in letters
        if form.format(letter) in text
    ]


def _candidates_after_phrases(text: str, letters: str) -> list[_Candidate]:
    candidates: list[_Candidate] = []
    for phrase in _ANSWER_PHRASES:
        start = text.lower().find(phrase)
        if start >= 0:
            positions = {letter: text.find(letter, start + len(phrase)) for letter in letters}
            candidates += [_Candidate(7, position, letter) for letter, position in positions.items() if position >= 0]
    return candidates


def score_lmms_choice(answer: str, question: Question) -> Score:
    """Score the letter that `extract_lmms_choice` reads."""
    return letter_score(extract_lmms_choice(answer, option_letters(question)), question)
