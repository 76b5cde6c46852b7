"""Plausibility checks of a config: known kernels, and numbers within limits that agree with the weights' headers."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from vila_core import size_limits
from vila_core.checkpoint.json_files import Section, read_section
from vila_core.errors import CheckpointError

LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
_EXPERTS = ("eager", "batched_mm", "grouped_mm", "deepgemm", "sonicmoe")
KERNEL_KEYS = {
    **dict.fromkeys(("attn_implementation", "_attn_implementation", "_attn_implementation_internal"), _ATTENTION),
    **dict.fromkeys(
        ("experts_implementation", "_experts_implementation", "_experts_implementation_internal"), _EXPERTS
    ),
}
"""Key -> the names that transformers itself has. It takes any other name for a repository of code."""

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def read_config(path: Path) -> Section:
    """Read the `config.json` of a model or a part of it.

    Raises:
        CheckpointError: the file cannot be read, or it names a kernel that is not one of transformers' own.
    """
    section = read_section(path)
    for key, value in _kernels(section.values):
        if not isinstance(value, str) or value.removeprefix("paged|") not in KERNEL_KEYS[key]:
            raise CheckpointError(
                f"{section.source}: '{key}' is {str(value)[:100]!r}; expected one of {', '.join(KERNEL_KEYS[key])}. "
                "The code of a checkpoint is never run: remove the key."
            )
    return section


def _kernels(value: object) -> Iterator[tuple[str, object]]:
    """Yield the key and the name of each kernel, at any depth; an object names one for each sub-config."""
    if isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _kernels(item)
    elif isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            if key in KERNEL_KEYS and item is not None:
                named = cast("dict[str, object]", item).values() if isinstance(item, dict) else [item]
                yield from ((key, name) for name in named if name is not None)
            else:
                yield from _kernels(item)


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
