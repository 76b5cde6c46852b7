"""Captions scored as they stand: BLEU, ROUGE-L and CIDEr of COCO's scorers on words split at spaces, case and punctuation kept.

COCO tokenizes first (`vila_eval.metrics.captions`). The reference does not, for PathVQA and WidgetCap, so "Red." is not "red" there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vila_eval.metric import Measure, Score, Scored, exact
from vila_eval.metrics.captions import Corpus, score_corpora
from vila_eval.metrics.inputs import require_answers, require_text
from vila_eval.task import Question

NOTHING = "dummy text"
"""Stands for an empty answer, as in the reference; it matters to the lengths that BLEU compares."""


def measure_raw_captions(samples: Sequence[Scored], measures: Sequence[str]) -> list[Measure]:
    """Return measures, times 100, of all samples as one corpus. `Question.answer` is a reference or several.

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
    """`measure_raw_captions` of all answers; one by itself has no score, for document frequencies and lengths are the corpus's."""

    name: str
    measures: tuple[str, ...]

    def score(self, answer: str, question: Question) -> Score:
        require_text(answer, "caption")
        require_answers(question.answer)
        return Score({})

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        return measure_raw_captions(samples, self.measures)
