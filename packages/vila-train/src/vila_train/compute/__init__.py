"""Computation of a training step: recomputed activations, compiled layers, 8-bit linears, and FLOP counts."""

from typing import TYPE_CHECKING

from vila_core.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vila_train.compute.flops import ModelFlops, row_flops
    from vila_train.compute.peak import peak_flops
    from vila_train.compute.preparation import prepare

__all__ = ["ModelFlops", "peak_flops", "prepare", "row_flops"]

__getattr__ = lazy_attributes(
    __name__, {"ModelFlops": "flops", "peak_flops": "peak", "prepare": "preparation", "row_flops": "flops"}
)
