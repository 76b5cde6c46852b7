"""Packing: samples of different lengths share rows of a fixed capacity, and do not see each other."""

from vila_train.packing.bins import pack
from vila_train.packing.host_rows import HostRow
from vila_train.packing.lanes import Lane, LaneConfig, LaneRow, LaneState
from vila_train.packing.rows import PackedRow, packed_loss

__all__ = ["HostRow", "Lane", "LaneConfig", "LaneRow", "LaneState", "PackedRow", "pack", "packed_loss"]
