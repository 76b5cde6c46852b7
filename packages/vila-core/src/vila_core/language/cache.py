"""The KV cache: allocated once, addressed by positions.

L layers, B batch, H_kv key/value heads, S slots, T new tokens, D_h head width
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import torch

if TYPE_CHECKING:
    from vila_core.config import DecoderConfig


class Cache(Protocol):
    """The state of a language model between calls."""

    def up_to(self, num_slots: int) -> Self:
        """Return the cache for a call in which the longest row then has `num_slots` tokens. Memory is shared."""
        ...


@runtime_checkable
class SlotCache(Cache, Protocol):
    """A cache of keys and values by position, which attention writes and reads (see `KVCache`)."""

    @property
    def limit(self) -> int | None:
        """How many slots a call reads: exactly the tokens of the longest row after the call; None if unknown."""
        ...

    @property
    def num_slots(self) -> int:
        """How many slots `read` returns."""
        ...

    def write(
        self, layer: int, positions: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `keys` and `values` `[B, H_kv, T, D_h]` to slots `positions` `[B, T]`, or `[1, T]` for equal rows.

        Returns what new tokens should attend to: in a cache of fewer bits, what later tokens will read there.
        """
        ...

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one layer's keys and values, `[B, H_kv, num_slots, D_h]`."""
        ...


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, in two buffers that never move or grow.

    Slot p of a row holds the token at position p of that row. Positions are tensors, so no shape depends on how full
    the cache is. A call that attends to the cache sees the slots up to its own position, so a slot that was never
    written, or was written for padding, is not read.

    Attributes:
        keys, values: `[L, B, H_kv, S, D_h]`.
        limit: how many slots a call reads: exactly the tokens of the longest row after the call. None reads all S,
            which takes longer for short sequences.
    """

    keys: torch.Tensor
    values: torch.Tensor
    limit: int | None = None

    @classmethod
    def allocate(
        cls, config: DecoderConfig, batch_size: int, num_slots: int, *, device: torch.device, dtype: torch.dtype
    ) -> KVCache:
        """Return an empty cache for a decoder of this config."""
        shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, num_slots, config.head_dim)
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    @property
    def num_slots(self) -> int:
        """How many slots `read` returns."""
        return self.keys.shape[3] if self.limit is None else self.limit

    def up_to(self, num_slots: int) -> KVCache:
        """Return the cache for a call in which the longest row then has `num_slots` tokens. Memory is shared."""
        assert num_slots <= self.keys.shape[3], f"a cache of {self.keys.shape[3]} slots cannot hold {num_slots} tokens"
        return replace(self, limit=num_slots)

    def write(
        self, layer: int, positions: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `keys` and `values` `[B, H_kv, T, D_h]` to slots `positions` `[B, T]`, or `[1, T]` for equal rows."""
        for buffer, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if len(positions) == 1:
                buffer.index_copy_(2, positions[0], new.to(buffer.dtype))
            else:
                buffer.scatter_(2, positions[:, None, :, None].expand_as(new), new.to(buffer.dtype))
        return keys, values

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one layer's keys and values, views `[B, H_kv, limit, D_h]`."""
        return self.keys[layer, :, :, : self.limit], self.values[layer, :, :, : self.limit]
