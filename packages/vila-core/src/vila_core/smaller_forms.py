"""What to load instead of a model that does not fit into memory: another dtype, or 4 bits."""

import re

import torch

from vila_core.checkpoint import Checkpoint, estimate
from vila_core.config import DecoderConfig
from vila_core.device_memory import name_size

BITS = 4.25
"""Bits per weight after AWQ: 4, plus a scale and a zero point of 16 bits each for every 128 weights."""
_QUANTIZED = re.compile(r"llm\.model\.layers\.\d+\..*proj\.weight")


def smaller_forms(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, int]:
    """Return how a model could be loaded in less memory than in `dtype`, in words, and the bytes of its weights then.

    None of them, if it is quantized already and in 16 bits otherwise.
    """
    forms: dict[str, int] = {}
    if dtype == torch.float32:
        forms["in bfloat16 (--dtype bfloat16)"] = estimate(checkpoint).weight_bytes("bfloat16")
    if checkpoint.quantization is None and isinstance(checkpoint.config.language_model, DecoderConfig):
        forms["quantized to 4 bits (vila-quant awq)"] = sum(
            int(entry.numel * BITS / 8) if _QUANTIZED.fullmatch(name) else 2 * entry.numel
            for name, entry in checkpoint.weights.entries.items()
        )
    return forms


def say_what_fits(checkpoint: Checkpoint, dtype: torch.dtype, free: int | None, *, beside: int = 0) -> str:
    """Return advice on a model that does not fit into memory in `dtype`, without the final full stop.

    Args:
        checkpoint: the model.
        dtype: that was asked for.
        free: bytes; None if they are unknown.
        beside: bytes that are needed besides the weights.
    """
    sizes = {words: size + beside for words, size in smaller_forms(checkpoint, dtype).items()}
    fitting = [words for words, size in sizes.items() if free is not None and size <= free]
    if fitting:
        return f"It fits {_listed({words: sizes[words] for words in fitting})}"
    if sizes and free is not None:
        return f"It does not fit {_listed(sizes)} either. Free memory, or use a smaller model"
    return f"It takes less {_listed(sizes)}. Free memory otherwise" if sizes else "Free memory, or use a smaller model"


def _listed(sizes: dict[str, int]) -> str:
    """Return the forms with their sizes, each size inside the brackets that its words end with."""
    return " or ".join(f"{words[:-1]}, {name_size(size)})" for words, size in sizes.items())
