"""The KV cache: allocated once for the whole generation, filled from the left.

L layers, B batch, H_kv key/value heads, S slots, T new tokens, D_h head width
"""

from typing import Protocol

import torch


class Cache(Protocol):
    """What a language model remembers between calls. `length` is the number of slots filled in every row."""

    @property
    def length(self) -> int: ...


class KVCache:
    """Keys and values of every layer in two buffers `[L, B, H_kv, S, D_h]` that never move or grow."""

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_key_value_heads: int,
        max_length: int,
        head_dim: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ):
        shape = (num_layers, batch_size, num_key_value_heads, max_length, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self._length = 0

    @property
    def length(self) -> int:
        """Slots filled in every row, padding included."""
        return self._length

    @property
    def max_length(self) -> int:
        """Slots there are."""
        return self.keys.shape[3]

    def update(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's new `keys`, `values` `[B, H_kv, T, D_h]`; return views of all so far, `[B, H_kv, length + T, D_h]`.

        The filled length stays as it is until `advance`, since every layer writes to the same slots.
        """
        end = self._length + keys.shape[2]
        assert end <= self.max_length, f"cache of {self.max_length} slots cannot hold {end}"
        self.keys[layer, :, :, self._length : end] = keys
        self.values[layer, :, :, self._length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count `num_tokens` slots as filled, after the last layer has written them."""
        self._length += num_tokens

    def reset(self) -> None:
        """Empty the cache for another prompt; the buffers stay."""
        self._length = 0
