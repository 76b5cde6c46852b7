"""The form of answer files that most servers take: a JSON list with an object a question."""

import json
from collections.abc import Callable, Sequence
from functools import partial

from vila_eval.metric import Answered


def answer_list(key: str) -> Callable[[Sequence[Answered]], str]:
    """Return a writer of `[{key: …, "answer": …}, …]`. What identifies a question is `Question.fields[key]`."""
    return partial(_write, key)


def _write(key: str, samples: Sequence[Answered]) -> str:
    return json.dumps(
        [{key: sample.question.fields[key], "answer": sample.answer.strip()} for sample in samples], ensure_ascii=False
    )
