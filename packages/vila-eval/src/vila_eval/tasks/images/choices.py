"""Multiple choice about images: ScienceQA, SEED-Bench and V*.

Prompts, token limits and scores of the first two are those of lmms-eval. Columns: READMEs of lmms-lab/ScienceQA,
lmms-lab/SEED-Bench and lmms-lab/vstar-bench on the hub.
"""

import re

from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.choices import scienceqa, seedbench, vstar
from vila_eval.metrics.choices.general import MULTIPLE_CHOICE
from vila_eval.metrics.choices.scienceqa import LLAVA_LETTER
from vila_eval.metrics.choices.seedbench import FIRST_CHARACTER
from vila_eval.prompts import letter, multiple_choice_prompt
from vila_eval.task import Question, Row, Task


def ask_scienceqa(row: Row) -> Question:
    """Ask a question. About half have an image; only those make up ScienceQA-IMG."""
    context = f"Context: {row['hint']}\n" if row["hint"] else ""
    return Question(
        id="",
        prompt=[row["image"], context + multiple_choice_prompt(row["question"], row["choices"])],
        answer=letter(row["answer"]),
        options=row["choices"],
        groups={
            "context": "text" if row["image"] is None else "image",
            "subject": row["subject"],
            "grades": "1-6" if int(row["grade"].removeprefix("grade")) <= 6 else "7-12",
        },
    )


SCIENCEQA_FULL = Task(
    "scienceqa_full",
    HubDataset(
        "lmms-lab/ScienceQA",
        "test",
        {
            "image": "image or null",
            "question": "string",
            "choices": "list of strings",
            "answer": "int8: index of the right choice",
            "hint": "string, may be empty",
            "subject": "string: natural, language or social science",
            "grade": "string: grade1 to grade12",
        },
        config="ScienceQA-FULL",
        fixture=scienceqa,
    ),
    ask_scienceqa,
    LLAVA_LETTER,
    version=2,
    tags=("core", "local", "regression"),
    max_new_tokens=16,
    description="School science, with and without an image.",
    url="https://arxiv.org/abs/2209.09513",
)

SEED_DIMENSIONS = (
    *(
        "Scene Understanding",
        "Instance Identity",
        "Instance Attributes",
        "Instance Location",
        "Instances Counting",
        "Spatial Relation",
    ),
    *("Instance Interaction", "Visual Reasoning", "Text Understanding"),
    *("Action Recognition", "Action Prediction", "Procedure Understanding"),
)
"""Dimensions by question_type_id, which starts at 1. The last three are asked about videos.

Source: DATASET.md of SEED-Bench-2, which holds the same questions, and HELM. The first version's DATASET.md swaps 3 and
4.
"""


def ask_seedbench(row: Row) -> Question:
    """Ask a question. A video is given as its frames, stored as images in the dataset. Question ids are not unique."""
    options = [row[f"choice_{name}"] for name in "abcd"]
    number = int(row["question_type_id"])
    return Question(
        id="",
        prompt=[*row["image"], multiple_choice_prompt(row["question"], options)],
        answer=row["answer"].strip().upper(),
        options=options,
        groups={"data_type": row["data_type"], "dimension": SEED_DIMENSIONS[number - 1]},
        cluster=str(row["data_id"]),
        fields={"question_id": row["question_id"]},
    )


SEEDBENCH = Task(
    "seedbench",
    HubDataset(
        "lmms-lab/SEED-Bench",
        "test",
        {
            "question_id": "string",
            "question": "string",
            "choice_a": "string",
            "choice_b": "string",
            "choice_c": "string",
            "choice_d": "string",
            "answer": "string: a letter",
            "data_id": "string: of the image or video",
            "data_type": "string: image or video",
            "question_type_id": "int16: 1 to 12",
            "image": "list of images: one, or a video's frames",
        },
        fixture=seedbench,
    ),
    ask_seedbench,
    FIRST_CHARACTER,
    tags=("core", "local", "regression"),
    max_new_tokens=16,
    description="Twelve dimensions of understanding images and videos.",
    url="https://arxiv.org/abs/2307.16125",
)

_VSTAR_OPTION = re.compile(r"\(([A-D])\)\s*(.*?)\s*(?=\n|\([A-D]\)|$)")


def ask_vstar(row: Row) -> Question:
    """Ask a question. The column "text" holds the question, its options as "(A) …", and how to answer.

    Options are lettered as in lmms-eval, but the instruction appears only once: lmms-eval's pattern reads the text's
    own instruction as part of the last option, and then adds another. VILA's own task is not public.
    """
    text = row["text"]
    options = [option for _, option in _VSTAR_OPTION.findall(text)]
    return Question(
        id=f"{row['category']}/{row['question_id']}",
        prompt=[row["image"], multiple_choice_prompt(text.partition("(A)")[0].strip(), options)],
        answer=row["label"].strip().upper(),
        options=options,
        groups={"category": row["category"]},
    )


VSTAR = Task(
    "vstar",
    HubDataset(
        "lmms-lab/vstar-bench",
        "test",
        {
            "question_id": "string",
            "text": "string: the question, its options and how to answer",
            "label": "string: a letter",
            "category": "string: direct_attributes or relative_position",
            "image": "image",
        },
        fixture=vstar,
    ),
    ask_vstar,
    MULTIPLE_CHOICE,
    version=2,
    tags=("core", "local"),
    max_new_tokens=16,
    description="V*: small things in large photos.",
    url="https://arxiv.org/abs/2312.14135",
)
