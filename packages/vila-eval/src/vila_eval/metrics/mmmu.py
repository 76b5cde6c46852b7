"""MMMU (Yue et al. 2023, arXiv:2311.16502): the official answer parser, and scores by subject and discipline.

Follows the behaviour of `mmmu/utils/eval_utils.py` of github.com/MMMU-Benchmark/MMMU (commit bb0b95a), quirks included, with one
difference: where the official parser guesses with a global generator, so that a guess depends on every sample before it,
the guess here depends on the question's id alone, and says that it is one.

lmms-eval's copy is laxer: any `B` before a space or a full stop counts, even inside a word. Its scores differ.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from vila_core.errors import ConfigError, unknown_name
from vila_eval.metric import MeanMetric, Score
from vila_eval.metrics.grouped_accuracy import Accuracy, accuracy, accuracy_by_group
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

_STRIPPED = ",.!?;:'"  # one after the other, in this order
_TRIVIAL = frozenset(":,.!?;'")
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBER_FORMS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,234,567
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1.5e-3
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 12, 1.5, .5; not the head of one of the above
)


class ParsedChoice(NamedTuple):
    """The letter that a multiple-choice answer stands for, and the rule that found it. `guess` is a parse failure."""

    letter: str
    rule: Literal["bracketed", "spaced", "content", "guess"]


class MmmuSample(NamedTuple):
    """One scored question, such as `validation_Art_Theory_3`. `rule` is its `ParsedChoice.rule`, None for an open question."""

    question_id: str
    is_correct: bool
    rule: str | None = None


class MmmuScores(NamedTuple):
    """Accuracies in [0, 1]; groups without samples are absent.

    `parse_failure_rate` is guesses / multiple-choice questions in [0, 1], or None where there are only open questions, whose
    parser never fails.
    """

    overall: Accuracy
    by_discipline: dict[str, Accuracy]
    by_subject: dict[str, Accuracy]
    parse_failures: int
    parse_failure_rate: float | None


def parse_multi_choice_response(response: str, options: Sequence[str], question_id: str) -> ParsedChoice:
    """Find the letter in an answer, as the official `parse_multi_choice_response` does. Letters are case-sensitive.

    The characters `, . ! ? ; : '` are stripped from both ends, each once and in this order, and no white space; one space is
    put at both ends. Then the first rule that finds a letter decides, and of several letters the one standing last:

    1. `bracketed`: "(B)" anywhere.
    2. `spaced`: " B ", a space on each side.
    3. `content`: only if the answer has more than five words, an option's text anywhere in it, case aside. An empty option
       text is in every answer, at its very end. Of texts that begin at one place, the first option's wins.
    4. `guess`: a letter drawn by the SHA-256 of `question_id`, the same in every run, order and number of workers.

    `options` are the option texts, first option first, and `question_id` is any text that names the sample.
    Raises: ConfigError when an argument is not text, or there are not 1 to 26 options.
    """
    text = require_text(response, "response")
    option_of = {chr(ord("A") + i): option.lower() for i, option in enumerate(require_options(options))}
    require_text(question_id, "question id")
    for character in _STRIPPED:
        text = text.strip(character)
    text = f" {text} "

    if bracketed := last_standing(text, {letter: f"({letter})" for letter in option_of}):
        return ParsedChoice(bracketed, "bracketed")
    if spaced := last_standing(text, {letter: f" {letter} " for letter in option_of}):
        return ParsedChoice(spaced, "spaced")
    if len(text.split()) > 5 and (content := last_standing(text.lower(), option_of)):
        return ParsedChoice(content, "content")
    return ParsedChoice(guess_letter(list(option_of), question_id), "guess")


def last_standing(text: str, form_of: dict[str, str]) -> str | None:
    """Return the letter whose form begins last in `text`, the first of equals, None when no form is there."""
    place_of = {letter: text.rfind(form) for letter, form in form_of.items()}
    last = max(place_of, key=lambda letter: place_of[letter])
    return last if place_of[last] >= 0 else None


def guess_letter(letters: list[str], question_id: str) -> str:
    """Return the letter that the SHA-256 of a question's id draws: the same in every run, order and number of workers."""
    # Not random.Random(question_id).choice, whose draws may change with the Python version.
    return letters[int.from_bytes(hashlib.sha256(question_id.encode(errors="surrogatepass")).digest()) % len(letters)]


