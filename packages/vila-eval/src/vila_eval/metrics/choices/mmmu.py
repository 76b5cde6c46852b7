"""MMMU (Yue et al. 2023, arXiv:2311.16502): the official answer parser.

It behaves like `mmmu/utils/eval_utils.py` of github.com/MMMU-Benchmark/MMMU (commit bb0b95a), quirks included, with one
difference: where the official parser draws a random letter, the answer is wrong and counted as unread. Submission
files, which must hold a letter, get one that depends on the question's id alone.

lmms-eval's copy is laxer: any `B` before a space or a full stop counts, even inside a word. Its scores differ.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from vila_core.errors import ConfigError, unknown_name
from vila_eval.metric import MeanMetric, Score
from vila_eval.metrics.choices.parsing import last_bracketed, last_found, last_spaced, strip_and_pad
from vila_eval.metrics.choices.scoring import UNREAD, guess_letter
from vila_eval.metrics.inputs import require_answers, require_options, require_text
from vila_eval.task import Question

# The official `mmmu/utils/data_utils.py`, in its order.
SUBJECTS_OF_DISCIPLINE = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
DISCIPLINE_OF_SUBJECT = {
    subject: discipline for discipline, subjects in SUBJECTS_OF_DISCIPLINE.items() for subject in subjects
}

_TRIVIAL = frozenset(":,.!?;'")
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBER_FORMS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,234,567
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1.5e-3
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 12, 1.5, .5; not the head of one of the above
)


class ParsedChoice(NamedTuple):
    """The letter read from an answer, and the rule that found it. `guess` is a parse failure."""

    letter: str
    rule: Literal["bracketed", "spaced", "content", "guess"]


def parse_multi_choice_response(response: str, options: Sequence[str], question_id: str) -> ParsedChoice:
    """Find the letter in an answer, as the official `parse_multi_choice_response` does. Letters are case-sensitive.

    After `strip_and_pad`, the first rule that finds a letter decides; of several letters, the one that comes last:

    1. `bracketed`: "(B)" anywhere.
    2. `spaced`: " B ", a space on each side.
    3. `content`: only if the answer has more than five words, an option's text anywhere in it, ignoring case. An empty
       option text is in every answer, at its very end. If two texts begin at the same place, the first option wins.
    4. `guess`: a letter drawn by the SHA-256 of `question_id`, the same in every run, order and number of workers.

    `options` are the option texts, option A first; `question_id` is any text that names the sample.
    Raises: ConfigError when an argument is not text, or there are not 1 to 26 options.
    """
    text = strip_and_pad(response)
    option_of = {chr(ord("A") + i): option.lower() for i, option in enumerate(require_options(options))}
    letters = "".join(option_of)
    require_text(question_id, "question id")
    if bracketed := last_bracketed(text, letters):
        return ParsedChoice(bracketed, "bracketed")
    if spaced := last_spaced(text, letters):
        return ParsedChoice(spaced, "spaced")
    if len(text.split()) > 5 and (content := last_found(text.lower(), option_of)):
        return ParsedChoice(content, "content")
    return ParsedChoice(guess_letter(letters, question_id), "guess")


def normalize(text: str) -> list[str | float]:
    """Normalise one answer as the official `normalize_str` does.

    Text that `float` reads after removing commas becomes a number rounded to two decimals ("1,234.567" -> [1234.57]).
    Other text is stripped and lower-cased; a single character becomes " x" and "x ", so that it does not match inside
    words. Raises: ConfigError when `text` is not text.
    """
    stripped = require_text(text, "answer to normalize").strip()
    try:
        return [round(float(stripped.replace(",", "")), 2)]
    except ValueError:
        lowered = stripped.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def extract_numbers(text: str) -> list[str]:
    """Return the numbers in `text` as written: first those with commas, then those with exponents, then plain ones.

    Follows the official `extract_numbers`: "1,234 or 5e3 or -.5" -> ["1,234", "5e3", "-.5"].
    Raises: ConfigError when `text` is not text.
    """
    source = require_text(text, "text with numbers")
    return [number for form in _NUMBER_FORMS for number in re.findall(form, source)]


def parse_open_response(response: str) -> list[str | float]:
    r"""Return everything that may be the answer to an open question, normalized, as `parse_open_response` does.

    1. Strip white space, then full stops; lower-case; split at line breaks. (The official code means to split at ". "
       before a capital too, but it has already lower-cased the text, so it never does.)
    2. In each line, take the text after the last occurrence of each of "could be ", "so ", "is ", "thus ",
       "therefore ", "final ", "answer " and "result " (and "=" in the last line only). The shortest of these tails is a
       key answer, unless it is empty or one of `: , . ! ? ; '`. Matches inside words count: "this 5" contains "is ".
    3. Without a key answer, the whole text is one.
    4. Key answers and the numbers in them (`extract_numbers`) are normalized (`normalize`); duplicates are dropped.

    Raises: ConfigError when `response` is not text.
    """
    text = require_text(response, "response").strip().strip(".").lower()
    lines = text.split("\n")
    tails = [
        _shortest_tail(line, (*_INDICATORS, "=") if line_number == len(lines) else _INDICATORS)
        for line_number, line in enumerate(lines, 1)
    ]
    keys = [tail for tail in tails if tail and tail not in _TRIVIAL] or [text]
    candidates = keys + [number for key in keys for number in extract_numbers(key)]
    return list(dict.fromkeys(value for candidate in candidates for value in normalize(candidate)))


def _shortest_tail(line: str, indicators: tuple[str, ...]) -> str:
    shortest = ""
    for indicator in indicators:
        if indicator in line:
            tail = line.rpartition(indicator)[2].strip()
            # The next tail replaces an empty one, as in the official code.
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def eval_multi_choice(expected: str | Sequence[str], letter: str) -> bool:
    """Return whether `letter` is an expected letter. Raises: ConfigError when no letter is expected."""
    return require_text(letter, "parsed letter") in require_answers(expected)


def eval_open(expected: str | Sequence[str], parsed: Sequence[str | float]) -> bool:
    """Return whether anything in `parsed` (from `parse_open_response`) is an expected answer, as `eval_open` does.

    An answer is right if a parsed text contains an expected text, or a parsed number equals an expected number, both
    after `normalize`. Texts and numbers are never compared with each other.
    Raises: ConfigError when no answer is expected.
    """
    answers = [value for text in require_answers(expected) for value in normalize(text)]
    texts = [answer for answer in answers if isinstance(answer, str)]
    return any(any(text in value for text in texts) if isinstance(value, str) else value in answers for value in parsed)


def subject_of(question_id: str) -> str:
    """Return the subject in an id: "validation_Art_Theory_3" -> "Art_Theory" (the official `main_eval_only.py`).

    Raises: ConfigError when the id has no known subject between its first and last underscore.
    """
    subject = "_".join(require_text(question_id, "question id").split("_")[1:-1])
    if subject not in DISCIPLINE_OF_SUBJECT:
        reason = unknown_name("MMMU subject", subject, DISCIPLINE_OF_SUBJECT)
        raise ConfigError(f"Question id '{question_id}': expected <split>_<subject>_<number>. {reason}")
    return subject


def _score(answer: str, question: Question) -> Score:
    expected = require_answers(question.answer)
    if not question.options:
        return Score({"accuracy": float(eval_open(expected, parse_open_response(answer)))})
    parsed = parse_multi_choice_response(answer, question.options, question.id)
    if parsed.rule == "guess":
        return Score({"accuracy": 0.0}, unread=UNREAD)
    return Score({"accuracy": float(eval_multi_choice(expected, parsed.letter))}, parsed=parsed.letter)


MMMU_METRIC = MeanMetric("mmmu", _score)
"""Accuracy, overall and by group. A question with options expects a letter; an open one expects one or more texts."""
