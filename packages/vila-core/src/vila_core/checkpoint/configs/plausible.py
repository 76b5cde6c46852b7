"""Whether the numbers of a config can be true: within the limits, and in agreement with the weights' headers."""

import re
from collections.abc import Iterable
from typing import cast

from vila_core import size_limits
from vila_core.checkpoint.json_files import Section
from vila_core.errors import CheckpointError

LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def check_sizes(raw: Section) -> None:
    """Check the sizes in a language model's config, at any depth, against `size_limits`.

    Raises:
        CheckpointError: a size is out of range. The message names the file and the key.
    """
    _check(raw.values, raw.source, "")


def check_layers(raw: Section, names: Iterable[str]) -> None:
    """Check the number of layers in `raw` against the names of the weights.

    Raises:
        CheckpointError: the config says more layers than the weights have.
    """
    layers = {match.group(1) for name in names if (match := _LAYER.search(name))}
    stated = next((key for key in LAYER_KEYS if key in raw), None)
    if stated is None or not layers:
        return
    number = raw.integer(stated)
    if number > len(layers):
        raise CheckpointError(
            f"{raw.source}: '{stated}' is {number}, but the weights have {len(layers)} layers. "
            "Download the checkpoint again or fix its config."
        )


def _check(value: object, source: str, key: str) -> None:
    if isinstance(value, dict):
        for inner, item in cast("dict[str, object]", value).items():
            _check(item, source, inner)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            _check(item, source, key)
    elif key in size_limits.BY_KEY and isinstance(value, int | float) and not isinstance(value, bool):
        limit = size_limits.BY_KEY[key]
        if not 1 <= value <= limit:
            shown = str(value) if abs(value) < 1e30 else "a number beyond 1e30"
            raise CheckpointError(f"{source}: '{key}' is {shown}; expected 1 to {limit}.")
