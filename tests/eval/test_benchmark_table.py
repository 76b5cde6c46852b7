"""The docs list every registered benchmark. Run `python tests/eval/test_benchmark_table.py` to update the table."""

from pathlib import Path

from vila_eval.task import Task
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

TABLE = Path(__file__).parents[2] / "docs" / "assets" / "benchmarks.md"
FAMILIES = {
    "Images": IMAGE_TASKS,
    "Knowledge and mathematics": KNOWLEDGE_TASKS,
    "Videos": VIDEO_TASKS,
    "Scored by a judge": JUDGED_TASKS,
    "For fine-tuned models": FINETUNING_TASKS,
    "The drawn world": DRAWN_WORLD,
    "Models that draw": (*RECONSTRUCTION_TASKS, *DRAWING_TASKS),
}


def table() -> str:
    return "\n".join(f"## {family}\n\n{_rows(tasks)}" for family, tasks in FAMILIES.items())


def _rows(tasks: tuple[Task, ...]) -> str:
    lines = ["| task | asks | data | metric | tags |", "| --- | --- | --- | --- | --- |"]
    for task in tasks:
        name = f"[{task.name}]({task.url})" if task.url else task.name
        metric = task.metric if isinstance(task.metric, str) or task.metric is None else task.metric.name
        scored = metric or f"on [its server]({task.submission.server})" if task.submission else metric
        lines.append(f"| {name} | {task.description} | {task.source.description} | {scored} | {', '.join(task.tags)} |")
    return "\n".join([*lines, ""])


def test_docs_list_every_task() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(), "Run: python tests/eval/test_benchmark_table.py"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
