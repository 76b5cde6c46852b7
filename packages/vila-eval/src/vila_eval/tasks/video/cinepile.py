"""CinePile: scenes of films with their subtitles, five options. Rawal et al. 2024, arXiv:2405.08813."""

from vila_core.media import Video
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.video_choices import cinepile
from vila_eval.metrics.choices.vila import VILA_CHOICE
from vila_eval.prompts import letter
from vila_eval.task import Question, Row, Task

INSTRUCTION = (
    "You will be provided with subtitles from a specific scene of a movie and a few frames from that scene. After "
    "going through the movie scene and seeing the frames, please answer the question that follows. The question will "
    "have five possible answers labeled A, B, C, D, and E, please try to provide the most probable answer in your "
    "opinion. Your output should be just one of A,B,C,D,E and nothing else."
)
CATEGORIES = {
    "Character and\nRelationship Dynamics": "crd",
    "Narrative and\nPlot Analysis": "npa",
    "Setting and\nTechnical Analysis": "sta",
    "Temporal": "temp",
    "Theme Exploration": "th",
}


def ask(row: Row) -> Question:
    """Ask with VILA's prompt. The short names of categories are VILA's too."""
    clip = row["yt_clip_link"].split("watch?v=")[-1]
    options = "".join(f"\n- {letter(index)}) {option}" for index, option in enumerate(row["choices"]))
    category = str(row["question_category"])
    return Question(
        id="",
        prompt=[
            Video(f"yt_videos/{clip}.mp4"),
            f"{INSTRUCTION}\n\n**Subtitles:** \n{row['subtitles']}\n\nQuestion: {row['question']}{options}",
        ],
        answer=letter(row["answer_key_position"]),
        options=row["choices"],
        groups={"category": CATEGORIES.get(category, category)},
        cluster=clip,
    )


CINEPILE = Task(
    "cinepile",
    HubDataset(
        "tomg-group-umd/cinepile",
        "test",
        {
            "yt_clip_link": "string: https://www.youtube.com/watch?v=<id>; the video is <id>.mp4",
            "subtitles": "string",
            "question": "string",
            "choices": "list of five strings",
            "answer_key_position": "number: index of the right choice",
            "question_category": "string: one of five",
        },
        config="v2",
        archives=("yt_videos/*",),
        fixture=cinepile,
        media_from="YouTube, by the column yt_clip_link, as yt_videos/<id>.mp4",
    ),
    ask,
    VILA_CHOICE,
    version=2,
    tags=("local", "regression"),
    max_new_tokens=1024,
    has_video=True,
    description="Scenes of films with subtitles, five options.",
    url="https://arxiv.org/abs/2405.08813",
)
