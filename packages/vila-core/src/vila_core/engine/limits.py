"""Limits and statistics of an engine."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from vila_core.config import Settings
from vila_core.errors import GenerationError
from vila_core.language.page_size import PAGE_SIZE


class EngineConfig(Settings):
    """Limits of an engine: batch size, cache, and tokens per step.

    Attributes:
        max_batch: requests that are answered together.
        max_queue: requests that may wait; one more is refused.
        chunk_tokens: prompt tokens that are read between two steps of the answers; a larger number reads prompts
            faster, a smaller one lets answers flow more evenly.
        chunk_tiles: tiles of images and videos that are encoded between two steps of the answers, likewise.
        cache_bytes: memory of the KV cache. None takes 80 % of what is free on a GPU; in the main memory, one full
            context and 256 MB, but at most a quarter of what is free.
        kv_cache_dtype: "auto" keeps keys and values in the model's dtype; "fp8" in 8 bits (e4m3, with a scale for each
            head of a token), so that the cache holds nearly twice as many tokens, at a small loss of accuracy. The
            language model must be a native decoder on one device.
        media_cache_bytes: memory, on the model's device, for the tokens of the media seen last.
        video_cache_bytes: main memory for the frames of the videos seen last.
        shares_prefixes: whether prompts that begin alike share what was computed for the beginning.
    """

    max_batch: int = Field(default=64, ge=1, le=1024)
    max_queue: int = Field(default=1024, ge=1)
    chunk_tokens: int = Field(default=2048, ge=PAGE_SIZE)
    chunk_tiles: int = Field(default=8, ge=1)
    cache_bytes: int | None = Field(default=None, ge=1)
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    media_cache_bytes: int = Field(default=256 << 20, ge=0)
    video_cache_bytes: int = Field(default=256 << 20, ge=0)
    shares_prefixes: bool = True


class QueueFullError(GenerationError):
    """Too many requests wait. Try again when some have been answered."""


@dataclass(frozen=True)
class EngineStats:
    """Statistics of an engine: requests by state, and the use of its cache.

    Attributes:
        queued, reading, answering: requests in each state.
        pages: of the KV cache, and of these `pages_used` by requests and `pages_kept` for prompts that begin alike.
        cached_tokens: prompt tokens that were found in the cache since the start.
        preemptions: how often a request had to give up its pages and read its prompt again.
        drafted_tokens: tokens drafted by prompt lookup since the start, and of these `accepted_tokens` that the model
            chose too.
    """

    queued: int
    reading: int
    answering: int
    pages: int
    pages_used: int
    pages_kept: int
    cached_tokens: int
    preemptions: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
