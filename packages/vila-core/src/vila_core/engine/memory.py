"""The memory budget of a KV cache."""

from typing import TYPE_CHECKING

import torch

from vila_core.device_memory import free_bytes, name_size
from vila_core.engine.pages import pages_of
from vila_core.errors import GenerationError
from vila_core.language.divided import parts_of
from vila_core.language.page_size import PAGE_SIZE
from vila_core.language.paged_cache import bytes_of_slot

if TYPE_CHECKING:
    from vila_core.engine.limits import EngineConfig
    from vila_core.language.divided import NativeDecoder

GPU_SHARE = 0.8
"""Part of the free memory of a GPU that the KV cache takes by default. The rest is for activations."""
HOST_SHARE = 0.25
"""The same for the main memory, at most: other programs live there, too."""
HOST_SPARE_BYTES = 256 << 20
"""What the KV cache takes there besides one full context. A page takes memory only once it is written."""
UNKNOWN_BYTES = 4 << 30
"""Memory that a system has which does not say how much is free."""


def num_pages(decoder: "NativeDecoder", engine: "EngineConfig") -> int:
    """Return how many pages to allocate: as many as the budget allows, at most a full context for each row.

    A decoder on several devices needs room for every page on each of them.

    Raises:
        GenerationError: there is too little memory for the cache.
    """
    context = pages_of(decoder.config.max_length)
    pages = page_bytes_by_device(decoder, engine)
    free = {device: free_bytes(device) for device in pages}
    if engine.cache_bytes is not None:
        allowed = engine.cache_bytes // page_bytes(decoder, engine)
    else:
        allowed = min(_budget(device, free[device], size, context) // size for device, size in pages.items())
    count = max(1, min(allowed, engine.max_batch * context))
    if any(size is not None and count * pages[device] > size for device, size in free.items()):
        raise too_little_memory(decoder, engine, count)
    return count


def _budget(device: torch.device, free: int | None, page: int, context: int) -> int:
    """Return how many bytes the cache may take on a device, where a page takes `page` and a context has so many."""
    free = UNKNOWN_BYTES if free is None else free
    if device.type == "cuda":
        return int(free * GPU_SHARE)
    return min(int(free * HOST_SHARE), context * page + HOST_SPARE_BYTES)


def too_little_memory(decoder: "NativeDecoder", engine: "EngineConfig", count: int) -> GenerationError:
    """Return the error for a cache of `count` pages that does not fit. It says which contexts do."""
    pages = page_bytes_by_device(decoder, engine)
    free = {device: size for device in pages if (size := free_bytes(device)) is not None}
    shares = {device: GPU_SHARE if device.type == "cuda" else 1.0 for device in free}
    held = PAGE_SIZE * min((int(size * shares[device]) // pages[device] for device, size in free.items()), default=0)
    found = ", ".join(f"{device} has {name_size(size)} free" for device, size in free.items())
    needed = f"There is too little memory for a KV cache of {count * PAGE_SIZE:,} tokens: it takes "
    needed += f"{name_size(count * sum(pages.values()))}{f', and {found}' if found else ''}."
    if not held:
        return GenerationError(f"{needed} Free memory, or use a smaller or quantized model (vila-quant awq).")
    return GenerationError(
        f"{needed} There is room for {held:,} tokens: one request with a context of {held:,} (--max-context), or "
        f"{engine.max_batch} at a time (--max-batch) of {held // engine.max_batch:,}. Set cache_bytes (--cache-bytes) "
        f"to at most {held // PAGE_SIZE * sum(pages.values()):,}, or use a smaller or quantized model (vila-quant awq)."
    )


def page_bytes(decoder: "NativeDecoder", engine: "EngineConfig") -> int:
    """Return the size of a page: keys and values of all layers and heads."""
    return sum(page_bytes_by_device(decoder, engine).values())


def page_bytes_by_device(decoder: "NativeDecoder", engine: "EngineConfig") -> dict[torch.device, int]:
    """Return the size of a page on each device: keys and values of the layers and heads that lie there."""
    pages: dict[torch.device, int] = {}
    for part in parts_of(decoder):
        slot = bytes_of_slot(part.config, part.dtype, in_8_bits=engine.kv_cache_dtype == "fp8")
        pages[part.device] = pages.get(part.device, 0) + PAGE_SIZE * slot
    return pages
