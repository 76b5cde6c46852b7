"""OCRBench: is the expected text in the answer? Liu et al. 2023, arXiv:2305.07895."""

from collections.abc import Sequence
from dataclasses import dataclass

from vila_eval.metric import Measure, Score, Scored, exact, mean_measures
from vila_eval.metrics.inputs import require_answers, require_text
from vila_eval.task import Question

FORMULAS = "HME100k"
"""The source dataset whose answers are formulas."""

ABILITY_OF_TYPE = {
    "Regular Text Recognition": "Text Recognition",
    "Irregular Text Recognition": "Text Recognition",
    "Artistic Text Recognition": "Text Recognition",
    "Handwriting Recognition": "Text Recognition",
    "Digit String Recognition": "Text Recognition",
    "Non-Semantic Text Recognition": "Text Recognition",
    "Scene Text-centric VQA": "Scene Text-centric VQA",
    "Doc-oriented VQA": "Doc-oriented VQA",
    "Key Information Extraction": "Key Information Extraction",
    "Handwritten Mathematical Expression Recognition": "Handwritten Mathematical Expression Recognition",
}
"""The five parts of the published score, by question type."""


def ocrbench_match(prediction: str, references: str | list[str] | tuple[str, ...], dataset: str) -> float:
    """Return 1.0 if `prediction` contains one of `references`, inside words too, else 0.0.

    Outer white space is stripped, and line breaks count as spaces. Case is ignored, except for formulas (`dataset`
    "HME100k"), where case counts and spaces do not. Source: `example.py` of Yuliang-Liu/MultimodalOCR, as in lmms-eval.
    Raises `ConfigError` without references.
    """

    def tidy(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if dataset == FORMULAS else text.lower()

    given = tidy(require_text(prediction, "prediction"))
    return float(any(tidy(reference) in given for reference in require_answers(references)))


@dataclass(frozen=True)
class OcrBenchMetric:
    """OCRBench: accuracy (the headline), overall and by group, and the published score, right answers out of 1000.

    `Question.fields["dataset"]` names the source of the sample.
    """

    name: str = "ocrbench"

    def score(self, answer: str, question: Question) -> Score:
        return Score({"accuracy": ocrbench_match(answer, question.answer, question.fields["dataset"])})

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        accuracy, *by_group = mean_measures(samples)
        right = sum(sample.score.values["accuracy"] for sample in samples)
        return [accuracy, Measure("score", exact(right, len(samples)), unit="points"), *by_group]


OCRBENCH_METRIC = OcrBenchMetric()
