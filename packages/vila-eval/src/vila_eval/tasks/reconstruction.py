"""Pictures to codes and back, with models that draw (VILA-U): what the image tokenizer alone loses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core.media import Image
from vila_eval.metrics.reconstruction import RECONSTRUCTION
from vila_eval.task import Question, Row, Task
from vila_eval.tasks.drawn_world import DrawnWorld

if TYPE_CHECKING:
    from vila_core.runtime import Vila


def ask(row: Row) -> Question:
    """Take the pictures of a row's prompt."""
    return Question(id=row["id"], prompt=[part for part in row["prompt"] if isinstance(part, Image)])


def reconstruct(model: Vila, questions: Sequence[Question]) -> Sequence[str]:
    """Encode and decode the pictures of each question.

    Returns:
        for each, JSON: `psnr` and `ssim` (means over the pictures), `codes` of all positions, and `codebook_size`.

    Raises:
        ConfigError: the model has no codes of pictures.
        MediaError: a picture cannot be read.
    """
    return [_reconstruct(model, question) for question in questions]


def _reconstruct(model: Vila, question: Question) -> str:
    from vila_core.generation.reconstruction import measure_pictures

    tokenizer = model.image_tokenizer
    values = tokenizer.prepare([part for part in question.prompt if isinstance(part, Image)], model.limits)
    codes = tokenizer.encode_bytes(values)
    quality = measure_pictures(tokenizer.decode_bytes(codes), values.permute(0, 2, 3, 1).numpy())
    return json.dumps(
        {
            "psnr": quality.psnr,
            "ssim": quality.ssim,
            "codebook_size": tokenizer.codebook_size,
            "codes": codes.reshape(-1, codes.shape[-1]).tolist(),
        }
    )


RECONSTRUCTION_TASKS = (
    Task(
        "reconstruction/drawn-world",
        DrawnWorld("attribute", samples=200),
        ask,
        RECONSTRUCTION,
        tags=("reconstruction",),  # not "local": only models that draw can do it
        description="Pictures of the drawn world, encoded and decoded by the model's image tokenizer.",
        respond=reconstruct,
    ),
)
