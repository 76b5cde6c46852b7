"""ActivityNet-QA: short open answers about videos of human activities. Yu et al. 2019, arXiv:1906.02467."""

from vila_core.media import Video
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.judged import activitynet_qa
from vila_eval.metrics.judged_videos import ACTIVITYNET_QA
from vila_eval.task import Question, Row, Task

TYPES = (
    "motion",
    "spatial relationship",
    "temporal relationship",
    "yes/no",
    "color",
    "object",
    "location",
    "number",
    "other",
)
"""Keys are the values of the column "type" (the dataset's README, github.com/MILVLG/activitynet-qa)."""


def ask(row: Row) -> Question:
    """Ask with lmms-eval's prompt, since VILA reports lmms-eval's scores. The judge sees the dataset's own question."""
    return Question(
        id=str(row["question_id"]),
        prompt=[
            Video(f"v_{row['video_name']}.mp4"),
            f"{row['question'].capitalize()}? Answer the question using a single word or phrase.",
        ],
        answer=row["answer"],
        groups={"type": TYPES[int(row["type"])]},
        cluster=row["video_name"],
        fields={"question": row["question"]},
    )


ACTIVITYNETQA = Task(
    "activitynetqa",
    HubDataset(
        "lmms-lab/ActivityNetQA",
        "test",
        {
            "video_name": "string: the video is all_test/v_<video_name>.mp4, .mkv or .webm in the archives",
            "question_id": "string",
            "question": "string: lower case, no question mark",
            "answer": "string",
            "type": "string: 0 to 8, see TYPES",
        },
        archives=("videos_chunked_*.zip",),
        fixture=activitynet_qa,
    ),
    ask,
    ACTIVITYNET_QA,
    tags=("openai",),
    max_new_tokens=64,
    stop=("ASSISTANT:",),
    has_video=True,
    description="Open questions about activities in videos; judged.",
    url="https://arxiv.org/abs/1906.02467",
)
