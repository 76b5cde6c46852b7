"""VNBench: needles inserted into videos, to retrieve, order and count; each question with four orders of its options.

Zhao et al. 2024, arXiv:2406.09367. The hub cannot serve the annotations, whose options mix numbers and texts. They are
therefore read from a copy: `--data DIR`, where DIR/videoniah/VNBench holds `VNBench-main-4try.json` of the hub's
dataset and the videos of the Google Drive link in github.com/joez17/VideoNIAH.
"""

from pathlib import PurePosixPath

from vila_core.media import Video
from vila_eval.data.sources import LocalFiles
from vila_eval.fixtures.long_videos import vnbench
from vila_eval.metrics.choices.vnbench import VNBENCH_METRIC
from vila_eval.prompts import multiple_choice_prompt
from vila_eval.task import Question, Row, Task


def ask(row: Row) -> Question:
    """Ask with VNBench's own prompt, as VILA does."""
    options = [str(option) for option in row["options"]]
    video = PurePosixPath(row["video"])
    return Question(
        id=f"{video.stem}_{row['try']}",
        prompt=[Video(str(video)), multiple_choice_prompt(row["question"], options)],
        answer=row["gt_option"],
        options=options,
        groups={"type": row["type"]},
        cluster=video.stem,
    )


VNBENCH_VAL = Task(
    "vnbench_val",
    LocalFiles(
        "videoniah/VNBench/VNBench-main-4try.json",
        {
            "video": "string: path of the video",
            "question": "string",
            "options": "list of four strings or numbers",
            "gt_option": "string: letter of the right option",
            "type": "string: ret_, ord_ or cnt_ and how the needles were put in",
            "try": "number: 0 to 3, the order of the options",
        },
        fixture=vnbench,
        obtain="Take it from huggingface.co/datasets/videoniah/VNBench, and the videos from the link in "
        "github.com/joez17/VideoNIAH.",
    ),
    ask,
    VNBENCH_METRIC,
    tags=("core", "local"),
    has_video=True,
    keep_together="video",
    description="Needles in videos: retrieval, ordering, counting; right only for all four orders of the options.",
    url="https://arxiv.org/abs/2406.09367",
)
