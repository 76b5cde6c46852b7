r"""Metrics scored by a judge: shared pieces, and a short way to write one.

HELPFUL = JudgeMetric(
    "helpfulness",
    "Question: {question}\nReference answer: {reference}\nAnswer: {answer}\n"
    "Rate the answer from 0 to 10. Reply with the number alone.",
    scale=(0, 10),
)
"""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vila_core.errors import ConfigError
from vila_eval.metric import Answered, JudgeRequest, Measure, Score, Scored, Unit, mean_measures
from vila_eval.task import Question

JUDGE_MODEL = "gpt-4o-2024-11-20"
"""The snapshot that lmms-eval currently uses as judge (its `MODEL_VERSION`).

Older published numbers used other judges: gpt-3.5-turbo-0613 for ActivityNet-QA and Video-ChatGPT, gpt-4-0613 for
MM-Vet and gpt-4-0314 for LLaVA-Bench. Scores by different judges cannot be compared; every result records its judge.
"""

PLACES = ("question", "answer", "reference")


def messages(user: str, system: str | None = None) -> list[dict[str, str]]:
    """Return the chat messages of one question to a judge."""
    return [*([] if system is None else [{"role": "system", "content": system}]), {"role": "user", "content": user}]


def question_text(question: Question) -> str:
    """Return the texts of a prompt, joined by line breaks."""
    return "\n".join(part for part in question.prompt if isinstance(part, str))


def named_number(reply: str, name: str, low: float, high: float) -> float:
    """Return the number under `name` in a reply such as `{'score': 4}`, however it is quoted. Raises `ValueError`.

    The reply is never executed or parsed as JSON: the judge prompts of Video-ChatGPT show a dictionary with unbalanced
    quotes, which judges copy.
    """
    found = re.findall(
        rf"\b{name}\W{{0,4}}?\s*[:=]\s*['\"]{{0,2}}(-?\d{{1,6}}(?:\.\d{{1,6}})?)(?![\d.]*\d)", reply, re.IGNORECASE
    )
    if not found:
        raise ValueError(f"expected a number called '{name}', got {shortened(reply)}")
    if len(set(found)) > 1:
        raise ValueError(f"expected one number called '{name}', got {shortened(reply)}")
    return within(float(found[0]), low, high, reply)


def within(number: float, low: float, high: float, reply: str) -> float:
    """Return `number` if it is in [low, high]. Raises `ValueError`."""
    if not low <= number <= high:
        raise ValueError(f"expected a number from {low:g} to {high:g}, got {shortened(reply)}")
    return number


def shortened(reply: str) -> str:
    """Return the beginning of a reply, quoted, for an error message."""
    reply = reply.strip()
    return repr(reply if len(reply) <= 80 else f"{reply[:80]} …")


def measures_with_units(
    samples: Sequence[Scored], units: Mapping[str, Unit], group_by: Sequence[str] | None = None
) -> list[Measure]:
    """Return the mean of every value, as `mean_measures` does, each in its own unit."""
    return [replace(measure, unit=units[measure.name]) for measure in mean_measures(samples, group_by=group_by)]


@dataclass(frozen=True)
class JudgeMetric:
    """A judge's number for every answer; its mean over all samples and each group.

    Attributes:
        name: name of the metric and of its measure.
        prompt: template with the placeholders {question}, {answer} and {reference}; double all other braces. It must
            ask the judge to end its reply with the number, alone or on the last line.
        scale: smallest and largest valid number; a number outside is not a verdict.
        system: system message.
        judge_model: pinned judge.
        unit: "points", or "share" for a scale from 0 to 1.
        max_tokens: longest reply.

    Raises:
        ConfigError: the prompt has an unknown placeholder, or lacks {answer}.
    """

    name: str
    prompt: str
    scale: tuple[float, float]
    system: str | None = None
    judge_model: str = JUDGE_MODEL
    unit: Unit = "points"
    max_tokens: int = 512

    def __post_init__(self) -> None:
        places = [place for _, place, _, _ in string.Formatter().parse(self.prompt) if place is not None]
        if "answer" not in places or not set(places) <= set(PLACES):
            known = ", ".join(f"{{{place}}}" for place in PLACES)
            raise ConfigError(f"The prompt of '{self.name}' has the places {places}. Expected {{answer}}, and of "
            f"{known} only. "
                              "Double the other braces.")  # fmt: skip

    def together(self, samples: Sequence[Answered]) -> Sequence[Question]:
        return [sample.question for sample in samples]  # the judge sees one sample at a time

    def requests(self, answer: str, question: Question) -> Sequence[JudgeRequest]:
        text = self.prompt.format(question=question_text(question), answer=answer, reference=question.answer)
        return [JudgeRequest(messages(text, self.system), self.max_tokens)]

    def read(self, replies: Sequence[str], answer: str, question: Question) -> Score:
        return Score({self.name: final_number(replies[0], *self.scale)})

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        return mean_measures(samples, unit=self.unit)


def final_number(reply: str, low: float, high: float) -> float:
    """Return the number that is the whole reply or its last line: "7", "Score: 7", "**7/10**". Raises `ValueError`."""
    lines = reply.strip().split("\n")
    pattern = r"[^\w-]*(?:[a-z ]{0,30}[:=])?[\s*`]*(-?\d{1,6}(?:\.\d{1,6})?)(?:\s*/\s*\d+)?\W*"
    found = re.fullmatch(pattern, lines[-1].strip()[:200], re.IGNORECASE) if lines else None
    if found is None:
        raise ValueError(f"expected a number alone on the last line, got {shortened(reply)}")
    return within(float(found[1]), low, high, reply)
