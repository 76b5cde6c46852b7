"""Settings of answers that the API and the chat page choose alike: seeds, and how to draw."""

import secrets
from collections.abc import Mapping
from typing import Any

from vila_core.engine.drawing_settings import DrawingConfig

SEEDS = 2**63
"""Seeds are below this."""


def choose_seed(asked: int | None) -> int:
    """Return the seed of an answer: the one asked for, brought into the range of seeds; a random one for None."""
    return secrets.randbelow(SEEDS) if asked is None else asked % SEEDS


def drawing_config(asked: Mapping[str, Any], seed: int | None) -> DrawingConfig:
    """Return how to draw.

    Args:
        asked: fields of `DrawingConfig`; None takes the default.
        seed: as in `choose_seed`.

    Raises:
        GenerationError: a setting is out of range.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    return DrawingConfig.model_validate({**given, "seed": choose_seed(seed)})
