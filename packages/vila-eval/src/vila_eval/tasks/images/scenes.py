"""Questions about photos: GQA, VQAv2, VizWiz and RealWorldQA.

Prompts, token limits and scores are those of lmms-eval. Columns: READMEs of lmms-lab/GQA, lmms-lab/VQAv2,
lmms-lab/VizWiz-VQA and lmms-lab/RealWorldQA on the hub.
"""

from vila_eval.data.joined import JoinedDataset
from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.scenes import gqa, realworldqa, vizwiz, vqav2
from vila_eval.metric import Submission
from vila_eval.metrics.choices.realworldqa import FLEXIBLE_EXTRACT
from vila_eval.metrics.exact_match import NORMALIZED_EXACT_MATCH
from vila_eval.metrics.vqa import EVALAI_VQA_ACCURACY, VQA_ACCURACY
from vila_eval.prompts import SHORT_ANSWER
from vila_eval.task import Question, Row, Task
from vila_eval.tasks.images.submissions import answer_list


def ask_gqa(row: Row) -> Question:
    """Ask a question. `types` holds its structure (verify, query, …) and its content (object, attribute, …)."""
    return Question(
        id=row["id"],
        prompt=[row["image"], f"{row['question']}\n{SHORT_ANSWER}"],
        answer=row["answer"],
        groups={kind: row["types"][kind] for kind in ("structural", "semantic") if row["types"][kind]},
        cluster=row["imageId"],
    )


GQA = Task(
    "gqa",
    JoinedDataset(
        HubDataset(
            "lmms-lab/GQA",
            "testdev",
            {
                "id": "string",
                "imageId": "string",
                "question": "string",
                "answer": "string",
                "types": "object of strings: structural, semantic, detailed",
            },
            config="testdev_balanced_instructions",
            fixture=gqa,
        ),
        HubDataset(
            "lmms-lab/GQA", "testdev", {"id": "string", "image": "image"}, config="testdev_balanced_images", fixture=gqa
        ),
        key="imageId",
    ),
    ask_gqa,
    NORMALIZED_EXACT_MATCH,
    tags=("core", "local", "regression"),
    max_new_tokens=16,
    description="Compositional questions about photos (balanced testdev).",
    url="https://arxiv.org/abs/1902.09506",
)


def ask_vqav2(row: Row) -> Question:
    """Ask a question. Questions about one photo share a cluster."""
    return Question(
        id=str(row["question_id"]),
        prompt=[row["image"], f"{row['question']}\n{SHORT_ANSWER}"],
        answer=[given["answer"] for given in row["answers"] or ()] or None,
        groups={"answer_type": row["answer_type"]} if row["answer_type"] else {},
        cluster=str(row["image_id"]),
        fields={"question_id": row["question_id"]},
    )


VQAV2_COLUMNS = {
    "question_id": "int64",
    "image_id": "int64: of COCO",
    "question": "string",
    "image": "image",
    "answers": "list of 10 objects with the string answer; null in the test split",
    "answer_type": "string: yes/no, number or other; null in the test split",
}
VQAV2_VAL = Task(
    "vqav2_val",
    HubDataset("lmms-lab/VQAv2", "validation", VQAV2_COLUMNS, fixture=vqav2),
    ask_vqav2,
    VQA_ACCURACY,
    version=2,
    tags=("local", "regression"),
    max_new_tokens=16,
    description="Questions about photos, with ten people's answers.",
    url="https://arxiv.org/abs/1612.00837",
)
VQAV2_TEST = Task(
    "vqav2_test",
    HubDataset("lmms-lab/VQAv2", "test", VQAV2_COLUMNS, fixture=vqav2),
    ask_vqav2,
    None,
    tags=("core", "submission"),
    max_new_tokens=16,
    submission=Submission(
        "vqav2_test.json", answer_list("question_id"), "https://eval.ai/web/challenges/challenge-page/830"
    ),
    description="Questions about photos; scored by the server.",
    url="https://arxiv.org/abs/1612.00837",
)


def ask_vizwiz(row: Row) -> Question:
    """Ask a question. The server identifies it by the name of its image file."""
    name = row["question_id"].removesuffix(".jpg")
    unanswerable = "When the provided information is insufficient, respond with 'Unanswerable'."
    return Question(
        id=name,
        prompt=[row["image"], f"{row['question'].capitalize()}\n{unanswerable}\n{SHORT_ANSWER}"],
        answer=row["answers"] or None,
        groups={"category": row["category"]} if row["category"] else {},
        fields={"image": f"{name}.jpg"},
    )


VIZWIZ_COLUMNS = {
    "question_id": "string: name of the image's file",
    "question": "string",
    "image": "image",
    "answers": "list of 10 strings; null in the test split",
    "category": "string: yes/no, number, other or unanswerable; null in the test split",
}
VIZWIZ_LONGEST = 64
"""lmms-eval sets no limit; an answer longer than this is wrong either way."""
VIZWIZ_VQA_VAL = Task(
    "vizwiz_vqa_val",
    HubDataset("lmms-lab/VizWiz-VQA", "val", VIZWIZ_COLUMNS, fixture=vizwiz),
    ask_vizwiz,
    EVALAI_VQA_ACCURACY,
    version=2,
    tags=("local",),
    max_new_tokens=VIZWIZ_LONGEST,
    description="Questions that blind people asked about their photos.",
    url="https://arxiv.org/abs/1802.08218",
)
VIZWIZ_VQA_TEST = Task(
    "vizwiz_vqa_test",
    HubDataset("lmms-lab/VizWiz-VQA", "test", VIZWIZ_COLUMNS, fixture=vizwiz),
    ask_vizwiz,
    None,
    tags=("core", "submission"),
    max_new_tokens=VIZWIZ_LONGEST,
    submission=Submission("vizwiz_vqa_test.json", answer_list("image"), "https://vizwiz.org/tasks-and-datasets/vqa/"),
    description="Questions that blind people asked about their photos; scored by the server.",
    url="https://arxiv.org/abs/1802.08218",
)


def ask_realworldqa(row: Row) -> Question:
    """Ask a question, which holds its options and how to answer."""
    question = row["question"].strip()
    return Question(id="", prompt=[row["image"], question], answer=row["answer"], fields={"question": question})


REALWORLDQA = Task(
    "realworldqa",
    HubDataset(
        "lmms-lab/RealWorldQA",
        "test",
        {
            "question": "string: with its options and how to answer",
            "answer": "string: a letter, a number or a word",
            "image": "image",
        },
        fixture=realworldqa,
    ),
    ask_realworldqa,
    FLEXIBLE_EXTRACT,
    tags=("core", "local", "regression"),
    max_new_tokens=16,
    description="Spatial understanding of everyday photos, many from cars.",
    url="https://huggingface.co/datasets/xai-org/RealworldQA",
)
