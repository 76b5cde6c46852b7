"""POPE: is an object in the image, or hallucinated? Li et al. 2023, arXiv:2305.10355."""

from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.yes_no import pope
from vila_eval.metrics.yes_no import POPE_METRIC
from vila_eval.task import Question, Row, Task


def ask(row: Row) -> Question:
    """Ask with lmms-eval's prompt; VILA reports lmms-eval's scores."""
    return Question(
        id=str(row["id"]),
        prompt=[row["image"], f"{row['question'].strip()}\nAnswer the question using a single word or phrase."],
        answer=row["answer"],
        groups={"category": row["category"]},
        cluster=row["image_source"],
    )


POPE = Task(
    "pope",
    HubDataset(
        "lmms-lab/POPE",
        "test",
        {
            "id": "string",
            "question": "string",
            "answer": "string: yes or no",
            "image": "image",
            "image_source": "string: COCO file",
            "category": "string: adversarial, popular or random",
        },
        fixture=pope,
    ),
    ask,
    POPE_METRIC,
    version=2,
    max_new_tokens=128,
    tags=("core", "local", "regression"),
    description="Object hallucination: yes or no.",
    url="https://arxiv.org/abs/2305.10355",
)
