"""Packing: samples of different lengths share rows of a fixed capacity, and do not see each other."""

from vila_train.packing.bins import pack
from vila_train.packing.rows import PackedRow, packed_loss

__all__ = ["PackedRow", "pack", "packed_loss"]
