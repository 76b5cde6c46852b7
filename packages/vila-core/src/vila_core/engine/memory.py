"""How much memory a KV cache may take."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vila_core.engine.pages import pages_of
from vila_core.language.divided import parts_of
from vila_core.language.page_size import PAGE_SIZE
from vila_core.language.paged_cache import bytes_of_slot

if TYPE_CHECKING:
    from vila_core.engine.limits import EngineConfig
    from vila_core.language.divided import NativeDecoder

GPU_SHARE = 0.8
"""Part of the free memory of a GPU that the KV cache takes unless told otherwise. The rest is for activations."""
HOST_SHARE = 0.25
"""The same for the main memory, at most: other programs live there, too."""
HOST_SPARE_BYTES = 256 << 20
"""What the KV cache takes there besides one full context. A page takes memory only once it is written."""


def num_pages(decoder: "NativeDecoder", engine: "EngineConfig") -> int:
    """Return how many pages to allocate: as many as the budget allows, at most a full context for each row.

    A decoder on several devices needs room for every page on each of them.
    """
    context = pages_of(decoder.config.max_length)
    pages = page_bytes_by_device(decoder, engine)
    if engine.cache_bytes is not None:
        allowed = engine.cache_bytes // page_bytes(decoder, engine)
    else:
        allowed = min(_budget(device, size, context) // size for device, size in pages.items())
    return max(1, min(allowed, engine.max_batch * context))


def _budget(device: torch.device, page: int, context: int) -> int:
    """Return how many bytes the cache may take on a device, where a page takes `page` and a context has so many."""
    if device.type == "cuda":
        return int(free_bytes(device) * GPU_SHARE)
    return min(int(free_bytes(device) * HOST_SHARE), context * page + HOST_SPARE_BYTES)


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


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = [_available(), _left_in_group()]
    known = [limit for limit in limits if limit is not None]
    return min(known, default=4 << 30)


def _available() -> int | None:
    """Return what Linux says is available to new programs."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _left_in_group() -> int | None:
    """Return what the limit of a container leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text().strip()
    except OSError:
        return None
    return max(0, int(limit) - int(used)) if limit.isdigit() else None
