"""MathVista: mathematics in images. Lu et al. 2023, arXiv:2310.02255.

The prompt is the image, then the dataset's own column `query`, which says what form the answer should have. Answers
have at most 128 tokens, as in VILA's `scripts/eval/mathvista.sh`. `vila_eval.metrics.choices.mathvista` reads them
without a judge.
"""

import json
from collections.abc import Sequence

from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.mathvista import mathvista
from vila_eval.metric import Answered, Submission
from vila_eval.metrics.choices.mathvista import MATHVISTA_METRIC, extract_quickly
from vila_eval.task import Question, Row, Task

COLUMNS = {
    "pid": "string: id",
    "question": "string",
    "query": "string: the question with its choices and how to answer",
    "decoded_image": "image",
    "choices": "list of strings, or null",
    "unit": "string or null",
    "precision": "float: decimals of the answer, or null",
    "answer": "string; empty in the test split",
    "question_type": "string: multi_choice or free_form",
    "answer_type": "string: text, integer, float or list",
    "metadata": "object: category, context, grade, language, skills (list), source, task, …",
}
"""Source: the dataset card of AI4Math/MathVista."""

GROUPS = ("language", "source", "category", "task", "context", "grade")


def ask(row: Row) -> Question:
    """Ask a problem with its own query."""
    metadata = row["metadata"]
    return Question(
        id=row["pid"],
        prompt=[row["decoded_image"], row["query"]],
        answer=row["answer"],
        options=row["choices"] or (),
        groups={name: row[name] for name in ("question_type", "answer_type")}
        | {name: metadata[name] for name in GROUPS},
        fields={
            name: row[name] for name in ("question", "unit", "precision", "question_type", "answer_type", "metadata")
        },
    )


def write_submission(samples: Sequence[Answered]) -> str:
    """Write the authors' format: each problem with the reply, and with the extracted answer if a rule finds it.

    Otherwise "extraction" is left out: the authors' `extract_answer.py` then asks GPT-4 for it.
    """
    problems = {sample.question.id: _problem(sample.question, sample.answer.strip()) for sample in samples}
    return json.dumps(problems, ensure_ascii=False, indent=1)


def _problem(question: Question, reply: str) -> dict[str, object]:
    extraction = extract_quickly(reply, question.options, question.fields["answer_type"])
    return {
        "pid": question.id,
        **question.fields,
        "choices": list(question.options) or None,
        "query": question.prompt[-1],
        "response": reply,
        **({} if extraction is None else {"extraction": extraction}),
    }


MATHVISTA_TESTMINI = Task(
    "mathvista_testmini",
    HubDataset("AI4Math/MathVista", "testmini", COLUMNS, fixture=mathvista),
    ask,
    MATHVISTA_METRIC,
    version=2,
    tags=("core", "local"),
    max_new_tokens=128,
    description="Mathematics in images; answers are read by rules, without a judge.",
    url="https://arxiv.org/abs/2310.02255",
)
MATHVISTA_TEST = Task(
    "mathvista_test",
    HubDataset("AI4Math/MathVista", "test", COLUMNS, fixture=mathvista),
    ask,
    None,
    tags=("submission",),
    max_new_tokens=128,
    submission=Submission("mathvista_test_output.json", write_submission, "https://mathvista.github.io"),
    description="Mathematics in images, answers hidden.",
    url="https://arxiv.org/abs/2310.02255",
)
