"""Text in images: TextVQA and OCRBench.

Prompts, token limits and scores are those of lmms-eval. `textvqa` is VILA's own variant, which also gives the model the
words found by an OCR system. Columns: READMEs of lmms-lab/textvqa and echo840/OCRBench on the hub.
"""

from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.text import ocrbench, textvqa
from vila_eval.metric import Submission
from vila_eval.metrics.ocrbench import ABILITY_OF_TYPE, OCRBENCH_METRIC
from vila_eval.metrics.vqa import EVALAI_VQA_ACCURACY
from vila_eval.prompts import SHORT_ANSWER
from vila_eval.task import Question, Row, Task
from vila_eval.tasks.images.submissions import answer_list

TEXTVQA_COLUMNS = {
    "question_id": "int32",
    "image_id": "string",
    "question": "string, lower case",
    "image": "image",
    "answers": "list of 10 strings; empty in the test split",
    "ocr_tokens": "list of strings: the words that Rosetta found",
}


def ask_textvqa(row: Row) -> Question:
    """Ask about the image alone."""
    return _ask(row, row["question"].capitalize())


def ask_textvqa_with_words(row: Row) -> Question:
    """Ask with the words found by an OCR system, as in `llava_textvqa_val_v051_ocr.jsonl`, which VILA reads."""
    return _ask(row, f"{row['question'].capitalize()}\nReference OCR token: {', '.join(row['ocr_tokens'])}")


def _ask(row: Row, question: str) -> Question:
    return Question(
        id=str(row["question_id"]),
        prompt=[row["image"], f"{question}\n{SHORT_ANSWER}"],
        answer=row["answers"] or None,
        cluster=row["image_id"],
        fields={"question_id": row["question_id"]},
    )


def ask_ocrbench(row: Row) -> Question:
    """Ask the question, which says itself where a short answer is wanted."""
    kind: str = row["question_type"]
    return Question(
        id="",
        prompt=[row["image"], row["question"].strip()],
        answer=row["answer"],
        groups={"ability": ABILITY_OF_TYPE.get(kind, kind), "question_type": kind},
        fields={"dataset": row["dataset"]},
    )


LONGEST_WORDS = 64
"""TextVQA's answers are words. lmms-eval sets no limit; an answer longer than this is wrong either way."""

TEXTVQA = Task(
    "textvqa",
    HubDataset("lmms-lab/textvqa", "validation", TEXTVQA_COLUMNS, fixture=textvqa),
    ask_textvqa_with_words,
    EVALAI_VQA_ACCURACY,
    version=2,
    tags=("core", "local", "regression"),
    max_new_tokens=LONGEST_WORDS,
    description="Text in photos, with words found by an OCR system.",
    url="https://arxiv.org/abs/1904.08920",
)
TEXTVQA_VAL = Task(
    "textvqa_val",
    HubDataset("lmms-lab/textvqa", "validation", TEXTVQA_COLUMNS, fixture=textvqa),
    ask_textvqa,
    EVALAI_VQA_ACCURACY,
    version=2,
    tags=("core", "local"),
    max_new_tokens=LONGEST_WORDS,
    description="Text in photos.",
    url="https://arxiv.org/abs/1904.08920",
)
TEXTVQA_TEST = Task(
    "textvqa_test",
    HubDataset("lmms-lab/textvqa", "test", TEXTVQA_COLUMNS, fixture=textvqa),
    ask_textvqa,
    None,
    tags=("submission",),
    max_new_tokens=LONGEST_WORDS,
    submission=Submission(
        "textvqa_test.json", answer_list("question_id"), "https://eval.ai/web/challenges/challenge-page/874"
    ),
    description="Text in photos; scored by the server.",
    url="https://arxiv.org/abs/1904.08920",
)
OCRBENCH = Task(
    "ocrbench",
    HubDataset(
        "echo840/OCRBench",
        "test",
        {
            "dataset": "string: where the sample is from; HME100k holds formulas",
            "question": "string",
            "question_type": "string: one of ten",
            "answer": "list of strings: any is right",
            "image": "image",
        },
        fixture=ocrbench,
    ),
    ask_ocrbench,
    OCRBENCH_METRIC,
    tags=("core", "local", "regression"),
    max_new_tokens=128,
    description="Reading text in images, from words to formulas and receipts: 1000 questions.",
    url="https://arxiv.org/abs/2305.07895",
)
