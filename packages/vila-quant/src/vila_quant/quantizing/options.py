"""What `vila-quant awq` can be told."""

from typing import Literal

from pydantic import Field

from vila_core.config import Config

SEQUENCES = {"cuda": 128, "cpu": 16}
"""Calibration sequences where no number is given: what the reference takes, and what takes minutes on a laptop."""
PICTURE_SHARES = {"cuda": 0.25, "cpu": 0.04}
"""Of the built-in samples, those that are pictures: they are dear where the vision tower runs on a CPU."""


class QuantizationOptions(Config):
    """How to quantize a model.

    Attributes:
        bits: of the language model's linears.
        group_size: weights that share a scale; must divide the width of every linear that is quantized.
        lm_head: "int8" or "int4" quantize the output head, which every token reads as a whole.
        vision: "int8" or "fp8" quantize the vision tower's linears.
        vision_alpha: SmoothQuant's α, 0 to 1; None searches it.
        skip: patterns (`fnmatch`) of modules to leave whole, such as `llm.model.layers.0.*`.
        search: a registered method, or a file (`.pt`) of AWQ search results to apply.
        calibration: as `vila_quant.calibration.samples` says.
        sequences: of the calibration; None takes `SEQUENCES`.
        sequence_length: tokens of each.
        seed: of the order of samples, and of what is drawn.
        chat_template: a registered template; None takes the checkpoint's.
        format: a registered format that holds quantized weights.
        search_results: whether to write the scales and clips too, as llm-awq does. What `best` wins by rounding is not in them.
    """

    bits: Literal[4] = 4
    group_size: Literal[128, 64, 32] = 128
    lm_head: Literal["none", "int8", "int4"] = "none"
    vision: Literal["none", "int8", "fp8"] = "none"
    vision_alpha: float | None = Field(default=None, ge=0, le=1)
    skip: tuple[str, ...] = ()
    search: str = "best"
    calibration: str = "auto"
    sequences: int | None = Field(default=None, ge=1)
    sequence_length: int = Field(default=512, ge=16)
    seed: int = 0
    chat_template: str | None = None
    format: str = "awq"
    search_results: bool = False
