"""Projectors."""

from typing import Annotated

from pydantic import Field

from vila_core import size_limits
from vila_core.config.base import Config, Width

PROJECTOR_NAMES = (
    "identity",
    "linear",
    *(f"mlp{depth}x_gelu" for depth in range(1, 10)),
    "mlp_downsample",
    "mlp_downsample_2x2_fix",
    "mlp_downsample_3x3_fix",
    "mlp_downsample_3x3_s2",
    "mlp_downsample_3x3_s2_new",
)
"""The types that `vila_core.projectors` builds, with the names used by the reference."""

FOLDED_PATCHES = {
    "identity": 1, "linear": 1, "mlp2x_gelu": 1, "mlp_downsample": 2, "mlp_downsample_2x2_fix": 2,
    "mlp_downsample_3x3_fix": 3, "mlp_downsample_3x3_s2": 3, "mlp_downsample_3x3_s2_new": 3,
}  # fmt: skip
"""Projector -> r, where r x r patches become one token (see `vila_core.projectors`)."""


class ProjectorConfig(Config):
    """`in_size` is the tower's output width (times the scales under S2), `out_size` the language model's width."""

    name: str
    in_size: Annotated[int, Field(gt=0, le=size_limits.MAX_WIDTH * size_limits.MAX_SCALES)]
    out_size: Width
