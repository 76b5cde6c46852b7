"""Smaller variants of a model that does not fit into memory: another dtype, or 4 bits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vila_core.checkpoint import Checkpoint, estimate
from vila_core.config import DecoderConfig
from vila_core.device_memory import name_size

BITS = 4.25
"""Bits per weight after AWQ: 4, plus a scale and a zero point of 16 bits each for every 128 weights."""
_QUANTIZED = re.compile(r"llm\.model\.layers\.\d+\..*proj\.weight")


@dataclass(frozen=True)
class SmallerVariant:
    """A way to load a model in less memory.

    Attributes:
        words: what the model is then, such as "in bfloat16".
        how: the option or program that does it.
        weight_bytes: size of its weights.
    """

    words: str
    how: str
    weight_bytes: int


def smaller_variants(checkpoint: Checkpoint, dtype: torch.dtype) -> list[SmallerVariant]:
    """Return how a model could be loaded in less memory than in `dtype`.

    Empty if it is quantized already and in 16 bits otherwise.
    """
    variants: list[SmallerVariant] = []
    if dtype == torch.float32:
        variants.append(
            SmallerVariant("in bfloat16", "--dtype bfloat16", estimate(checkpoint).weight_bytes("bfloat16"))
        )
    if checkpoint.quantization is None and isinstance(checkpoint.config.language_model, DecoderConfig):
        weight_bytes = sum(
            int(entry.numel * BITS / 8) if _QUANTIZED.fullmatch(name) else 2 * entry.numel
            for name, entry in checkpoint.weights.entries.items()
        )
        variants.append(SmallerVariant("quantized to 4 bits", "vila-quant awq", weight_bytes))
    return variants


def say_what_fits(checkpoint: Checkpoint, dtype: torch.dtype, free: int | None, *, beside: int = 0) -> str:
    """Return advice on a model that does not fit into memory in `dtype`, without the final full stop.

    Args:
        checkpoint: the model.
        dtype: that was asked for.
        free: bytes; None if they are unknown.
        beside: bytes that are needed besides the weights.
    """
    variants = smaller_variants(checkpoint, dtype)
    if not variants:
        return "Free memory, or use a smaller model"
    if free is None:
        return f"It takes less {_listed(variants, beside)}. Free memory otherwise"
    if fitting := [variant for variant in variants if variant.weight_bytes + beside <= free]:
        return f"It fits {_listed(fitting, beside)}"
    return f"It does not fit {_listed(variants, beside)} either. Free memory, or use a smaller model"


def _listed(variants: Sequence[SmallerVariant], beside: int) -> str:
    return " or ".join(
        f"{variant.words} ({variant.how}, {name_size(variant.weight_bytes + beside)})" for variant in variants
    )
