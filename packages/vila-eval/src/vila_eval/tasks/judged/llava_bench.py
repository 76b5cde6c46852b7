"""LLaVA-Bench (In-the-Wild): open questions about 24 diverse images. Liu et al. 2023, arXiv:2304.08485."""

from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.judged import llava_bench
from vila_eval.metrics.judged_images import LLAVA_BENCH
from vila_eval.task import Question, Row, Task


def ask(row: Row) -> Question:
    """Ask the bare question, as lmms-eval does."""
    caption = row["caption"]
    return Question(
        id=str(row["question_id"]),
        prompt=[row["image"], row["question"]],
        answer=row["gpt_answer"],
        groups={"category": row["category"]},
        cluster=str(row["image_id"]),
        fields={"context": caption if isinstance(caption, str) else "\n".join(caption)},
    )


LLAVA_IN_THE_WILD = Task(
    "llava_in_the_wild",
    HubDataset(
        "lmms-lab/llava-bench-in-the-wild",
        "train",
        {
            "question_id": "int64",
            "question": "string",
            "image": "image",
            "category": "string: conv, detail or complex",
            "image_id": "string",
            "caption": "string, or a list of them: what the judge is given about the image",
            "gpt_answer": "string: the answer of text-only GPT-4, which saw the caption",
        },
        fixture=llava_bench,
    ),
    ask,
    LLAVA_BENCH,
    version=2,
    tags=("core", "openai"),
    max_new_tokens=4096,
    stop=("ASSISTANT:",),
    description="Conversation, description and reasoning about images; judged.",
    url="https://arxiv.org/abs/2304.08485",
)
