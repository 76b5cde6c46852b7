"""MLVU, multiple choice of the development set: seven tasks about long videos. Zhou et al. 2024, arXiv:2406.04264.

VILA does not run it, so it has none of VILA's tags.
"""

import re

from vila_core.media import Video
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.long_videos import mlvu
from vila_eval.metrics.choices.lmms_mcq import score_lmms_choice
from vila_eval.metrics.macro_average import MacroMetric
from vila_eval.task import Question, Row, Task

INSTRUCTION = "\nOnly give the best option.\nBest option: ("


def ask(row: Row) -> Question:
    """Ask with lmms-eval's prompt. The question holds its options, one per line, each beginning like "(A)"."""
    return Question(
        id="",
        prompt=[Video(row["video_name"]), f"{row['question']}{INSTRUCTION}"],
        answer=row["answer"],
        options=re.findall(r"^\([A-Z]\)\s*(.*)$", row["question"], re.MULTILINE),
        groups={"task": row["task_type"]},
        cluster=row["video_name"],
    )


MLVU_METRIC = MacroMetric("mlvu", score_lmms_choice, over="task")
"""M-Avg: the mean of the tasks' accuracies."""

MLVU = Task(
    "mlvu",
    HubDataset(
        "sy1998/MLVU_dev",
        "test",
        {
            "video_name": "string: path of the video",
            "question": "string: the question and its options",
            "answer": "string: letter of the right option",
            "task_type": "string: anomaly_reco, count, ego, needle, order, plotQA or topic_reasoning",
        },
        archives=("*.zip",),
        fixture=mlvu,
    ),
    ask,
    MLVU_METRIC,
    max_new_tokens=16,
    has_video=True,
    description="Seven tasks about long videos, four options: the development set.",
    url="https://arxiv.org/abs/2406.04264",
)
