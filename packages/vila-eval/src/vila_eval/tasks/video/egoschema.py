"""EgoSchema: three-minute egocentric videos, five options. Mangalam et al. 2023, arXiv:2308.09126.

The prompt is VILA's. VILA reads `questions.json` and `subset_answers.json` of github.com/egoschema/EgoSchema; here the
rows are the same questions on the hub.
"""

import csv
import io
from collections.abc import Sequence

from vila_core.media import Video
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.video_choices import egoschema
from vila_eval.metric import Answered, Submission
from vila_eval.metrics.choices.vila import VILA_CHOICE
from vila_eval.prompts import letter, lettered, unlettered
from vila_eval.task import Question, Row, Task

INSTRUCTION = "Watching the video and answer with the option's letter from the given choices directly."
COLUMNS = {
    "question": "string",
    "video_idx": "string: EgoSchema's q_uid; the video is <video_idx>.mp4",
    "option": "list of five strings, each with its letter: 'A. …'",
    "answer": "string: index of the right option, 0 to 4; null in the full set",
}


def ask(row: Row) -> Question:
    """Put the instruction before the question, without a space between them, as VILA does."""
    options = [unlettered(option) for option in row["option"]]
    return Question(
        id=row["video_idx"],
        prompt=[Video(f"videos/{row['video_idx']}.mp4"), f"{INSTRUCTION}{row['question']}\n{lettered(options)}\n"],
        answer=None if row["answer"] is None else letter(int(row["answer"])),
        options=options,
    )


def write_submission(answers: Sequence[Answered]) -> str:
    """Write the CSV for EgoSchema's Kaggle page: q_uid, and the index of the option that the answer was read as."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("q_uid", "answer"))
    for answered in answers:
        question = answered.question
        read = VILA_CHOICE.score(answered.answer, Question(question.id, (), "A", question.options)).parsed
        writer.writerow((question.id, "ABCDE".index(read or "A")))
    return file.getvalue()


def _source(config: str) -> HubDataset:
    return HubDataset("lmms-lab/egoschema", "test", COLUMNS, config=config, archives=("*.zip",), fixture=egoschema)


EGOSCHEMA_VAL = Task(
    "egoschema_val",
    _source("Subset"),
    ask,
    VILA_CHOICE,
    version=2,
    tags=("core", "local"),
    has_video=True,
    description="Long egocentric videos, five options: the 500 questions whose answers are public.",
    url="https://arxiv.org/abs/2308.09126",
)
EGOSCHEMA_TEST = Task(
    "egoschema_test",
    _source("MC"),
    ask,
    None,
    version=2,
    tags=("submission",),
    has_video=True,
    submission=Submission("submission.csv", write_submission, "https://www.kaggle.com/competitions/egoschema-public"),
    description="Long egocentric videos, five options: all 5,031 questions.",
    url="https://arxiv.org/abs/2308.09126",
)
