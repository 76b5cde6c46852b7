"""MM-Vet: questions that need several capabilities at once. Yu et al. 2023, arXiv:2308.02490."""

from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.judged import mm_vet
from vila_eval.metrics.judged_images import CAPABILITIES, MM_VET
from vila_eval.task import Question, Row, Task

INSTRUCTION = (
    "First please perform reasoning, and think step by step to provide best answer to the following question: \n\n"
)
"""lmms-eval's instruction, since VILA reports lmms-eval's scores; the benchmark's authors ask the bare question."""


def ask(row: Row) -> Question:
    """Ask a question. Groups are the combinations of capabilities; the metric also reports each capability."""
    needed = [name.strip() for name in row["capability"].split(",")]
    combination = [name for name in CAPABILITIES if name in needed]
    return Question(
        id=str(row["question_id"]),
        prompt=[row["image"], f"{INSTRUCTION}{row['question']}"],
        answer=row["answer"],
        groups={"combination": ", ".join(combination)},
        fields={"question": row["question"], "capabilities": combination},
    )


MMVET = Task(
    "mmvet",
    HubDataset(
        "lmms-lab/MMVet",
        "test",
        {
            "question_id": "string",
            "image": "image, or none",
            "question": "string",
            "answer": "string: parts joined by <AND>, alternatives by <OR>",
            "capability": "string: of rec, ocr, know, gen, spat, math, separated by commas",
        },
        fixture=mm_vet,
    ),
    ask,
    MM_VET,
    version=2,
    tags=("core", "openai"),
    max_new_tokens=1024,
    description="Recognition, OCR, knowledge, generation, spatial awareness and math together; judged.",
    url="https://arxiv.org/abs/2308.02490",
)
