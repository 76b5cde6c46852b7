"""TallyQA: counting, with simple and complex questions. Acharya et al. 2019, arXiv:1810.12440.

VILA's question file is not public. The questions here are the dataset's own, with LLaVA's instruction for short
answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.tallyqa import tallyqa
from vila_eval.metrics.counting import COUNTING
from vila_eval.prompts import SHORT_ANSWER
from vila_eval.task import Question, Row, Task
from vila_eval.tasks.finetuning.image_cluster import image_cluster

LARGEST_COUNT = 15
"""VILA reports accuracy by answer up to this count."""


def ask(row: Row) -> Sequence[Question]:
    """Ask every question of the row, all about one image."""
    cluster = image_cluster(row["image"])
    return [
        Question(
            id="",
            prompt=[row["image"], f"{asked['question']}\n{SHORT_ANSWER}"],
            answer=str(asked["answer"]),
            groups=_groups(asked),
            cluster=cluster,
        )
        for asked in row["qa"]
    ]


def _groups(asked: Mapping[str, Any]) -> dict[str, str]:
    groups = {"kind": "simple" if asked["is_simple"] else "complex"}
    return groups | {"count": str(asked["answer"])} if int(asked["answer"]) <= LARGEST_COUNT else groups


TALLYQA = Task(
    "tallyqa",
    HubDataset(
        "vikhyatk/tallyqa-test",
        "test",
        {"image": "image", "qa": "list of objects: question (string), answer (a whole number), is_simple (bool)"},
        fixture=tallyqa,
    ),
    ask,
    COUNTING,
    tags=("finetuning", "tallyqa"),
    max_new_tokens=16,
    description="Counting: simple and complex questions.",
    url="https://arxiv.org/abs/1810.12440",
)
