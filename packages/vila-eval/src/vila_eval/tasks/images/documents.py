"""Questions about scanned documents and infographics: DocVQA and InfographicVQA.

Prompts and token limits are those of lmms-eval. Columns: README of lmms-lab/DocVQA on the hub.
"""

from collections.abc import Sequence

from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.documents import docvqa
from vila_eval.metric import Submission
from vila_eval.metrics.anls import ANLS
from vila_eval.prompts import SHORT_ANSWER
from vila_eval.task import Question, Row, Task
from vila_eval.tasks.images.submissions import answer_list

DOCVQA_COLUMNS = {
    "questionId": "string: a number",
    "question": "string",
    "image": "image: a page",
    "ucsf_document_id": "string",
    "ucsf_document_page_no": "string: a number",
    "question_types": "list of strings, such as table/list; null in the test split",
    "answers": "list of strings: any is right; null in the test split",
}
INFOVQA_COLUMNS = {
    "questionId": "string: a number",
    "question": "string",
    "image": "image: an infographic",
    "image_url": "string",
    "answer_type": "list of strings, such as single span; null in the test split",
    "answers": "list of strings: any is right; null in the test split",
}
SERVER = "https://rrc.cvc.uab.es/?ch=17"


def ask_docvqa(row: Row) -> Question:
    """Ask a question. Questions about one page share a cluster."""
    return _ask(
        row, f"{row['ucsf_document_id']}_{row['ucsf_document_page_no']}", "question_type", row["question_types"]
    )


def ask_infovqa(row: Row) -> Question:
    """Ask a question. Questions about one infographic share a cluster."""
    return _ask(row, row["image_url"], "answer_type", row["answer_type"])


def _ask(row: Row, image: str, dimension: str, types: Sequence[str] | None) -> Question:
    return Question(
        id=row["questionId"],
        prompt=[row["image"], f"{row['question']}\n{SHORT_ANSWER}"],
        answer=row["answers"] or None,
        groups={dimension: types[0] if len(types) == 1 else "several"} if types else {},
        cluster=image,
        fields={"questionId": int(row["questionId"])},
    )


DOCVQA_VAL = Task(
    "docvqa_val",
    HubDataset("lmms-lab/DocVQA", "validation", DOCVQA_COLUMNS, config="DocVQA", fixture=docvqa),
    ask_docvqa,
    ANLS,
    tags=("core", "local", "regression"),
    description="Questions about scanned documents.",
    url="https://arxiv.org/abs/2007.00398",
)
DOCVQA_TEST = Task(
    "docvqa_test",
    HubDataset("lmms-lab/DocVQA", "test", DOCVQA_COLUMNS, config="DocVQA", fixture=docvqa),
    ask_docvqa,
    None,
    tags=("submission",),
    submission=Submission("docvqa_test.json", answer_list("questionId"), SERVER),
    description="Questions about scanned documents; scored by the server.",
    url="https://arxiv.org/abs/2007.00398",
)
INFOVQA_VAL = Task(
    "infovqa_val",
    HubDataset("lmms-lab/DocVQA", "validation", INFOVQA_COLUMNS, config="InfographicVQA", fixture=docvqa),
    ask_infovqa,
    ANLS,
    tags=("core", "local", "regression"),
    description="Questions about infographics.",
    url="https://arxiv.org/abs/2104.12756",
)
INFOVQA_TEST = Task(
    "infovqa_test",
    HubDataset("lmms-lab/DocVQA", "test", INFOVQA_COLUMNS, config="InfographicVQA", fixture=docvqa),
    ask_infovqa,
    None,
    tags=("submission",),
    submission=Submission("infovqa_test.json", answer_list("questionId"), SERVER),
    description="Questions about infographics; scored by the server.",
    url="https://arxiv.org/abs/2104.12756",
)
