"""MVBench: twenty kinds of questions about short videos. Li et al. 2023, arXiv:2311.17005."""

from functools import partial

from vila_core.media import Video
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.video_choices import mvbench
from vila_eval.metrics.choices.mvbench import score_mvbench
from vila_eval.metrics.macro_average import MacroMetric
from vila_eval.prompts import letter
from vila_eval.task import Question, Row, Task

FOLDERS = {
    "action_sequence": "star/Charades_segment",
    "action_prediction": "star/Charades_segment",
    "action_antonym": "ssv2_video_mp4",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video_segment",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd_convert",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "counterfactual_inference": "clevrer/video_validation",
}
"""The twenty parts, in the order of VILA's table, with the folders of their videos (as in lmms-eval)."""


def ask(row: Row) -> Question:
    """Ask with lmms-eval's prompt."""
    part, options = row["config"], row["candidates"]
    listed = "".join(f"({letter(index)}) {option}\n" for index, option in enumerate(options))
    return Question(
        id="",
        prompt=[
            Video(f"{FOLDERS[part]}/{row['video']}"),
            f"Question:{row['question']}\nOption:\n{listed}Only give the best option.\n",
        ],
        answer=letter(options.index(row["answer"])),
        options=options,
        groups={"part": part},
        cluster=f"{FOLDERS[part]}/{row['video']}",
    )


MVBENCH_METRIC = MacroMetric("mvbench", score_mvbench, over="part")
"""The mean of the twenty accuracies. lmms-eval leaves out empty answers; here they are wrong."""

MVBENCH = Task(
    "mvbench",
    HubDataset(
        "OpenGVLab/MVBench",
        "train",
        {
            "video": "string: path below the part's folder",
            "question": "string",
            "candidates": "list of 2 to 5 strings",
            "answer": "string: the right candidate",
        },
        config=tuple(FOLDERS),
        revision="video",
        archives=tuple(sorted({f"{folder.split('/')[0]}/*" for folder in FOLDERS.values()})),
        fixture=partial(mvbench, video_folders=FOLDERS),
    ),
    ask,
    MVBENCH_METRIC,
    tags=("local",),
    max_new_tokens=16,
    has_video=True,
    description="Twenty kinds of questions about short videos.",
    url="https://arxiv.org/abs/2311.17005",
)
