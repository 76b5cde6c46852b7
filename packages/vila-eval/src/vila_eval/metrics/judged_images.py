"""LLaVA-Bench (In-the-Wild) and MM-Vet: a judge rates an open answer about an image."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vila_eval.metric import Answered, JudgeRequest, Measure, Score, Scored, grouped, mean_measures
from vila_eval.metrics.inputs import require_text
from vila_eval.metrics.judged import JUDGE_MODEL, messages, shortened, within
from vila_eval.statistics import Estimate, estimate
from vila_eval.task import Question

LLAVA_BENCH_PROMPT = """\
[Context]
{context}

[Question]
{question}

[Assistant 1]
{reference}

[End of Assistant 1]

[Assistant 2]
{answer}

[End of Assistant 2]

[System]
{rule}

"""

LLAVA_BENCH_SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
"""System message of LLaVA's `llava/eval/eval_gpt_review_bench.py`, which asks at temperature 0.2."""

LLAVA_BENCH_RULE = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user question "
    "displayed above. The user asks the question on observing an image. For your reference, the visual content in the "
    "image is represented with a few sentences describing the image. \n"
    "Please rate the helpfulness, relevance, accuracy, level of details of their responses. Each assistant receives "
    "an overall score on a scale of 1 to 10, where a higher score indicates better overall performance.\n"
    "Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, "
    "respectively. The two scores are separated by a space.\n"
    "In the subsequent line, please provide a comprehensive explanation of your evaluation, avoiding any potential "
    "bias and ensuring that the order in which the responses were presented does not affect your judgment."
)
"""One rule for all three categories (LLaVA's `llava/eval/table/rule.json`, llava_bench_conv, _detail and _complex)."""


@dataclass(frozen=True)
class LlavaBench:
    """The model's scores relative to those of GPT-4's text-only answers, in percent: overall and per category.

    As published, this is a ratio of means, not a mean of ratios; its standard error is that of the ratio (linearized,
    as in survey statistics). `fields["context"]` holds the captions, `answer` GPT-4's answer.
    """

    name: str = "llava_in_the_wild"
    judge_model: str = JUDGE_MODEL

    def together(self, samples: Sequence[Answered]) -> Sequence[Question]:
        return [sample.question for sample in samples]  # the judge sees one sample at a time

    def requests(self, answer: str, question: Question) -> Sequence[JudgeRequest]:
        text = LLAVA_BENCH_PROMPT.format(
            context=question.fields["context"],
            question=question.prompt[-1],
            reference=require_text(question.answer, "answer of GPT-4"),
            answer=answer,
            rule=LLAVA_BENCH_RULE,
        )
        return [JudgeRequest(messages(text, LLAVA_BENCH_SYSTEM), 1024, temperature=0.2)]

    def read(self, replies: Sequence[str], answer: str, question: Question) -> Score:
        first = replies[0].strip().partition("\n")[0][:200]
        # Exactly two numbers, as in LLaVA's script: the first two of "Assistant 1: 8, Assistant 2: 7" are 1 and 8.
        found = re.fullmatch(r"[^\w-]*(\d{1,2}(?:\.\d{1,4})?)(?:\s*[,;/]\s*|\s+)(\d{1,2}(?:\.\d{1,4})?)\W*", first)
        if found is None:
            raise ValueError(f"expected two scores alone on the first line, got {shortened(replies[0])}")
        reference, score = (within(float(text), 0, 10, first) for text in found.groups())
        return Score({"score": score, "reference_score": reference}, parsed=f"{score:g} to {reference:g}")

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        relative = [Measure("relative_score", _ratio(samples), unit="points")]
        relative += [
            Measure("relative_score", _ratio(members), unit="points", group=group)
            for group, members in grouped(samples).items()
        ]
        return [*relative, *mean_measures(samples, unit="points", group_by=())]


def _ratio(samples: Sequence[Scored]) -> Estimate:
    """Return 100 × mean score / mean reference score, or 0 if every reference score is 0."""
    values = [sample.score.values for sample in samples]
    reference = sum(value["reference_score"] for value in values) / len(values)
    if reference == 0:
        return estimate([0.0] * len(values))
    ratio = sum(value["score"] for value in values) / len(values) / reference
    linear = [100 * (ratio + (value["score"] - ratio * value["reference_score"]) / reference) for value in values]
    return estimate(linear, [sample.question.cluster or sample.question.id for sample in samples])


