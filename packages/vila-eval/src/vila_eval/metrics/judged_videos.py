"""ActivityNet-QA and Video-ChatGPT: a judge compares an answer about a video with the reference.

The prompts are those of Video-ChatGPT's own scripts (Maaz et al. 2023, arXiv:2306.05424, `quantitative_evaluation/`),
in the wording that lmms-eval sends. They define the scores, so their mistakes are kept. Those scripts count an
unreadable reply as 0; here it is a judging failure. As there, a score such as 4.8 counts as its integer part.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vila_eval.metric import Answered, JudgeRequest, Measure, Score, Scored, Unit
from vila_eval.metrics.inputs import require_text
from vila_eval.metrics.judged import JUDGE_MODEL, measures_with_units, messages, named_number, shortened
from vila_eval.task import Question

MAX_TOKENS = 64
"""Longest verdict."""

_ROLE = "You are an intelligent chatbot designed for evaluating the {what} of generative outputs for {of}. "
_TASK = (
    "Your task is to compare the predicted answer with the correct answer and determine {whether}. Here's how you can "
    "accomplish the task:------##INSTRUCTIONS: "
)
_PAIR = (
    "Please evaluate the following video-based question-answer pair:\n\n"
    "Question: {question}\n"
    "Correct Answer: {answer}\n"
    "Predicted Answer: {predicted}\n\n"
)
_ONLY = (
    "DO NOT PROVIDE ANY OTHER OUTPUT TEXT OR EXPLANATION. Only provide the Python dictionary string. For example, "
    "your response should look like this: "
)
_SYNONYMS = "- Consider synonyms or paraphrases as valid matches.\n"


ACTIVITYNET_QA_SYSTEM = (
    _ROLE.format(what="correctness", of="question-answer pairs")
    + _TASK.format(whether="if they match meaningfully")
    + "- Focus on the meaningful match between the predicted answer and the correct answer.\n"
    + _SYNONYMS
    + "- Evaluate the correctness of the prediction compared to the answer."
)
ACTIVITYNET_QA_USER = (
    _PAIR
    + "Provide your evaluation only as a yes/no and score where the score is an integer value between 0 and 5, with 5 "
    "indicating the highest meaningful match. Please generate the response in the form of a Python dictionary string "
    "with keys 'pred' and 'score', where value of 'pred' is  a string of 'yes' or 'no' and value of 'score' is in "
    "INTEGER, not STRING." + _ONLY + "{{'pred': 'yes', 'score': 4.8}}."
)


@dataclass(frozen=True)
class ActivityNetQa:
    """Share of answers that the judge accepts ("accuracy"), and the quality of the match from 0 to 5 ("score").

    `fields["question"]` is the question.
    """

    name: str = "activitynetqa"
    judge_model: str = JUDGE_MODEL

    def together(self, samples: Sequence[Answered]) -> Sequence[Question]:
        return [sample.question for sample in samples]  # the judge sees one sample at a time

    def requests(self, answer: str, question: Question) -> Sequence[JudgeRequest]:
        text = ACTIVITYNET_QA_USER.format(
            question=question.fields["question"], answer=require_text(question.answer, "reference"), predicted=answer
        )
        return [JudgeRequest(messages(text, ACTIVITYNET_QA_SYSTEM), MAX_TOKENS)]

    def read(self, replies: Sequence[str], answer: str, question: Question) -> Score:
        verdicts = {
            verdict.lower()
            for verdict in re.findall(r"\bpred\W{0,4}?\s*[:=]\W{0,3}(yes|no)\b", replies[0], re.IGNORECASE)
        }
        if len(verdicts) != 1:
            raise ValueError(f"expected one 'pred' of yes or no, got {shortened(replies[0])}")
        (verdict,) = verdicts
        score = int(named_number(replies[0], "score", 0, 5))
        return Score({"accuracy": float(verdict == "yes"), "score": float(score)}, parsed=f"{verdict}, {score}")

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        units: Mapping[str, Unit] = {"accuracy": "share", "score": "points"}
        return measures_with_units(samples, units)


def _user(what: str, quality: str, article: str = "") -> str:
    return (
        f"Provide your evaluation only as a {what} score where the {what} score is an integer value between 0 and 5, "
        f"with 5 indicating the highest level of {quality}. Please generate the response in the form of a Python "
        f"dictionary string with keys 'score', where its value is {article}{what} score in INTEGER, not "
        f"STRING.{_ONLY}{{{{''score': 4.8}}}}."
    )


@dataclass(frozen=True)
class Aspect:
    """One of the five scores, with its judge prompts."""

    system: str
    user: str


ASPECTS = {
    "correctness": Aspect(
        _ROLE.format(what="factual accuracy", of="video-based question-answer pairs")
        + _TASK.format(whether="if they are factually consistent")
        + "- Focus on the factual consistency between the predicted answer and the correct answer. The predicted "
        "answer should not contain any misinterpretations or misinformation.\n"
        "- The predicted answer must be factually accurate and align with the video content.\n"
        + _SYNONYMS
        + "- Evaluate the factual accuracy of the prediction compared to the answer.",
        _PAIR + _user("factual accuracy", "factual consistency", "the "),
    ),
    "detailed_orientation": Aspect(
        _ROLE.format(what="detail orientation", of="video-based question-answer pairs")
        + _TASK.format(whether="its level of detail, considering both completeness and specificity")
        + "- Check if the predicted answer covers all major points from the video. The response should not leave out "
        "any key aspects.\n"
        "- Evaluate whether the predicted answer includes specific details rather than just generic points. It should "
        "provide comprehensive information that is tied to specific elements of the video.\n"
        + _SYNONYMS
        + "- Provide a single evaluation score that reflects the level of detail orientation of the prediction, "
        "considering both completeness and specificity.",
        _PAIR + _user("detail orientation", "detail orientation", "the "),
    ),
    "context": Aspect(
        _ROLE.format(what="contextual understanding", of="video-based question-answer pairs")
        + _TASK.format(whether="if the generated response aligns with the overall context of the video content")
        + "- Evaluate whether the predicted answer aligns with the overall context of the video content. It should "
        "not provide information that is out of context or misaligned.\n"
        "- The predicted answer must capture the main themes and sentiments of the video.\n"
        + _SYNONYMS
        + "- Provide your evaluation of the contextual understanding of the prediction compared to the answer.",
        _PAIR + _user("contextual understanding", "contextual understanding"),
    ),
    "temporal": Aspect(
        _ROLE.format(what="temporal understanding", of="video-based question-answer pairs")
        + _TASK.format(whether="if they correctly reflect the temporal sequence of events in the video content")
        + "- Focus on the temporal consistency between the predicted answer and the correct answer. The predicted "
        "answer should correctly reflect the sequence of events or details as they are presented in the video "
        "content.\n"
        "- Consider synonyms or paraphrases as valid matches, but only if the temporal order is maintained.\n"
        "- Evaluate the temporal accuracy of the prediction compared to the answer.",
        _PAIR + _user("temporal accuracy", "temporal consistency", "the "),
    ),
    "consistency": Aspect(
        _ROLE.format(what="consistency", of="similar video-based question-answer pairs")
        + "You will be given two very similar questions, a common answer common to both the questions and predicted "
        "answers for the two questions .Your task is to compare the predicted answers for two very similar question, "
        "with a common correct answer and determine if they are consistent. Here's how you can accomplish the "
        "task:------##INSTRUCTIONS: - Focus on the consistency between the two predicted answers and the correct "
        "answer. Both predicted answers should correspond to the correct answer and to each other, and should not "
        "contain any contradictions or significant differences in the conveyed information.\n"
        "- Both predicted answers must be consistent with each other and the correct answer, in terms of the "
        "information they provide about the video content.\n"
        "- Consider synonyms or paraphrases as valid matches, but only if they maintain the consistency in the "
        "conveyed information.\n"
        "- Evaluate the consistency of the two predicted answers compared to the correct answer.",
        "Please evaluate the following video-based question-answer pair:\n\n"
        "Question 1: {question}\n"
        "Question 2: {question2}\n"
        "Correct Answer: {answer}\n"
        "Predicted Answer to Question 1: {predicted}\n"
        "Predicted Answer to Question 2: "
        "{predicted2}\n\n" + _user("consistency", "consistency", "the "),
    ),
}


@dataclass(frozen=True)
class VideoChatGpt:
    """Five scores from 0 to 5, each over its own questions; consistency takes two answers per score.

    `fields`: "aspects", names from `ASPECTS` (empty for the second question of a pair); where the aspect is
    consistency, also "pair" ("<video>", shared by both questions of a pair) and "place" (1 or 2).
    """

    name: str = "videochatgpt"
    judge_model: str = JUDGE_MODEL

    def together(self, samples: Sequence[Answered]) -> Sequence[Question]:
        """Attach to the first question of each pair the second question and its answer."""
        seconds: defaultdict[str, list[Answered]] = defaultdict(list)
        for sample in samples:
            if sample.question.fields.get("place") == 2:
                seconds[sample.question.fields["pair"]].append(sample)
        return [_with_partner(sample.question, seconds) for sample in samples]

    def requests(self, answer: str, question: Question) -> Sequence[JudgeRequest]:
        if _lacks_partner(question):
            return []
        values = {
            "question": question.prompt[-1],
            "answer": require_text(question.answer, "reference"),
            "predicted": answer,
            **question.fields.get("partner", {}),
        }
        return [
            JudgeRequest(messages(ASPECTS[name].user.format(**values), ASPECTS[name].system), MAX_TOKENS)
            for name in question.fields["aspects"]
        ]

    def read(self, replies: Sequence[str], answer: str, question: Question) -> Score:
        if _lacks_partner(question):
            return Score({}, unread="the other question of the pair was not asked")
        scores = [float(int(named_number(reply, "score", 0, 5))) for reply in replies]
        return Score(dict(zip(question.fields["aspects"], scores, strict=True)))

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        return sorted(
            measures_with_units(samples, dict.fromkeys(ASPECTS, "points"), ()),
            key=lambda measure: [*ASPECTS].index(measure.name),
        )


def _with_partner(question: Question, seconds: Mapping[str, list[Answered]]) -> Question:
    waiting = seconds.get(question.fields.get("pair", ""), [])
    if question.fields.get("place") != 1 or not waiting:
        return question
    second = waiting.pop(0)
    partner = {"question2": second.question.prompt[-1], "predicted2": second.answer}
    return replace(question, fields={**question.fields, "partner": partner})


def _lacks_partner(question: Question) -> bool:
    """Return whether this is the first question of a pair whose second was not asked."""
    return question.fields.get("place") == 1 and "partner" not in question.fields


ACTIVITYNET_QA = ActivityNetQa()
VIDEO_CHATGPT = VideoChatGpt()
