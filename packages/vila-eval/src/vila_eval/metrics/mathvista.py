"""MathVista (Lu et al. 2023, arXiv:2310.02255): the rules by which its scripts read an answer, and accuracies by skill.

The published protocol asks GPT-4 for the answer in a reply that no rule reads. Here nobody is asked: such a reply is normalized as
it stands, and counted as unread where that finds nothing. The instructions of the benchmark ask for the bare answer, so a model
that follows them scores the same; one that explains itself scores lower than with GPT-4, and its share of unread answers says so.

Source: `evaluation/extract_answer.py` and `calculate_score.py` of github.com/lupantech/MathVista, which the reference copies.
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
    """Return the answer in a reply that a rule reads, else None.

    1. One of the choices, to the letter.
    2. The whole reply as an integer or a float, where `answer_type` is "integer" or "float".
    3. `The answer is "…".` anywhere (the scripts' `quick_extract`).
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
    """What is compared with the answer: `text`, None for no number; `unread` says why it is no reading of the reply."""

    text: str | None
    unread: str | None = None


def normalize_extraction(
    extraction: str, choices: Sequence[str], answer_type: str, precision: float | None
) -> NormalizedAnswer:
    """Bring an extracted answer to the form of the answers, as `normalize_extracted_answer` does.

    - With `choices`: the choice of the first bracketed letter, "(b)", or of the letter that is the whole text, "B"; else the
      choice at the smallest edit distance, the first of equals. The last is a guess unless the distance is 0.
    - "integer": `float`, cut to whole. "float": rounded to `precision` decimals. Neither reads anything but a bare number.
    - Otherwise ("list", "text"): as it is.

    The hub's copy keeps `precision` as a float, with which Python's `round` fails: the reference and lmms-eval score every
    answer to a question for decimals wrong there. Here it is a whole number again.
    """
    if choices:
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
    """Return what a reply to a MathVista question amounts to. Raises `ConfigError` where the question is of no such benchmark."""
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
    """Accuracy over questions, in all, by group, and by skill: a question may need several (`fields["metadata"]["skills"]`)."""

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
