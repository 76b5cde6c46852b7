"""What a task asks and how it scores belong to its version: `task_versions.json` records a digest of both.

After raising the version of a changed task, run `python tests/eval/test_task_versions.py`.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from vila_eval.data.sources import DataOptions
from vila_eval.metric import Metric
from vila_eval.task import Question, Task, as_questions, resolve_metric
from vila_eval.tasks import (
    DRAWING_TASKS,
    DRAWN_WORLD,
    FINETUNING_TASKS,
    IMAGE_TASKS,
    JUDGED_TASKS,
    KNOWLEDGE_TASKS,
    RECONSTRUCTION_TASKS,
    VIDEO_TASKS,
)

RECORD = Path(__file__).with_name("task_versions.json")
TASKS = (
    *IMAGE_TASKS,
    *KNOWLEDGE_TASKS,
    *VIDEO_TASKS,
    *JUDGED_TASKS,
    *FINETUNING_TASKS,
    *DRAWN_WORLD,
    *RECONSTRUCTION_TASKS,
    *DRAWING_TASKS,
)
ROWS = 3
ANSWERS = (
    *(
        "B",
        "b",
        "B.",
        "(B)",
        "**B**",
        "B. red",
        "B: red",
        "Option B",
        "Answer: B",
        "The answer is (B).",
        "{'answer': 'B'}",
    ),
    *(
        "The answer is B because A is wrong.",
        "A or B",
        "A man",
        "答案是B",
        "yes",
        "No, there is not.",
        "NO",
        "not sure",
    ),
    *(
        "There is no dog.",
        "a red circle",
        "circle",
        "two",
        "2",
        "2.04",
        "2 %",
        "1,000",
        "[0.1, 0.2, 0.5, 0.6]",
        "",
        " ",
    ),
)


def digest(task: Task) -> str:
    """The SHA-256 of the texts that a task asks in its first rows, and of the scores of `ANSWERS`."""
    with tempfile.TemporaryDirectory() as cache:
        rows = task.source.open(DataOptions(cache=Path(cache), fixtures=True))
        questions = [question for index in range(min(ROWS, len(rows))) for question in as_questions(task, rows, index)]
    stated: list[Any] = [task.max_new_tokens, *task.stop]
    for question in questions:
        stated += [[part for part in question.prompt if isinstance(part, str)], *_outcomes(task, question)]
    return hashlib.sha256(json.dumps(stated, ensure_ascii=False).encode()).hexdigest()[:16]


def _outcomes(task: Task, question: Question) -> list[Any]:
    metric = resolve_metric(task)
    if metric is None or question.answer is None:
        return []
    if not isinstance(metric, Metric):
        return [[request.messages, request.temperature] for request in metric.requests("an answer", question)]
    scores = [metric.score(answer, question).values for answer in ANSWERS]
    return [{name: round(value, 6) for name, value in values.items()} for values in scores]


def record() -> dict[str, str]:
    """The version and digest of each task."""
    return {task.name: f"{task.version} {digest(task)}" for task in TASKS}


def test_changed_tasks_have_a_higher_version() -> None:
    recorded: dict[str, str] = json.loads(RECORD.read_text())
    found = record()
    changed = [name for name in found.keys() & recorded.keys() if found[name] != recorded[name]]
    unraised = [name for name in changed if found[name].split()[0] == recorded[name].split()[0]]
    assert not unraised, (
        f"Prompts or scores of {sorted(unraised)} changed: raise `version`, and say so in CHANGELOG.md."
    )
    assert found == recorded, f"Run: python tests/eval/{Path(__file__).name}"


if __name__ == "__main__":
    RECORD.write_text(json.dumps(record(), indent=1) + "\n")
