"""YouCook2, validation: one sentence for each step of a recipe. Zhou et al. 2017, arXiv:1703.09788.

VILA sets no token limit; no sentence in the data reaches 256 tokens.
"""

from vila_core.media import Video
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.video_texts import youcook2
from vila_eval.metrics.captions import CaptionMetric
from vila_eval.task import Question, Row, Task

PROMPT = "Provide a one-sentence caption for the provided video."


def ask(row: Row) -> Question:
    """Ask with lmms-eval's prompt. Segments of one recipe's video are scored as one corpus."""
    return Question(
        id="",
        prompt=[Video(f"YouCookIIVideos/{row['video_path']}"), PROMPT],
        answer=[row["sentence"]],
        cluster=row["youtube_id"],
    )


YOUCOOK2_VAL = Task(
    "youcook2_val",
    HubDataset(
        "lmms-lab/YouCook2",
        "val",
        {
            "video_path": "string: of the segment, below YouCookIIVideos/",
            "sentence": "string: what happens in it",
            "youtube_id": "string: of the whole video",
        },
        archives=("YouCookIIVideos.zip",),
        fixture=youcook2,
    ),
    ask,
    CaptionMetric("youcook2", per_cluster=True),
    tags=("youcook2-ft", "finetune"),
    max_new_tokens=256,
    has_video=True,
    description="A sentence for each step of a recipe.",
    url="https://arxiv.org/abs/1703.09788",
)
