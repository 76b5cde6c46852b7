"""The answer file that most servers take: a JSON list with one object per question."""

import json
from collections.abc import Callable, Sequence
from functools import partial

from vila_eval.metric import Answered


def answer_list(key: str) -> Callable[[Sequence[Answered]], str]:
    """Return a writer of `[{key: …, "answer": …}, …]`, where `Question.fields[key]` identifies the question."""
    return partial(_write, key)


def _write(key: str, samples: Sequence[Answered]) -> str:
    return json.dumps(
        [{key: sample.question.fields[key], "answer": sample.answer.strip()} for sample in samples], ensure_ascii=False
    )
