"""MMBench in English and Chinese, and CCBench on Chinese culture: circular multiple choice.

Liu et al. 2023, arXiv:2307.06281. `--tasks mmbench` runs all five tasks. The answers of "dev" and CCBench are public
and scored here, by rules. The server scores "test"; there, a language model reads the answers that its rules cannot
read. Prompts and token limits are those of lmms-eval. Columns: README of lmms-lab/MMBench on the hub.
"""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from vila_eval.data.sources import HubDataset
from vila_eval.fixtures.mmbench import mmbench
from vila_eval.metric import Answered, Submission
from vila_eval.metrics.choices.mmbench import MMBENCH_METRIC
from vila_eval.prompts import LETTER_ONLY, lettered
from vila_eval.task import Question, Row, Task

COLUMNS = {
    "index": "int64: rotation * 1000000 + question",
    "question": "string",
    "hint": "string, or nan for none",
    "A": "string",
    "B": "string",
    "C": "string, or nan for none",
    "D": "string, or nan for none",
    "answer": "string: a letter; none in the test split",
    "category": "string: one of twenty abilities",
    "L2-category": "string: one of six groups of abilities",
    "image": "image",
}
CULTURE_COLUMNS = {
    **{name: COLUMNS[name] for name in ("index", "question", "A", "B", "C", "D", "image")},
    "answer": "string: a letter",
    "category": "string: a part of Chinese culture",
    "source": "string",
}
"""CCBench: the configuration "cc"."""
SERVER_COLUMNS = ("index", "question", "A", "B", "C", "D", "prediction", "category", "l2_category")
"""Source: the README of open-compass/MMBench."""

OPTIONS_FOLLOW = "There are several options:"
"""In Chinese too: lmms-eval (0.3.0 and 0.7.3) reads this text from `mmbench.yaml` for all languages."""
INSTRUCTIONS = {"en": LETTER_ONLY, "cn": "请直接使用所提供的选项字母作为答案回答。"}


def ask(language: str, row: Row) -> Question:
    """Ask the hint, the question and the options on separate lines, then, after an empty line, how to answer."""
    hint = f"{row['hint']} " if _given(row["hint"]) else ""
    return _ask(row, hint, language, {"l2_category": row["L2-category"], "category": row["category"]})


def ask_culture(row: Row) -> Question:
    """Ask a question of CCBench, which has no hints."""
    return _ask(row, "", "cn", {"category": row["category"]})


def _ask(row: Row, hint: str, language: str, groups: dict[str, str]) -> Question:
    options = [row[name] for name in "ABCD" if _given(row[name])]
    text = f"{hint}{row['question']} {OPTIONS_FOLLOW}\n{lettered(options)}\n\n{INSTRUCTIONS[language]}"
    return Question(
        id=str(row["index"]),
        prompt=[row["image"], text],
        answer=row["answer"] if _given(row["answer"]) else None,
        options=options,
        groups=groups,
        fields={"index": row["index"], "question": row["question"]},
    )


def _given(cell: str | None) -> bool:
    return cell not in (None, "", "nan")


def write_submission(samples: Sequence[Answered]) -> bytes:
    """Return the Excel file for the server. Cells of missing options stay blank."""
    import xlsxwriter

    file = io.BytesIO()
    with xlsxwriter.Workbook(
        file, {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False}
    ) as workbook:
        workbook.set_properties({"created": datetime(2000, 1, 1, tzinfo=UTC)})  # identical answers give identical bytes
        sheet = workbook.add_worksheet()
        sheet.write_row(0, 0, SERVER_COLUMNS)
        for number, sample in enumerate(samples, 1):
            sheet.write_row(number, 0, _cells(sample))
    return file.getvalue()


def _cells(sample: Answered) -> list[str | int]:
    question = sample.question
    options = [*question.options, "", "", "", ""][:4]
    categories = (question.groups["category"], question.groups["l2_category"])
    return [question.fields["index"], question.fields["question"], *options, sample.answer, *categories]


def _task(language: str, split: str) -> Task:
    is_test = split == "test"
    name = f"mmbench_{language}_{split}"
    return Task(
        name,
        HubDataset("lmms-lab/MMBench", split, COLUMNS, config=language, fixture=mmbench),
        partial(ask, language),
        None if is_test else MMBENCH_METRIC,
        version=1 if name == "mmbench_en_test" else 2,
        tags=("core", "submission", "mmbench"),
        max_new_tokens=1024 if language == "en" else 256,
        submission=Submission(f"{name}.xlsx", write_submission, "https://mmbench.opencompass.org.cn")
        if is_test
        else None,
        description=f"Twenty abilities, options rotated ({'English' if language == 'en' else 'Chinese'}).",
        url="https://arxiv.org/abs/2307.06281",
    )


MMBENCH = (
    *(_task(language, split) for language in ("en", "cn") for split in ("dev", "test")),
    Task(
        "mmbench_cn_cc",
        HubDataset("lmms-lab/MMBench", "test", CULTURE_COLUMNS, config="cc", fixture=mmbench),
        ask_culture,
        MMBENCH_METRIC,
        tags=("core", "submission", "mmbench"),
        max_new_tokens=256,
        description="CCBench: Chinese culture, options rotated.",
        url="https://arxiv.org/abs/2307.06281",
    ),
)
