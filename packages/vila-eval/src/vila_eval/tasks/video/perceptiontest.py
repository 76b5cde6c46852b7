"""Perception Test, validation, multiple choice: memory, abstraction, physics and semantics.

Pătrăucean et al. 2023, arXiv:2305.13786. VILA sets no token limit; 256 tokens are more than enough for a letter.
"""

from vila_core.media import Video
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.video_choices import perceptiontest
from vila_eval.metrics.choices.perceptiontest import PERCEPTIONTEST_CHOICE
from vila_eval.prompts import letter, multiple_choice_prompt
from vila_eval.task import Question, Row, Task


def ask(row: Row) -> Question:
    """Ask with lmms-eval's prompt."""
    return Question(
        id=f"{row['video_name']}-{row['question_id']}",
        prompt=[Video(f"videos/{row['video_name']}.mp4"), multiple_choice_prompt(row["question"], row["options"])],
        answer=letter(int(row["answer_id"])),
        options=row["options"],
        groups={"area": row["area"], "reasoning": row["reasoning"]},
        cluster=row["video_name"],
    )


PERCEPTIONTEST_VAL_MC = Task(
    "perceptiontest_val_mc",
    HubDataset(
        "lmms-lab/PerceptionTest_Val",
        "validation",
        {
            "video_name": "string: the video is <video_name>.mp4",
            "question": "string",
            "question_id": "string",
            "options": "list of three strings",
            "answer_id": "string: index of the right option",
            "area": "string: abstraction, memory, physics or semantics",
            "reasoning": "string: descriptive, explanatory, predictive or counterfactual",
        },
        config="mc_question_val",
        archives=("*.zip",),
        fixture=perceptiontest,
    ),
    ask,
    PERCEPTIONTEST_CHOICE,
    tags=("local",),
    max_new_tokens=256,
    has_video=True,
    description="Memory, abstraction, physics and semantics in acted videos, three options.",
    url="https://arxiv.org/abs/2305.13786",
)
