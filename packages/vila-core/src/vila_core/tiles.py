"""Pictures as the vision tower gets them: resized bytes, which are normalized on the tower's device.

Dimensions: N tiles, H height, W width (pixels).
"""

import hashlib
import os
import timeit
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vila_core.config import PixelConfig
from vila_core.uploads import upload

DIGEST_BYTES = 20
HASHED_AT_ONCE = 1 << 20
"""Bytes that one thread hashes at a time, in 0.8 ms: several times what it takes to wake a thread."""
THREADED_BYTES = 8 << 20
"""Tiles of so many bytes are hashed by several threads."""
MAX_HASH_THREADS = 8
SAMPLED = 509
"""About so many values are in a sample of tiles."""

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class TileLayout:
    """The arrangement of the tiles of one medium.

    Attributes:
        kind: "whole": each tile is a complete picture or frame; "separate": dynamic tiling, with one `<image>` per tile
            in the prompt; "merged": dynamic S2, where the tiles of all scales become one picture.
        rows, columns: the grid that the whole picture was cut into ("merged": at the last scale).
    """

    kind: Literal["whole", "separate", "merged"] = "whole"
    rows: int = 1
    columns: int = 1

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows, self.columns


WHOLE = TileLayout()


@dataclass(frozen=True)
class Normalization:
    """Normalization of bytes to pixels: `(x / 255 - mean) / std` in each channel."""

    mean: Channels
    std: Channels

    @classmethod
    def of(cls, config: PixelConfig) -> "Normalization":
        """Return what a preprocessor's settings say."""
        return cls(config.mean, config.std)

    def table(self, device: torch.device, dtype: torch.dtype) -> "PixelTable":
        """Return what normalizes bytes on `device`, the same object each time."""
        return _table(self, device, dtype)


@dataclass(frozen=True, eq=False)
class PixelTable:
    """The normalized value of each byte: 30 times as fast as `normalize` on a CPU, and the same numbers everywhere.

    Attributes:
        values: of each byte in each channel, `[3, 256]`.
    """

    values: Tensor

    def __call__(self, given: Tensor) -> Tensor:
        """Look up bytes `[N, 3, H, W]` on the table's device."""
        if given.device.type == "cpu" and self.values.dtype == torch.float32:
            return _take(given.numpy(), self.values.numpy())  # numpy is faster there
        return _gather(given, self.values)