def normalize(text: str) -> list[str | float]:
    """Normalise one answer as the official `normalize_str` does.

    What `float` reads once commas are gone becomes a number rounded to two decimals ("1,234.567" -> [1234.57]). Other text is
    stripped and lower-cased; a lone character becomes " x" and "x ", so that it is not found inside words.
    Raises: ConfigError when `text` is not text.
    """
    stripped = require_text(text, "answer to normalise").strip()
    try:
        return [round(float(stripped.replace(",", "")), 2)]
    except ValueError:
        lowered = stripped.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def extract_numbers(text: str) -> list[str]:
    """Return the numbers in `text` as written: those with commas, then those with exponents, then plain ones.

    As the official `extract_numbers`: "1,234 or 5e3 or -.5" -> ["1,234", "5e3", "-.5"]. Raises: ConfigError when not text.
    """
    source = require_text(text, "text with numbers")
    return [number for form in _NUMBER_FORMS for number in re.findall(form, source)]


def parse_open_response(response: str) -> list[str | float]:
    r"""Return everything that may be the answer to an open question, normalised, as the official `parse_open_response` does.

    1. Strip white space, then full stops; lower-case; split at line breaks. (The official code means to split at ". " before
       a capital too, but has lower-cased the text by then, so it never does.)
    2. In each line, after the last occurrence of each of "could be ", "so ", "is ", "thus ", "therefore ", "final ",
       "answer ", "result " (and "=" in the last line only) comes a tail; the shortest tail is a key answer, unless it is
       empty or one of `: , . ! ? ; '`. These match inside words too: "this 5" has "is ".
    3. Without a key answer, the whole text is one.
    4. Key answers and the numbers in them (`extract_numbers`) are normalised (`normalize`); duplicates go.

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
            # An empty tail is replaced by whatever comes next, as in the official code.
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def eval_multi_choice(expected: str | Sequence[str], letter: str) -> bool:
    """Tell whether `letter` equals the expected letter, or one of them. Raises: ConfigError when there is none to expect."""
    return require_text(letter, "parsed letter") in require_answers(expected)


def eval_open(expected: str | Sequence[str], parsed: Sequence[str | float]) -> bool:
    """Tell whether anything in `parsed` (from `parse_open_response`) is an expected answer, as the official `eval_open` does.

    Right if a parsed text contains an expected text, or a parsed number equals an expected number, both after `normalize`. A
    number is never sought in a text, nor a text in a number. Raises: ConfigError when no answer is expected.
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


def score(samples: Sequence[MmmuSample]) -> MmmuScores:
    """Score MMMU: right answers / answers overall, in each of six disciplines and thirty subjects, in [0, 1].

    Each question counts once, so subjects weigh by their size (the official `calculate_ins_level_acc`).
    Raises: ConfigError when there is no sample, or an id names no known subject.
    """
    correct = [sample.is_correct for sample in samples]
    subjects = [subject_of(sample.question_id) for sample in samples]
    disciplines = [DISCIPLINE_OF_SUBJECT[subject] for subject in subjects]
    rules = [sample.rule for sample in samples if sample.rule is not None]
    return MmmuScores(
        overall=accuracy(correct),
        by_discipline=accuracy_by_group("MMMU discipline", disciplines, correct, list(SUBJECTS_OF_DISCIPLINE)),
        by_subject=accuracy_by_group("MMMU subject", subjects, correct, list(DISCIPLINE_OF_SUBJECT)),
        parse_failures=rules.count("guess"),
        parse_failure_rate=rules.count("guess") / len(rules) if rules else None,
    )


def _score(answer: str, question: Question) -> Score:
    expected = require_answers(question.answer)
    if not question.options:
        return Score({"accuracy": float(eval_open(expected, parse_open_response(answer)))})
    parsed = parse_multi_choice_response(answer, question.options, question.id)
    unread = "no option found: the letter is a guess" if parsed.rule == "guess" else None
    return Score({"accuracy": float(eval_multi_choice(expected, parsed.letter))}, parsed=parsed.letter, unread=unread)


MMMU_METRIC = MeanMetric("mmmu", _score)
"""Accuracy over questions, in all and by group. A question with options expects a letter, one without a text or several."""
