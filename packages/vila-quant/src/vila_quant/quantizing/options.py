"""The options of quantization."""

from typing import Literal

from pydantic import Field

from vila_core.config import Listed, Settings

SEQUENCES = {"cuda": 128, "cpu": 16}
"""Default number of calibration sequences: as llm-awq on a GPU, and a few minutes on a laptop's CPU."""
PICTURE_SHARES = {"cuda": 0.25, "cpu": 0.04}
"""Fraction of built-in samples with an image, which is slow to embed on a CPU."""


class QuantizationOptions(Settings):
    """Options for quantizing a model.

    Attributes:
        bits: bits per weight of the language model's linears.
        group_size: weights that share a scale; must divide the width of every quantized linear.
        lm_head: "int8" or "int4" to quantize the output head, which is read completely for every token.
        vision: "int8" or "fp8" to quantize the vision tower's linears.
        vision_alpha: SmoothQuant's α, 0 to 1; None searches it.
        skip: patterns (`fnmatch`) of modules not to quantize, such as `llm.model.layers.0.*`.
        search: a registered method, or a file (`.pt`) of AWQ search results to apply.
        calibration: a source of samples, see `vila_quant.calibration.samples`.
        sequences: number of calibration sequences; None for `SEQUENCES`.
        sequence_length: tokens per calibration sequence.
        seed: seed for the order of samples, and for generated samples.
        chat_template: a registered template; None for the checkpoint's.
        format: a registered format for quantized weights.
        search_results: whether to write scales and clips too, as llm-awq does; they do not include the gain of `best`'s
            rounding.
    """

    bits: Literal[4] = 4
    group_size: Literal[128, 64, 32] = 128
    lm_head: Literal["none", "int8", "int4"] = "none"
    vision: Literal["none", "int8", "fp8"] = "none"
    vision_alpha: float | None = Field(default=None, ge=0, le=1)
    skip: Listed[str] = ()
    search: str = "best"
    calibration: str = "auto"
    sequences: int | None = Field(default=None, ge=1)
    sequence_length: int = Field(default=512, ge=16)
    seed: int = Field(default=0, ge=0, lt=2**63)
    chat_template: str | None = None
    format: str = "awq"
    search_results: bool = False
