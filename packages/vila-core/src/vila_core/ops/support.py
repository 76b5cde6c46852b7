"""Where the operators run. Imports no Triton."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

MIN_CAPABILITY = (8, 0)
EARLY_LAUNCH_CAPABILITY = (9, 0)
DTYPES = (torch.float16, torch.bfloat16)


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the operators cannot run on `device` in `dtype`; None if they can."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "it is made for NVIDIA GPUs"
    if dtype not in DTYPES:
        return f"it takes float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return f"it needs sm80 or later; this GPU is sm{''.join(map(str, torch.cuda.get_device_capability(device)))}"
    return None


@cache
def launches_early(device: torch.device) -> bool:
    """Return whether a kernel may start before the one ahead of it ends (programmatic dependent launch)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= EARLY_LAUNCH_CAPABILITY
