"""A KV cache in pages of a fixed size, so that rows grow, share prefixes and leave without moving others.

L layers, N pages, H_kv key/value heads, P slots of a page, B rows, T new tokens, D_h head width

Slot p of a row is slot p % P of its page `table[b, p // P]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vila_core.language.page_size import PAGE_SIZE
from vila_core.ops.eight_bits import SCALE_BYTES, dequantize, quantize

if TYPE_CHECKING:
    from vila_core.config import DecoderConfig


@dataclass(frozen=True)
class PagedCache:
    """The pages of all layers, in two buffers that never move.

    Attributes:
        keys, values: `[L, N, H_kv, P, D_h]`; in 8 bits uint8, the codes of `ops.eight_bits`.
        dtype: of the numbers that are written and read.
        scales: of keys and values in 8 bits, bfloat16 `[L, N, H_kv, P]`; None if they keep their dtype.
    """

    keys: Tensor
    values: Tensor
    dtype: torch.dtype
    scales: tuple[Tensor, Tensor] | None = None

    @classmethod
    @torch.inference_mode(False)
    def allocate(
        cls,
        config: DecoderConfig,
        num_pages: int,
        *,
        page_size: int = PAGE_SIZE,
        device: torch.device,
        dtype: torch.dtype,
        in_8_bits: bool = False,
    ) -> PagedCache:
        """Return `num_pages` empty pages of `page_size` slots (for the GPU kernels a multiple of 64)."""
        shape = (config.num_hidden_layers, num_pages, config.num_key_value_heads, page_size, config.head_dim)
        kept = torch.uint8 if in_8_bits else dtype
        keys, values = _zeros(shape, device, kept), _zeros(shape, device, kept)
        if not in_8_bits:
            return cls(keys, values, dtype)
        scales = _zeros(shape[:-1], device, torch.bfloat16), _zeros(shape[:-1], device, torch.bfloat16)
        return cls(keys, values, dtype, scales)

    @property
    def num_pages(self) -> int:
        return self.keys.shape[1]

    @property
    def page_size(self) -> int:
        return self.keys.shape[3]

    def copy_page(self, source: int, target: int) -> None:
        """Copy the keys and values of a page to another one, in all layers."""
        for buffer in (self.keys, self.values, *(self.scales or ())):
            buffer[:, target] = buffer[:, source]

    def scales_of(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return the scales of one layer's keys and values, `[N, H_kv, P]`."""
        return None if self.scales is None else (self.scales[0][layer], self.scales[1][layer])

    def rows(self, table: Tensor) -> PagedRows:
        """Return the rows that have the pages `table` (int32 or int64 `[B, pages of a row]`)."""
        return PagedRows(self, table)


@dataclass(frozen=True)
class PagedRows:
    """Some rows of a paged cache, for a forward pass in plain PyTorch.

    Attributes:
        cache: of the pages.
        table: which pages a row has, int32 or int64 `[B, pages of a row]`; entries that no position needs are any page.
        limit: see `KVCache`.
    """

    cache: PagedCache
    table: Tensor
    limit: int | None = None

    @property
    def num_slots(self) -> int:
        """How many slots `read` returns."""
        return self.table.shape[1] * self.cache.page_size if self.limit is None else self.limit

    def up_to(self, num_slots: int) -> PagedRows:
        """Return the rows for a call in which the longest then has `num_slots` tokens. Memory is shared."""
        held = self.table.shape[1] * self.cache.page_size
        assert num_slots <= held, f"pages of {held} slots cannot hold {num_slots} tokens"
        return replace(self, limit=num_slots)

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write `keys` and `values` `[B, H_kv, T, D_h]` to slots `positions` `[B, T]`, or `[1, T]` for equal rows.

        Values that are not finite are written as 0: the next owner of a page reads what it has not written yet, with
        a weight of 0, and 0 · NaN is NaN.
        """
        pages, slots = self._places(positions)
        scales = self.cache.scales_of(layer)
        if scales is not None:
            return (
                _write_codes(self.cache.keys[layer], scales[0], pages, slots, keys),
                _write_codes(self.cache.values[layer], scales[1], pages, slots, values),
            )
        for buffer, new in ((self.cache.keys[layer], keys), (self.cache.values[layer], values)):
            finite = new.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            buffer[pages, :, slots] = finite.transpose(1, 2).to(buffer.dtype)  # [B, T, H_kv, D_h]
        return keys, values

    def _places(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the page and the slot in it of each position, `[B, T]`. The layers of a call ask with one tensor."""
        known: tuple[Tensor, Tensor, Tensor] | None = self.__dict__.get("_known")
        if known is None or known[0] is not positions:
            rows = positions.expand(len(self.table), -1)
            pages = self.table.long().gather(1, rows // self.cache.page_size)
            self.__dict__["_known"] = known = positions, pages, rows % self.cache.page_size
        return known[1], known[2]

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return copies of one layer's keys and values, `[B, H_kv, limit, D_h]`."""
        num_heads, page_size = self.cache.keys.shape[2:4]
        pages = self.table[:, None, : -(-self.num_slots // page_size)].long()
        heads = torch.arange(num_heads, device=pages.device)[:, None]
        keys, values = (buffer[layer][pages, heads] for buffer in (self.cache.keys, self.cache.values))
        scales = self.cache.scales_of(layer)
        if scales is not None:
            keys, values = (
                dequantize(codes, of_layer[pages, heads], self.cache.dtype)
                for codes, of_layer in zip((keys, values), scales, strict=True)
            )
        return keys.flatten(2, 3)[:, :, : self.num_slots], values.flatten(2, 3)[:, :, : self.num_slots]


def bytes_of_slot(config: DecoderConfig, dtype: torch.dtype, *, in_8_bits: bool) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    head = config.head_dim + SCALE_BYTES if in_8_bits else config.head_dim * dtype.itemsize
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head


def _write_codes(codes: Tensor, scales: Tensor, pages: Tensor, slots: Tensor, new: Tensor) -> Tensor:
    """Write `new [B, H_kv, T, D_h]` in 8 bits to `pages` and `slots` `[B, T]`; return what was written."""
    of_new, scales_of_new, written = quantize(new)
    codes[pages, :, slots] = of_new.transpose(1, 2)
    scales[pages, :, slots] = scales_of_new.transpose(1, 2)
    return written


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return zeros. In the main memory, they take space only once something is written there."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
