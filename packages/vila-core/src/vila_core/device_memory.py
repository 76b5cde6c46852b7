"""The free memory of a device, and how to tell that it ran out."""

from pathlib import Path

import torch

GIB = 2**30
CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux describes the limits of the container that this process is in."""

_WORDS = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def free_bytes(device: torch.device) -> int | None:
    """Return how many bytes can still be allocated on `device`; None if that is unknown.

    In the main memory, the limit of a container counts too: a process that exceeds it is killed without a word.
    """
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    known = [size for size in (_left_on_the_machine(), left_in_container(CONTAINER)) if size is not None]
    return min(known, default=None)


def _left_on_the_machine() -> int | None:
    sizes = _sizes(Path("/proc/meminfo"))
    return 1024 * (sizes["MemAvailable"] + sizes["SwapFree"]) if {"MemAvailable", "SwapFree"} <= sizes.keys() else None


def left_in_container(group: Path) -> int | None:
    """Return how many bytes the limit of a control group leaves; None if there is no limit.

    What Linux keeps of files that were read counts as used, but makes room when it is needed.
    Source: Linux, admin-guide/cgroup-v2.
    """
    try:
        limit, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text().strip()
    except OSError:
        return None
    if not limit.isdigit():
        return None
    sizes = _sizes(group / "memory.stat")
    files = sizes.get("active_file", 0) + sizes.get("inactive_file", 0)
    return max(0, int(limit) - int(used) + files)


def _sizes(file: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number per line; none if there is no such file."""
    try:
        lines = file.read_text().splitlines()
    except OSError:  # not on Linux
        return {}
    return {name.removesuffix(":"): int(number) for name, number, *_ in (line.split() for line in lines)}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out.

    PyTorch has an exception only for its own memory on a GPU. The main memory, pinned memory and libraries of CUDA are
    told from the words of a `RuntimeError`.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _WORDS)


def name_size(size: int) -> str:
    """Return bytes for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"
