"""Exact match: strict, blind to case and punctuation, and after lmms-eval's flexible-extract."""

import re
import string

from vila_eval.metric import MeanMetric, Score
from vila_eval.metrics.inputs import require_answers, require_text
from vila_eval.task import Question

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS_OF_WORDS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_OPTION = re.compile(r"\b[A-Z]\.\s+([^\n]*)")
_LEADING_LETTER = re.compile(r"\s*([A-Z])\.")


def exact_match(prediction: str, references: str | list[str] | tuple[str, ...]) -> float:
    """1.0 if `prediction` is one of `references`, character by character, else 0.0. A lone string is one reference.

    Source: `exact_match` of Hugging Face evaluate with its defaults. Raises `ConfigError` without references.
    """
    return float(require_text(prediction, "prediction") in require_answers(references))


def normalized_exact_match(prediction: str, references: str | list[str] | tuple[str, ...]) -> float:
    """1.0 if `prediction` is one of `references`, blind to case, punctuation and outer whitespace, else 0.0.

    Punctuation is `string.punctuation` (ASCII), deleted and not made a space: "t-shirt" equals "tshirt", not "t shirt".
    Source: GQA, AI2D and ScienceQA in lmms-eval (`exact_match` with `ignore_case` and `ignore_punctuation`). That code
    gets replies already stripped; here outer whitespace goes last. Raises `ConfigError` without references.
    """
    return float(_normalize(require_text(prediction, "prediction")) in map(_normalize, require_answers(references)))


def _normalize(text: str) -> str:
    return text.lower().translate(_WITHOUT_PUNCTUATION).strip()


def extract_leading_letter(prediction: str) -> str:
    """Return the capital letter that opens `prediction` before a full stop ("B. a cat" gives "B"), else `prediction` itself.

    Only whitespace may come before it; "B", "(B)" and "b." are returned unchanged.
    Source: `flexible-extract` of AI2D in lmms-eval, to be scored with `normalized_exact_match`.
    """
    found = _LEADING_LETTER.match(require_text(prediction, "prediction"))
    return found[1] if found else prediction


def extract_option(prediction: str, question: str) -> str:
    r"""Return the letter of the option whose text stands in `prediction`, else `prediction` without punctuation.

    1. A reply that is just a number word from zero to ten becomes its digits.
    2. Options are read from `question` by `\b[A-Z]\.\s+([^\n]*)`, and lettered A, B, … in order, whatever their letters
       are there. Of two with the same text, the later one counts.
    3. Everything but letters, digits, `_` and whitespace is deleted from the reply, then outer whitespace.
    4. The first option text found in it, case-sensitively and inside words too, gives the letter: leftmost first, then in
       order of the options. An option that holds punctuation can thus never be found.

    Source: `flexible-extract` of RealWorldQA in lmms-eval (commit 001eca0), oddities kept.
    """
    prediction = require_text(prediction, "prediction")
    options = [text.strip() for text in _OPTION.findall(question)]
    letters = {text: chr(ord("A") + index) for index, text in enumerate(options)}
    reply = re.sub(r"[^\w\s]", "", DIGITS_OF_WORDS.get(prediction.lower(), prediction)).strip()
    found = re.search("|".join(map(re.escape, options)), reply)
    return letters.get(found[0], reply) if found else reply


def flexible_extract_match(prediction: str, question: str, answer: str) -> float:
    """1.0 if `extract_option(prediction, question)` equals `answer` without case, outer whitespace and, in the reply, final stops.

    Source: RealWorldQA in lmms-eval (`realworldqa_process_results`); else 0.0.
    """
    return float(extract_option(prediction, question).lower().strip().rstrip(".") == answer.lower().strip())


def _score_leading_letter(answer: str, question: Question) -> Score:
    letter = extract_leading_letter(answer)
    found = len(letter.strip()) == 1
    return Score(
        {"exact_match": normalized_exact_match(letter, question.answer)},
        letter,
        None if found else "no letter at its start",
    )


def _score_flexible_extract(answer: str, question: Question) -> Score:
    asked = require_text(question.fields.get("question"), "field 'question'")
    return Score({"exact_match": flexible_extract_match(answer, asked, question.answer)}, extract_option(answer, asked))


EXACT_MATCH = MeanMetric("exact_match", lambda answer, question: exact_match(answer, question.answer))
NORMALIZED_EXACT_MATCH = MeanMetric(
    "normalized_exact_match",
    lambda answer, question: Score({"exact_match": normalized_exact_match(answer, question.answer)}),
)
LEADING_LETTER = MeanMetric("leading_letter", _score_leading_letter)
"""Exact match of what `extract_leading_letter` leaves, blind to case and punctuation; for AI2D."""
FLEXIBLE_EXTRACT = MeanMetric("flexible_extract", _score_flexible_extract)
"""`flexible_extract_match`; `Question.fields["question"]` holds the text with the options; for RealWorldQA."""
