"""PathVQA's two scores: words shared by the answer and the reference, as LLaVA-Med and VILA compute them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vila_eval.metric import MeanMetric, Measure, Score, Scored, mean_measures
from vila_eval.metrics.inputs import require_text
from vila_eval.metrics.raw_captions import measure_raw_captions
from vila_eval.task import Question

_WHOLE_NUMBER = re.compile(r"\b\d{1,100}\b")
_NOT_LETTERS = re.compile("[^a-zA-Z ]")
_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (10**3, "thousand"))


def count_words(text: str) -> Counter[str]:
    """Return the words of a text with their counts.

    Whole numbers of at most 100 digits are spelled out ("21" is "twenty-one"), then everything but ASCII letters and
    spaces is deleted ("twentyone"), line breaks too, and the rest is lower-cased. Source: `split_sentence` of
    `llava/eval/pathvqa.py` in NVlabs/VILA.
    """
    spelled = _WHOLE_NUMBER.sub(lambda found: spell_number(int(found[0])), require_text(text, "text"))
    return Counter(_NOT_LETTERS.sub("", spelled).lower().split())


def spell_number(number: int) -> str:
    """Spell a non-negative whole number in British English: 1105 is "one thousand, one hundred and five".

    Source: the package num2words.
    """
    if number < 20:
        return _SMALL[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return _TENS[tens] + (f"-{_SMALL[rest]}" if rest else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_SMALL[hundreds]} hundred" + (f" and {spell_number(rest)}" if rest else "")
    scale, name = next((scale, name) for scale, name in _SCALES if number >= scale)
    many, rest = divmod(number, scale)
    return f"{spell_number(many)} {name}" + (f"{', ' if rest >= 100 else ' and '}{spell_number(rest)}" if rest else "")


def word_exact_match(answer: str, reference: str) -> float:
    """Return the number of distinct words shared with the reference / the number of words of the answer.

    LLaVA-Med calls this "exact match": "yes" for "yes" is 1, "yes it is" is 1/3. An answer without words scores 0.
    """
    said, expected = count_words(answer), count_words(reference)
    return len(said.keys() & expected.keys()) / said.total() if said else 0.0


def word_f1(answer: str, reference: str) -> float:
    """Return F1 = 2PR / (P + R) of words, 0 if there are none or none in common.

    P = hits / words of the answer, R = hits / (hits + misses): hits are occurrences of reference words in the answer,
    misses are occurrences of the other words in the reference.
    """
    said, expected = count_words(answer), count_words(reference)
    hits = sum(count for word, count in said.items() if word in expected)
    misses = sum(count for word, count in expected.items() if word not in said)
    return 2 * hits / (said.total() + hits + misses) if hits else 0.0


def _score(answer: str, question: Question) -> Score:
    return Score({"exact_match": word_exact_match(answer, question.answer), "f1": word_f1(answer, question.answer)})


WORD_OVERLAP = MeanMetric("word_overlap", _score)
"""LLaVA-Med's "exact match" and F1, both over words."""


@dataclass(frozen=True)
class PathVqaMetric:
    """PathVQA: "exact match" and F1 over words, overall and by group, and BLEU-1 to 3 of the free-form answers."""

    name: str = "pathvqa"

    def score(self, answer: str, question: Question) -> Score:
        return _score(answer, question)

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        free_form = [sample for sample in samples if sample.question.groups["answer_type"] == "free-form"]
        bleu = measure_raw_captions(free_form, ("bleu_1", "bleu_2", "bleu_3")) if free_form else []
        return [*mean_measures(samples), *(replace(measure, group=("answer_type", "free-form")) for measure in bleu)]


PATHVQA_METRIC = PathVqaMetric()
