"""Charts and diagrams: ChartQA and AI2D, AI2D with and without the boxes that cover a diagram's labels.

Prompts, token limits and scores are those of lmms-eval. Columns: READMEs of lmms-lab/ChartQA, lmms-lab/ai2d and
lmms-lab/ai2d-no-mask on the hub.
"""

from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.charts import ai2d, chartqa
from vila_eval.metrics.choices.ai2d import LEADING_LETTER
from vila_eval.metrics.relaxed_accuracy import CHARTQA as CHARTQA_METRIC
from vila_eval.prompts import letter, multiple_choice_prompt
from vila_eval.task import Question, Row, Task


def ask_chartqa(row: Row) -> Question:
    """Ask a question. Half of them were written by people ("human"), half were generated ("augmented")."""
    return Question(
        id="",
        prompt=[row["image"], f"{row['question']}\nAnswer the question with a single word."],
        answer=row["answer"],
        groups={"split": row["type"].removesuffix("_test")},
    )


def ask_ai2d(row: Row) -> Question:
    """Ask a question; the column "answer" is the index of the right option."""
    options = row["options"]
    return Question(
        id="",
        prompt=[row["image"], multiple_choice_prompt(row["question"], options)],
        answer=letter(int(row["answer"])),
        options=options,
    )


CHARTQA = Task(
    "chartqa",
    HubDataset(
        "lmms-lab/ChartQA",
        "test",
        {"type": "string: human_test or augmented_test", "question": "string", "answer": "string", "image": "image"},
        fixture=chartqa,
    ),
    ask_chartqa,
    CHARTQA_METRIC,
    tags=("core", "local", "regression"),
    max_new_tokens=16,
    description="Questions about charts; numbers may be off by 5 %.",
    url="https://arxiv.org/abs/2203.10244",
)

AI2D_COLUMNS = {
    "question": "string",
    "options": "list of strings",
    "answer": "string: index of the right option",
    "image": "image",
}
AI2D = Task(
    "ai2d",
    HubDataset("lmms-lab/ai2d", "test", AI2D_COLUMNS, fixture=ai2d),
    ask_ai2d,
    LEADING_LETTER,
    tags=("core", "local", "regression"),
    max_new_tokens=16,
    description="Multiple choice about school book diagrams whose labels are covered by letters.",
    url="https://arxiv.org/abs/1603.07396",
)
AI2D_NO_MASK = Task(
    "ai2d_no_mask",
    HubDataset("Efficient-Large-Model/ai2d-no-mask", "test", AI2D_COLUMNS, fixture=ai2d),
    ask_ai2d,
    LEADING_LETTER,
    tags=("core", "local", "regression"),
    max_new_tokens=16,
    description="AI2D with visible labels.",
    url="https://arxiv.org/abs/1603.07396",
)