@dataclass(frozen=True)
class Tiles:
    """One medium, ready for the vision tower.

    Attributes:
        values: `[N, 3, H, W]`: uint8, a quarter of the memory, or float32 that is already normalized. For a video, N
            counts the frames (and their tiles).
        layout: how the tiles belong together.
        normalization: of uint8 values; None for float32.
    """

    values: Tensor
    layout: TileLayout = WHOLE
    normalization: Normalization | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def pixels(self) -> Tensor:
        """The normalized values, float32 `[N, 3, H, W]`. They are computed each time."""
        return self.pixels_on(self.values.device, torch.float32)

    def pixels_on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the normalized values on `device`, rounded from float32 to `dtype`. Bytes travel there as bytes."""
        values = upload(self.values, device)
        if self.normalization is None:
            return values.to(dtype)
        on_cpu = values.device.type == "cpu"
        return self.normalization.table(values.device, torch.float32 if on_cpu else dtype)(values).to(dtype)

    def sample(self) -> bytes:
        """Return a few of the values: tiles that differ in them are different, and this takes no time."""
        flat = self.values.permute(0, 2, 3, 1).reshape(-1)
        chosen = flat[:: max(1, len(flat) // SAMPLED)]
        return f"{self.layout} {self.normalization} {tuple(self.values.shape)}".encode() + chosen.numpy().tobytes()

    def is_same(self, other: "Tiles") -> bool:
        """Return whether these are the same tiles in memory, which are not compared."""
        return (
            self.values.data_ptr() == other.values.data_ptr()
            and (self.values.shape, self.values.stride()) == (other.values.shape, other.values.stride())
            and (self.layout, self.normalization) == (other.layout, other.normalization)
        )

    def part(self, start: int, stop: int) -> "Tiles":
        """Return some of the tiles. Memory is shared."""
        return Tiles(self.values[start:stop], self.layout, self.normalization)

    @property
    def num_placeholders(self) -> int:
        """How many media tokens stand for this medium in the prompt."""
        return len(self) if self.layout.kind == "separate" else 1

    def digest(self, kind: str) -> bytes:
        """Return a digest of all that the network reads of a medium of this kind: its values, as what, and how many."""
        values = self.values.permute(0, 2, 3, 1).contiguous()  # the order of a picture's bytes in memory
        head = f"{kind} {self.layout} {self.normalization} {values.dtype} {tuple(values.shape)}"
        whole = hashlib.blake2b(head.encode(), digest_size=DIGEST_BYTES)
        for part in _digests(values.numpy()):
            whole.update(part)
        return whole.digest()


def _digests(values: NDArray[np.generic]) -> Iterator[bytes]:
    """Return digests of the bytes of `values`, a part each. Threads share them: hashing holds no lock."""
    whole = values.reshape(-1).view(np.uint8).data
    parts = [whole[start : start + HASHED_AT_ONCE] for start in range(0, len(whole), HASHED_AT_ONCE)]
    name = _fastest_hash()

    def digest(part: memoryview) -> bytes:
        return hashlib.new(name, part).digest()[:DIGEST_BYTES]

    threads = hash_threads() if len(whole) >= THREADED_BYTES else None
    return map(digest, parts) if threads is None else threads.map(digest, parts)


@cache
def hash_threads() -> ThreadPoolExecutor | None:
    """Return threads that are kept, since starting one takes as long as hashing; None on a single processor."""
    threads = min(MAX_HASH_THREADS, os.cpu_count() or 1)
    return ThreadPoolExecutor(threads, "digest") if threads > 1 else None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=hash_threads.cache_clear)  # threads do not survive a fork


@cache
def _fastest_hash() -> str:
    """Return the hash that is faster here: SHA-256 where the processor has instructions for it. Digests stay here."""
    sample = bytes(1 << 16)

    def seconds(name: str) -> float:
        return min(timeit.repeat(lambda: hashlib.new(name, sample).digest(), number=1, repeat=5))

    return min(("blake2b", "sha256"), key=seconds)


def normalize(pixels: Tensor, config: PixelConfig) -> Tensor:
    """Return bytes as the vision tower reads them: uint8 `[..., 3, H, W]` -> `(x / 255 - mean) / std`, float32.

    The roundings follow the reference: scale in float64, then compute in float32.
    """
    return _normalized(pixels, config.mean, config.std)


def _normalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    scaled = (pixels.double() * (1 / 255)).float()
    means, deviations = (
        torch.cat([torch.full((1, 1, 1), value, device=pixels.device) for value in channels])  # filled on the device
        for channels in (mean, std)
    )
    return (scaled - means) / deviations


def _take(values: NDArray[np.uint8], table: NDArray[np.float32]) -> Tensor:
    """Look up bytes `[N, 3, H, W]` in a table `[3, 256]`."""
    out = np.empty(values.shape, np.float32)
    for tile, of_tile in zip(values, out, strict=True):
        for channel, numbers, of_channel in zip(tile, table, of_tile, strict=True):
            np.take(numbers, channel, out=of_channel, mode="clip")
    return torch.from_numpy(out)


def _gather(values: Tensor, table: Tensor) -> Tensor:
    """Look up bytes `[N, 3, H, W]` on any device."""
    channels = torch.arange(0, table.numel(), table.shape[1], dtype=torch.int32, device=values.device)
    places = values.to(torch.int32) + channels[:, None, None]
    return table.flatten().index_select(0, places.contiguous().flatten()).view(values.shape)


@lru_cache(maxsize=16)
def _table(normalization: Normalization, device: torch.device, dtype: torch.dtype) -> PixelTable:
    with torch.inference_mode(False), torch.device("cpu"):
        every_byte = torch.arange(256, dtype=torch.uint8).expand(len(normalization.mean), 1, 256)
        values = _normalized(every_byte, normalization.mean, normalization.std)[:, 0]
        return PixelTable(values.to(device, dtype))
