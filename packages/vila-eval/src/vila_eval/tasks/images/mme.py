"""MME: fourteen categories of perception and cognition, in pairs of a yes and a no question.

Fu et al. 2023, arXiv:2306.13394.
"""

from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.yes_no import mme
from vila_eval.metrics.yes_no import MME_METRIC
from vila_eval.prompts import SHORT_ANSWER
from vila_eval.task import Question, Row, Task


def ask(row: Row) -> Question:
    """Ask a question with lmms-eval's instruction, not MME's own. Both about an image share its `question_id`."""
    question = row["question"].strip().replace(" Please answer yes or no.", "")
    return Question(
        id=f"{row['question_id']}:{row['answer'].strip().lower()}",
        prompt=[row["image"], f"{question}\n{SHORT_ANSWER}"],
        answer=row["answer"],
        groups={"category": row["category"]},
        cluster=f"{row['category']}/{row['question_id']}",
    )


MME = Task(
    "mme",
    HubDataset(
        "lmms-lab/MME",
        "test",
        {
            "question_id": "string: of the image",
            "image": "image",
            "question": "string",
            "answer": "string: Yes or No",
            "category": "string: one of fourteen",
        },
        fixture=mme,
    ),
    ask,
    MME_METRIC,
    tags=("core", "local", "regression"),
    max_new_tokens=16,
    keep_together="question_id",
    description="Perception and cognition: yes or no, both questions about an image counted together.",
    url="https://arxiv.org/abs/2306.13394",
)
