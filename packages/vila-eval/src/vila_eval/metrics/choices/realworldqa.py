"""RealWorldQA: the letter of the first option text found in the answer, else the answer itself.

Source: `flexible-extract` and `realworldqa_process_results` in lmms-eval (commit 001eca0).
"""

import re

from vila_eval.metric import MeanMetric, Score
from vila_eval.metrics.exact_match import DIGITS_OF_WORDS
from vila_eval.metrics.inputs import require_text
from vila_eval.task import Question

_OPTION = re.compile(r"\b[A-Z]\.\s+([^\n]*)")


def extract_option(answer: str, question: str) -> str:
    r"""Return the letter of the option whose text is in `answer`, else `answer` without punctuation.

    1. An answer that is just a number word from zero to ten becomes its digits.
    2. Options are read from `question` by `\b[A-Z]\.\s+([^\n]*)` and lettered A, B, … in order, whatever letters they
       have there. Of two options with the same text, the later one counts.
    3. Everything but letters, digits, `_` and white space is deleted from the answer, then outer white space.
    4. The first option text found in it, case-sensitive and inside words too, gives the letter: leftmost first, then in
       the order of the options. An option that contains punctuation can therefore never be found.
    """
    answer = require_text(answer, "answer")
    options = [text.strip() for text in _OPTION.findall(question)]
    letters = {text: chr(ord("A") + index) for index, text in enumerate(options)}
    bare = re.sub(r"[^\w\s]", "", DIGITS_OF_WORDS.get(answer.lower(), answer)).strip()
    found = re.search("|".join(map(re.escape, options)), bare)
    return letters.get(found[0], bare) if found else bare


def flexible_extract_match(answer: str, question: str, reference: str) -> float:
    """Return 1.0 if `extract_option(answer, question)` equals `reference`, else 0.0.

    Case, outer white space and full stops at the end of the answer are ignored.
    """
    return float(extract_option(answer, question).lower().strip().rstrip(".") == reference.lower().strip())


def _score(answer: str, question: Question) -> Score:
    asked = require_text(question.fields.get("question"), "field 'question'")
    return Score({"exact_match": flexible_extract_match(answer, asked, question.answer)}, extract_option(answer, asked))


FLEXIBLE_EXTRACT = MeanMetric("flexible_extract", _score)
"""`Question.fields["question"]` holds the question with its options."""