CAPABILITIES: Mapping[str, str] = {
    "rec": "recognition",
    "ocr": "OCR",
    "know": "knowledge",
    "gen": "language generation",
    "spat": "spatial awareness",
    "math": "math",
}
"""Keys are the dataset's abbreviations."""

_MEME = (
    "Can you explain this meme? | This meme is poking fun at the fact that the names of the countries Iceland and "
    "Greenland are misleading. Despite its name, Iceland is known for its beautiful green landscapes, while Greenland "
    "is mostly covered in ice and snow. The meme is saying that the person has trust issues because the names of "
    "these countries do not accurately represent their landscapes. | "
)
_EQUATION = "What is x in the equation? | -1 <AND> -5 | "

MM_VET_PROMPT = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> in "
    "the ground truth means it is totally right only when all elements in the ground truth are present in the "
    "prediction, and <OR> means it is totally right when any one element in the ground truth is present in the "
    "prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 "
    "(totally right). Just complete the last space of the correctness score.\n"
    "\nQuestion | Ground truth | Prediction | Correctness\n"
    "--- | --- | --- | ---\n"
    f"{_EQUATION}x = 3 | 0.0\n"
    f"{_EQUATION}x = -1 | 0.5\n"
    f"{_EQUATION}x = -5 | 0.5\n"
    f"{_EQUATION}x = -5 or 5 | 0.5\n"
    f"{_EQUATION}x = -1 or x = -5 | 1.0\n"
    f"{_MEME}The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland is not "
    "very icy and Greenland isn't very green. | 0.4\n"
    f"{_MEME}The meme is using humor to point out the misleading nature of Iceland's and Greenland's names. Iceland, "
    "despite its name, has lush green landscapes while Greenland is mostly covered in ice and snow. The text 'This is "
    "why I have trust issues' is a playful way to suggest that these contradictions can lead to distrust or confusion. "
    "The humor in this meme is derived from the unexpected contrast between the names of the countries and their "
    "actual physical characteristics. | 1.0\n"
)
"""The few-shot prompt of MM-Vet's own evaluator (Yu et al. 2023, arXiv:2308.02490; yuweihao/MM-Vet)."""


@dataclass(frozen=True)
class MmVet:
    """Mean correctness in [0, 1], overall, per required capability, and per combination of capabilities.

    `fields["question"]` is the dataset's question, `fields["capabilities"]` its capabilities. The published number is a
    mean over five runs of the judge; this is one run, at temperature 0.
    """

    name: str = "mmvet"
    judge_model: str = JUDGE_MODEL

    def together(self, samples: Sequence[Answered]) -> Sequence[Question]:
        return [sample.question for sample in samples]  # the judge sees one sample at a time

    def requests(self, answer: str, question: Question) -> Sequence[JudgeRequest]:
        truth = require_text(question.answer, "ground truth").replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        return [JudgeRequest(messages(f"{MM_VET_PROMPT}\n{question.fields['question']} | {truth} | {answer} | "), 128)]

    def read(self, replies: Sequence[str], answer: str, question: Question) -> Score:
        first = (replies[0].split() or [""])[0]
        if re.fullmatch(r"[01](?:\.\d{1,4})?", first) is None:
            raise ValueError(f"expected a score from 0.0 to 1.0 as the first word, got {shortened(replies[0])}")
        return Score({"score": within(float(first), 0, 1, first)})

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        overall = mean_measures(samples, group_by=())
        by_capability = [
            replace(measure, group=("capability", text))
            for short, text in CAPABILITIES.items()
            if (members := [sample for sample in samples if short in sample.question.fields["capabilities"]])
            for measure in mean_measures(members, group_by=())
        ]
        return overall + by_capability + mean_measures(samples, group_by=("combination",))[1:]


LLAVA_BENCH = LlavaBench()
MM_VET = MmVet()
