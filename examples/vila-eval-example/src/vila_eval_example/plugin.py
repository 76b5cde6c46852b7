"""The benchmark `example/scenes`: describe a drawn picture."""

from pathlib import Path

from vila_core import Image, hookimpl
from vila_eval import LocalFiles, MeanMetric, Question, Row, Task
from vila_eval_example.word_error_rate import word_error_rate

VILA_HOOK_API = 2

COLUMNS = {"picture": "file name", "description": "what the picture shows", "things": "number of things"}
DATA = LocalFiles(Path(__file__).parent / "data" / "scenes.jsonl", COLUMNS)


def ask(row: Row) -> Question:
    """Ask for a description. Results are also reported by the number of things."""
    prompt = [Image(row["picture"]), "What is in the picture?"]
    return Question(row["picture"], prompt, answer=row["description"], groups={"things": str(row["things"])})


SCENES = Task(
    "example/scenes",
    DATA,
    ask,
    "word_error_rate",
    tags=["local"],
    max_new_tokens=64,
    description="Describe a drawn picture.",
)

WORD_ERROR_RATE = MeanMetric("word_error_rate", word_error_rate, higher_is_better=False)


@hookimpl
def vila_tasks() -> list[Task]:
    """Register the benchmark."""
    return [SCENES]


@hookimpl
def vila_metrics() -> list[MeanMetric]:
    """Register the metric, which other tasks may use too."""
    return [WORD_ERROR_RATE]
