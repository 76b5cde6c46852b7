"""Speed that the original project publishes for TinyChat, its runtime: batch 1, from VILA's README."""

from typing import Literal

Quantity = Literal["decode", "first token"]

DEVICES = {"A100": "A100", "4090": "RTX 4090", "Orin": "Jetson AGX Orin"}
"""What a GPU's name contains -> the name of the column."""

TINYCHAT: dict[tuple[str, str, Quantity], tuple[float, float, float]] = {
    ("nvila-8b", "bf16", "decode"): (82.1, 61.9, 11.6),
    ("nvila-8b", "w4", "decode"): (186.8, 162.7, 28.1),
    ("nvila-8b", "bf16", "first token"): (0.0434, 0.0573, 0.4222),
    ("nvila-8b", "w4", "first token"): (0.0452, 0.0356, 0.2748),
}
"""(model, weights, quantity) -> its value on an A100, an RTX 4090 and a Jetson AGX Orin: tokens/s, or seconds.

"bf16" stands for unquantized weights; TinyChat's are fp16. Its figures for NVILA-3B (fp16: 190.5 tokens/s on an RTX
4090, 42.7 on an Orin) are left out: Qwen2.5-3B's 6.2 GB cannot be read so often, so they are of a smaller model.
"""


def published(model: str, weights: str, quantity: Quantity, device: str) -> float | None:
    """Return what TinyChat's authors report for the GPU called `device`, None if nothing."""
    values = TINYCHAT.get((model, weights, quantity))
    if values is None:
        return None
    return next((value for part, value in zip(DEVICES, values, strict=True) if part in device), None)
