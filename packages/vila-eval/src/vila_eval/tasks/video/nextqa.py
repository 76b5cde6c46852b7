"""NExT-QA: why and how things happen in videos. Xiao et al. 2021, arXiv:2105.08276.

VILA sets no token limit; no answer in the data reaches 256 tokens.
"""

import json
from collections.abc import Sequence

from vila_core.media import Video
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.video_choices import nextqa
from vila_eval.metric import Answered, Submission
from vila_eval.metrics.choices.nextqa import NEXTQA_CHOICE
from vila_eval.metrics.wups import WUPS
from vila_eval.prompts import letter, lettered
from vila_eval.task import Question, Row, Task

KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}
SHORT = "Answer a question using a short phrase or sentence."
QUESTION_COLUMNS = {
    "video": "number: the video is NExTVideo/<video>.mp4",
    "qid": "number: of the question among the video's",
    "question": "string",
    "type": "string: CW, CH, TN, TP, TC, DB, DC, DL or DO",
}
URL = "https://arxiv.org/abs/2105.08276"


def ask_choice(row: Row) -> Question:
    """Ask with lmms-eval's prompt: the options, without an instruction on how to answer."""
    options = [row[f"a{index}"].strip() for index in range(5)]
    return Question(
        id=f"{row['video']}-{row['qid']}",
        prompt=[Video(f"NExTVideo/{row['video']}.mp4"), f"{row['question'].strip()}\n{lettered(options)}"],
        answer=letter(row["answer"]),
        options=options,
        groups=_groups(row["type"]),
        cluster=str(row["video"]),
    )


def ask_open(row: Row) -> Question:
    """Ask with lmms-eval's prompt. "TP" (previous) counts as "TN" (next), as in NExT-OE."""
    kind = "TN" if row["type"] == "TP" else row["type"]
    answers = [row["answer"], row["additional_ref_answer"]] if row["additional_ref_answer"] else [row["answer"]]
    return Question(
        id=f"{row['video']}-{row['qid']}",
        prompt=[Video(f"NExTVideo/{row['video']}.mp4"), f"{row['question'].strip()}\n{SHORT}"],
        answer=answers,
        groups=_groups(kind),
        cluster=str(row["video"]),
        fields={"video": str(row["video"]), "qid": str(row["qid"]), "lexicon": row.get("lexicon", "wordnet")},
    )


def _groups(kind: str) -> dict[str, str]:
    return {"kind": KINDS[kind[0]], "type": kind}


def write_submission(answers: Sequence[Answered]) -> str:
    """Write the JSON that `eval_oe.py` of github.com/doc-doc/NExT-OE reads: video -> question -> answer."""
    videos: dict[str, dict[str, str]] = {}
    for answered in answers:
        fields = answered.question.fields
        videos.setdefault(fields["video"], {})[fields["qid"]] = answered.answer
    return json.dumps(videos, ensure_ascii=False)


def _open_source(split: str) -> HubDataset:
    columns = QUESTION_COLUMNS | {"answer": "string", "additional_ref_answer": "string: a second right answer, or null"}
    return HubDataset("lmms-lab/NExTQA", split, columns, config="OE", archives=("videos.zip",), fixture=nextqa)


NEXTQA_MC_TEST = Task(
    "nextqa_mc_test",
    HubDataset(
        "lmms-lab/NExTQA",
        "test",
        QUESTION_COLUMNS
        | {f"a{index}": "string: an option" for index in range(5)}
        | {"answer": "number: index of the right option"},
        config="MC",
        archives=("videos.zip",),
        fixture=nextqa,
    ),
    ask_choice,
    NEXTQA_CHOICE,
    version=2,
    tags=("local",),
    max_new_tokens=256,
    has_video=True,
    description="Causes and order of events in videos, five options.",
    url=URL,
)
NEXTQA_OE_VAL = Task(
    "nextqa_oe_val",
    _open_source("validation"),
    ask_open,
    WUPS,
    version=2,
    tags=("local",),
    max_new_tokens=256,
    has_video=True,
    description="Causes and order of events in videos, free-text answers; scored by WordNet.",
    url=URL,
)
NEXTQA_OE_TEST = Task(
    "nextqa_oe_test",
    _open_source("test"),
    ask_open,
    None,
    tags=("submission",),
    max_new_tokens=256,
    has_video=True,
    submission=Submission("nextqa_oe_test.json", write_submission, "https://github.com/doc-doc/NExT-OE"),
    description="Causes and order of events in videos, free-text answers, for NExT-OE's own script.",
    url=URL,
)
