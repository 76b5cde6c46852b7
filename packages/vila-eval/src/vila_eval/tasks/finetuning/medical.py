"""Medical images: PathVQA (He et al. 2020, arXiv:2003.10286) and PMC-VQA (Zhang et al. 2023, arXiv:2305.10415).

VILA's question files are not public. The questions here are the datasets' own, with LLaVA's instructions; scores are
computed as in `llava/eval/pathvqa.py` and `pmcvqa.py`.
"""

import re

from vila_core.media import Image
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.medical import pathvqa, pmcvqa
from vila_eval.metrics.choices.pmcvqa import LETTER_ALONE
from vila_eval.metrics.word_overlap import PATHVQA_METRIC
from vila_eval.prompts import SHORT_ANSWER, multiple_choice_prompt
from vila_eval.task import Question, Row, Task
from vila_eval.tasks.finetuning.image_cluster import image_cluster

_LETTER = re.compile(r"^\s*[A-D]:\s*")


def ask_pathvqa(row: Row) -> Question:
    """Ask a question. Yes-or-no and free-form questions are separate groups, as in VILA."""
    return Question(
        id="",
        prompt=[row["image"], f"{row['question']}\n{SHORT_ANSWER}"],
        answer=row["answer"],
        groups={"answer_type": "yes or no" if row["answer"] in ("yes", "no") else "free-form"},
        cluster=image_cluster(row["image"]),
    )


def ask_pmcvqa(row: Row) -> Question:
    """Ask a question. Choices have the form " A:Diffuse uptake pattern"; an empty cell is an empty text."""
    options = [_LETTER.sub("", str(row[f"Choice {letter}"] or "")).strip() for letter in "ABCD"]
    return Question(
        id="",
        prompt=[Image(row["Figure_path"]), multiple_choice_prompt(row["Question"].strip(), options)],
        answer=row["Answer_label"].strip(),
        options=options,
        cluster=row["Figure_path"],
    )


PATHVQA = Task(
    "pathvqa",
    HubDataset(
        "flaviagiammarino/path-vqa",
        "test",
        {"image": "image", "question": "string", "answer": "string: yes, no, or a phrase"},
        fixture=pathvqa,
    ),
    ask_pathvqa,
    PATHVQA_METRIC,
    tags=("finetuning", "pathvqa"),
    max_new_tokens=64,
    description="Questions about pathology images.",
    url="https://arxiv.org/abs/2003.10286",
)
PMCVQA = Task(
    "pmcvqa",
    HubDataset(
        "xmcmic/PMC-VQA",
        "test",
        {
            "Figure_path": "string: file in images.zip",
            "Question": "string",
            **{f"Choice {letter}": f"string: ' {letter}:' and the choice" for letter in "ABCD"},
            "Answer_label": "string: A to D",
        },
        archives=("images.zip",),
        data_files="test_clean.csv",
        fixture=pmcvqa,
    ),
    ask_pmcvqa,
    LETTER_ALONE,
    tags=("finetuning", "pmcvqa"),
    max_new_tokens=16,
    description="Multiple choice about figures of biomedical papers, the cleaned test set.",
    url="https://arxiv.org/abs/2305.10415",
)
