"""MathVista (Lu et al. 2023, arXiv:2310.02255): reading answers by the rules of its scripts, and accuracy by skill.

The published protocol asks GPT-4 to extract the answer from a reply that no rule can read. No model is asked here: such
a reply is normalized as it is, and counted as unread if that finds nothing. The benchmark's instructions ask for the
bare answer, so a model that follows them scores the same. A model that explains itself scores lower than with GPT-4,
and its share of unread answers shows it.

Source: `evaluation/extract_answer.py` and `calculate_score.py` of github.com/lupantech/MathVista, which VILA copies.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vila_core.errors import ConfigError
from vila_eval.metric import Measure, Score, Scored, mean_measures
from vila_eval.metrics.anls import levenshtein
from vila_eval.metrics.inputs import require_text
from vila_eval.task import Question

_QUOTED = re.compile(r'The answer is "(.*)"\.')
_BRACKETED_LETTER = re.compile(r"\(([a-zA-Z])\)")


def extract_quickly(reply: str, choices: Sequence[str], answer_type: str) -> str | None:
    """Return the answer if one of these rules finds it in the reply, else None:

    1. The reply is exactly one of the choices.
    2. The whole reply is an integer or a float, where `answer_type` is "integer" or "float".
    3. The reply contains `The answer is "…".` (the scripts' `quick_extract`).
    """
    if require_text(reply, "reply") in choices:
        return reply
    try:
        if answer_type == "integer":
            return str(int(reply))
        if answer_type == "float":
            return str(float(reply))
    except ValueError:
        pass
    quoted = _QUOTED.search(reply)
    return quoted[1] if quoted else None


@dataclass(frozen=True)
class NormalizedAnswer:
    """An answer in the form of the references.

    Attributes:
        text: the text to compare; None if a number was expected and not found.
        unread: why the reply could not be read, or None.
    """

    text: str | None
    unread: str | None = None


def normalize_extraction(
    extraction: str, choices: Sequence[str], answer_type: str, precision: float | None
) -> NormalizedAnswer:
    """Convert an extracted answer to the form of the references, as `normalize_extracted_answer` does.

    - With `choices`: an empty extraction is wrong (the official script takes the shortest choice, which can be right).
      Else the choice named by the first bracketed letter, "(b)", or by a lone letter, "B"; else the choice
      with the smallest edit distance, the first of equals, which is a guess unless the distance is 0.
    - "integer": read by `float` and truncated. "float": rounded to `precision` decimals. Only a bare number is read.
    - Otherwise ("list", "text"): unchanged.

    The hub's copy stores `precision` as a float, which Python's `round` rejects, so VILA and lmms-eval score every
    answer to a question with decimals as wrong. Here it is converted to an integer.
    """
    if choices:
        if not extraction.strip():
            return NormalizedAnswer(None, "empty")
        return _normalize_choice(extraction.strip(), choices)
    try:
        if answer_type == "integer":
            return NormalizedAnswer(str(int(float(extraction))))
        if answer_type == "float":
            return NormalizedAnswer(str(round(float(extraction), None if precision is None else int(precision))))
    except (ValueError, OverflowError):
        return NormalizedAnswer(None, "not a bare number")
    is_list = answer_type != "list" or extraction.startswith("[")
    return NormalizedAnswer(extraction, None if is_list else "not a bare list")


def _normalize_choice(extraction: str, choices: Sequence[str]) -> NormalizedAnswer:
    bracketed = _BRACKETED_LETTER.search(extraction)
    letter = bracketed[1].upper() if bracketed else extraction
    letters = [chr(ord("A") + index) for index in range(len(choices))]
    if letter in letters:
        return NormalizedAnswer(choices[letters.index(letter)])
    nearest = min(choices, key=lambda choice: levenshtein(letter, choice))
    return NormalizedAnswer(nearest, None if nearest == letter else "no choice named: the nearest text is taken")


def normalize_reply(reply: str, question: Question) -> NormalizedAnswer:
    """Return the normalized answer in a reply to a MathVista question.

    Raises: ConfigError when the question lacks the fields "answer_type" and "precision".
    """
    if missing := [name for name in ("answer_type", "precision") if name not in question.fields]:
        raise ConfigError(
            f"Question '{question.id}' lacks the fields {', '.join(missing)}, which the metric 'mathvista' needs."
        )
    answer_type = question.fields["answer_type"]
    reply = reply.strip()
    extraction = extract_quickly(reply, question.options, answer_type)
    return normalize_extraction(
        reply if extraction is None else extraction, question.options, answer_type, question.fields["precision"]
    )


@dataclass(frozen=True)
class MathVistaMetric:
    """Accuracy, overall, by group and by skill. A question may have several skills (`fields["metadata"]["skills"]`)."""

    name: str = "mathvista"

    def score(self, answer: str, question: Question) -> Score:
        read = normalize_reply(answer, question)
        return Score({"accuracy": float(read.text == question.answer)}, parsed=read.text, unread=read.unread)

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        by_skill: dict[str, list[Scored]] = {}
        for sample in samples:
            for skill in sample.question.fields.get("metadata", {}).get("skills", ()):
                by_skill.setdefault(skill, []).append(sample)
        return [
            *mean_measures(samples),
            *(
                replace(measure, group=("skills", skill))
                for skill, members in by_skill.items()
                for measure in mean_measures(members, group_by=())
            ),
        ]


MATHVISTA_METRIC = MathVistaMetric()
