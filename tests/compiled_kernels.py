"""What the tests of compiled kernels share."""

import re
from pathlib import Path
from typing import Any

import triton
from tests.programs import run_program

SHARED_MEMORY = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 120: 99}
"""KiB that a block may have (CUDA C++ programming guide, compute capabilities)."""


def stack_bytes(kernel: Any, folder: Path) -> int:
    """Return the bytes of a thread's stack, where spilled registers go."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    report = run_program([triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)], check=True).stdout
    found = re.search(r"STACK:(\d+)", report)
    assert found, report
    return int(found.group(1))
