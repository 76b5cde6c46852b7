"""MMMU: exam questions of thirty subjects (Yue et al. 2023, arXiv:2311.16502), and MMMU-Pro (2024, arXiv:2409.02813).

Prompts and token limits are lmms-eval's, since VILA reports lmms-eval's scores: first the images, in the order of their
numbers, then the text, in which "<image 1>" stays unchanged. Scores use MMMU's own parser
(`vila_eval.metrics.choices.mmmu`), which is stricter than lmms-eval's copy, and for MMMU-Pro that of its
`evaluate.py` (`vila_eval.metrics.choices.mmmu_pro`).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from vila_core.errors import unknown_name
from vila_eval.data.sources import HubDataset
from vila_eval.errors import DataError
from vila_eval.fixtures.mmmu import mmmu, mmmu_pro
from vila_eval.metric import Answered, Submission
from vila_eval.metrics.choices.mmmu import DISCIPLINE_OF_SUBJECT, MMMU_METRIC, parse_multi_choice_response, subject_of
from vila_eval.metrics.choices.mmmu_pro import MMMU_PRO_METRIC
from vila_eval.prompts import LETTER_ONLY, SHORT_ANSWER, multiple_choice_prompt
from vila_eval.task import Part, Question, Row, Task

if TYPE_CHECKING:
    from vila_core.media import Image

PRO_LETTER_ONLY = "Answer with the option letter from the given choices directly."
_IMAGE = re.compile(r"<image (\d+)>")

COLUMNS = {
    "id": "string: <split>_<subject>_<number>",
    "question": "string, with <image n>",
    "options": "string: a Python list of texts, with <image n>; '[]' for an open question",
    "answer": "string: a letter, a text, or a Python list of texts; '?' in the test split",
    "question_type": "string: multiple-choice or open",
    **{f"image_{number}": "image or null" for number in range(1, 8)},
}
"""Source: the dataset card of MMMU/MMMU; lmms-lab/MMMU holds all its subjects in one configuration."""

PRO_COLUMNS = {
    "id": "string: <split>_<subject>_<number>",
    "options": "string: a Python list of up to ten texts",
    "answer": "string: a letter",
    "subject": "string, such as Art_Theory",
}


def ask(row: Row) -> Question:
    """Ask an MMMU question: the images, then the text that refers to them."""
    options = _read_list(row["options"]) if row["question_type"] == "multiple-choice" else []
    text = (
        multiple_choice_prompt(row["question"], options, f"\n{LETTER_ONLY}")
        if options
        else f"{row['question']}\n\n{SHORT_ANSWER}"
    )
    return Question(
        id=row["id"],
        prompt=[*_images(text, row), text],
        answer=row["answer"] if options else _open_answers(row["answer"]),
        options=options,
        groups=_groups(subject_of(row["id"])),
    )


def ask_pro(row: Row, *, as_image: bool) -> Question:
    """Ask an MMMU-Pro question, as text or (`as_image`) as a photo or screenshot of the whole question."""
    options = _read_list(row["options"])
    prompt: list[Part]
    if as_image:
        prompt = [row["image"], PRO_LETTER_ONLY]
    else:
        text = multiple_choice_prompt(row["question"], options, f"\n{PRO_LETTER_ONLY}")
        prompt = [*_images(text, row), text]
    return Question(id=row["id"], prompt=prompt, answer=row["answer"], options=options, groups=_groups(row["subject"]))


def _images(text: str, row: Row) -> list[Image]:
    """Return each image that the text refers to, once. Raises `DataError` for one that the row lacks."""
    numbers = sorted({int(number) for number in _IMAGE.findall(text)})
    for number in numbers:
        if row.get(f"image_{number}") is None:
            raise DataError(f"Question '{row['id']}' names <image {number}>, but the dataset has no such image for it.")
    return [row[f"image_{number}"] for number in numbers]


def _groups(subject: str) -> dict[str, str]:
    if subject not in DISCIPLINE_OF_SUBJECT:
        raise DataError(unknown_name("MMMU subject", subject, DISCIPLINE_OF_SUBJECT))
    return {"discipline": DISCIPLINE_OF_SUBJECT[subject], "subject": subject}


def _open_answers(answer: str) -> str | list[str]:
    """Return the answers of an open question; the hub's copy stores three lists as text ("['24/7', '3.429']")."""
    try:
        return _read_list(answer)
    except DataError:  # "[0, 5)" is not a list
        return answer


def _read_list(text: str) -> list[str]:
    try:
        found: Any = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, list):
        raise DataError(f"Got {text!r}. Expected a Python list of texts.")
    return [str(item) for item in cast("list[object]", found)]


def write_submission(samples: Sequence[Answered]) -> str:
    """Write the format of MMMU's server (`mmmu/README.md`, "Evaluation Only"): the chosen letter or the open answer."""
    return json.dumps(
        {
            question.id: parse_multi_choice_response(answer, question.options, question.id).letter
            if question.options
            else answer
            for question, answer in ((sample.question, sample.answer) for sample in samples)
        },
        ensure_ascii=False,
        indent=1,
    )


MMMU_VAL = Task(
    "mmmu_val",
    HubDataset("lmms-lab/MMMU", "validation", COLUMNS, fixture=mmmu),
    ask,
    MMMU_METRIC,
    version=2,
    tags=("core", "local", "regression"),
    max_new_tokens=128,
    description="Exam questions of thirty subjects.",
    url="https://arxiv.org/abs/2311.16502",
)
MMMU_TEST = Task(
    "mmmu_test",
    HubDataset("lmms-lab/MMMU", "test", COLUMNS, fixture=mmmu),
    ask,
    None,
    tags=("core", "submission"),
    max_new_tokens=512,
    submission=Submission(
        "mmmu_test_for_submission.json", write_submission, "https://eval.ai/web/challenges/challenge-page/2179/overview"
    ),
    description="Exam questions of thirty subjects, answers hidden.",
    url="https://arxiv.org/abs/2311.16502",
)
MMMU_PRO_STANDARD = Task(
    "mmmu_pro_standard",
    HubDataset(
        "MMMU/MMMU_Pro",
        "test",
        {
            **PRO_COLUMNS,
            "question": COLUMNS["question"],
            **{name: kind for name, kind in COLUMNS.items() if name.startswith("image_")},
        },
        config="standard (10 options)",
        fixture=mmmu_pro,
    ),
    partial(ask_pro, as_image=False),
    MMMU_PRO_METRIC,
    version=2,
    tags=("core", "local", "mmmu_pro"),
    max_new_tokens=256,
    description="MMMU without questions answerable from text alone, ten options each.",
    url="https://arxiv.org/abs/2409.02813",
)
MMMU_PRO_VISION = Task(
    "mmmu_pro_vision",
    HubDataset(
        "MMMU/MMMU_Pro",
        "test",
        {**PRO_COLUMNS, "image": "image: the question as it looks"},
        config="vision",
        fixture=mmmu_pro,
    ),
    partial(ask_pro, as_image=True),
    MMMU_PRO_METRIC,
    version=2,
    tags=("core", "local", "mmmu_pro"),
    max_new_tokens=256,
    description="MMMU-Pro with question and options in the image.",
    url="https://arxiv.org/abs/2409.02813",
)

MMMU_TASKS = (MMMU_VAL, MMMU_TEST, MMMU_PRO_STANDARD, MMMU_PRO_VISION)
