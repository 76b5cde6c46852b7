"""Sequences that lie one after another in one row, without padding: no token attends to another sequence.

S sequences, T tokens of all of them, D_h head width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from vila_core.language.rope import Rotary


@dataclass(frozen=True)
class PackedSequences:
    """Where each sequence of a packed row begins and ends.

    Attributes:
        lengths: tokens of each of the S sequences, at least 1.
        device: of the row.
    """

    lengths: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> PackedSequences:
        """Return the layout of a row of `sum(lengths)` tokens."""
        assert lengths, "a row holds at least one sequence"
        assert min(lengths) > 0, "a sequence has at least one token"
        return cls(tuple(lengths), device)

    @cached_property
    def positions(self) -> torch.Tensor:
        """Positions, which restart with each sequence: int64 `[1, T]`."""
        return torch.cat([torch.arange(length, device=self.device) for length in self.lengths])[None]

    @cached_property
    def bounds(self) -> torch.Tensor:
        """Where sequences begin, and T: int32 `[S + 1]`."""
        return torch.tensor([*accumulate(self.lengths, initial=0)], dtype=torch.int32, device=self.device)


def packed_rotation(rotary: Rotary, packed: PackedSequences, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin `[1, 1, T, D_h]` of a packed row."""
    scaling = rotary.config.rope_scaling
    if scaling is None or scaling.rope_type != "dynamic":
        return rotary(packed.positions, dtype)
    # Dynamic scaling depends on the length of the sequence.
    parts = [rotary(positions, dtype) for positions in packed.positions.split(packed.lengths, dim=1)]
    cos, sin = zip(*parts, strict=True)
    return torch.cat(cos, dim=2), torch.cat(sin, dim=2)
