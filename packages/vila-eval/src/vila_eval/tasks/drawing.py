"""Descriptions of the drawn world, drawn by models that draw (VILA-U), and read from the pixels without a detector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core.errors import PluginError
from vila_core.plugins.loader import load_plugins
from vila_eval.metrics.drawn_attributes import DRAWN_ATTRIBUTES
from vila_eval.task import Question, Row, Task
from vila_eval.tasks.drawn_world import DrawnWorld

if TYPE_CHECKING:
    from vila_core.runtime import Vila

SOURCE = DrawnWorld("draw_things", dataset="drawn-world-drawings")
SEED = 0


def ask(row: Row) -> Question:
    """Take the description, and what the picture must show."""
    return Question(
        id=row["id"],
        prompt=row["prompt"],
        answer=row["answer"],
        groups={"things": row["kind"]},
        fields={"index": row["index"]},
    )


def draw(model: Vila, questions: Sequence[Question]) -> Sequence[str]:
    """Draw the descriptions together, with the settings that `generate_image` has by default.

    Returns:
        for each, JSON: color, shape, position and count as [right, of].

    Raises:
        ConfigError: the model does not draw.
    """
    texts = [" ".join(part for part in question.prompt if isinstance(part, str)) for question in questions]
    pictures = model.generate_image_batch(texts, seed=SEED)
    dataset = load_plugins().datasets.get(SOURCE.dataset)
    answers: list[str] = []
    for question, picture in zip(questions, pictures, strict=True):
        sample = dataset.sample(SOURCE.split, SOURCE.test, question.fields["index"])
        if sample.compare is None:
            raise PluginError(f"Dataset '{SOURCE.dataset}' cannot compare pictures with its descriptions.")
        answers.append(json.dumps({name: [*counts] for name, counts in sample.compare(picture).items()}))
    return answers


DRAWING_TASKS = (
    Task(
        "drawing/drawn-world",
        SOURCE,
        ask,
        DRAWN_ATTRIBUTES,
        tags=("drawing",),  # not "local": only models that draw can do it
        description="Descriptions of the drawn world to draw: colors, shapes, positions and numbers of things.",
        respond=draw,
    ),
)
