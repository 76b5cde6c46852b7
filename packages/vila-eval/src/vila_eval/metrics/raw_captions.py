"""Captions scored without tokenization: BLEU, ROUGE-L and CIDEr on words split at spaces, with case and punctuation.

COCO tokenizes first (`vila_eval.metrics.captions`). For PathVQA and WidgetCap VILA does not, so "Red." differs from
"red" there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vila_eval.metric import Measure, Score, Scored, exact
from vila_eval.metrics.captions import Corpus, score_corpora
from vila_eval.metrics.inputs import require_answers, require_text
from vila_eval.task import Question

NOTHING = "dummy text"
"""Replaces an empty answer, as in VILA; it affects the lengths that BLEU compares."""


def measure_raw_captions(samples: Sequence[Scored], measures: Sequence[str]) -> list[Measure]:
    """Return the measures, times 100, of all samples as one corpus. `Question.answer` is one reference or several.

    Raises `MissingDependencyError` without pycocoevalcap.
    """
    corpus = Corpus(
        [sample.answer or NOTHING for sample in samples],
        [require_answers(sample.question.answer) for sample in samples],
    )
    scores = score_corpora([corpus], measures)
    return [Measure(name, exact(100 * scores[name][0], len(samples)), unit="points") for name in measures]


@dataclass(frozen=True)
class RawCaptionMetric:
    """`measure_raw_captions` of all answers. A single answer has no score: frequencies and lengths are the corpus's."""

    name: str
    measures: tuple[str, ...]

    def score(self, answer: str, question: Question) -> Score:
        require_text(answer, "caption")
        require_answers(question.answer)
        return Score({})

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        return measure_raw_captions(samples, self.measures)
