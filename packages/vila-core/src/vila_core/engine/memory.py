"""How much memory a KV cache may take."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vila_core.engine.pages import pages_of
from vila_core.language.paged_cache import PAGE_SIZE, bytes_of_slot

if TYPE_CHECKING:
    from vila_core.engine.limits import EngineConfig
    from vila_core.language.decoder import Decoder

GPU_SHARE = 0.8
"""Part of the free memory of a GPU that the KV cache takes unless told otherwise. The rest is for activations."""
HOST_SHARE = 0.25
"""The same for the main memory, at most: other programs live there, too."""
HOST_SPARE_BYTES = 256 << 20
"""What the KV cache takes there besides one full context. A page takes memory only once it is written."""


def num_pages(decoder: "Decoder", engine: "EngineConfig") -> int:
    """Return how many pages to allocate: as many as the budget allows, at most a full context for each row."""
    page, context = page_bytes(decoder, engine), pages_of(decoder.config.max_length)
    budget = engine.cache_bytes
    if budget is None:
        device = decoder.model.embed_tokens.weight.device
        share = GPU_SHARE if device.type == "cuda" else HOST_SHARE
        budget = int(free_bytes(device) * share)
        if device.type != "cuda":
            budget = min(budget, context * page + HOST_SPARE_BYTES)
    return max(1, min(budget // page, engine.max_batch * context))


def page_bytes(decoder: "Decoder", engine: "EngineConfig") -> int:
    """Return the size of a page: keys and values of all layers."""
    dtype = decoder.model.embed_tokens.weight.dtype
    return PAGE_SIZE * bytes_of_slot(decoder.config, dtype, in_8_bits=engine.kv_cache_dtype == "fp8")


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
