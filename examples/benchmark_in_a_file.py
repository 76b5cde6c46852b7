"""A benchmark in one file: questions about the bundled pictures and video.

vila-eval --plugin examples/benchmark_in_a_file.py --tasks bundled
"""

from pathlib import Path

from vila_core import hookimpl
from vila_core.media import open_media
from vila_eval import LocalFiles, Question, Row, Task

QUESTIONS = LocalFiles(
    Path(__file__).parent / "media" / "questions.json",
    {"media": "file names, one or two", "text": "the question", "answer": "the answer"},
)


def ask(row: Row) -> Question:
    """Put the media first, then the question."""
    return Question(id=row["media"][0], prompt=[*map(open_media, row["media"]), row["text"]], answer=row["answer"])


BUNDLED = Task("bundled", QUESTIONS, ask, metric="exact_match", description="The bundled pictures and video.")


@hookimpl
def vila_tasks() -> list[Task]:
    """Register the benchmark."""
    return [BUNDLED]
