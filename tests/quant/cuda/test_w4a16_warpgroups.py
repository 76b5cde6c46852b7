"""The W4A16 kernel for Hopper's asynchronous tensor cores, compiled without a GPU."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
from tests.compiled_kernels import SHARED_MEMORY, stack_bytes
from tests.programs import run_program
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas

from vila_quant.kernels.cuda.w4a16 import tables
from vila_quant.kernels.cuda.w4a16.tiles import leftover
from vila_quant.kernels.cuda.w4a16.warpgroups import STEP, WarpgroupConfig, is_supported

pytestmark = pytest.mark.skipif(not is_supported((9, 0)), reason="made for another Triton")

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
CHOSEN = sorted(
    {
        (entry.config.block_m, entry.config.stages)
        for name in ("NVIDIA H100", "NVIDIA H200")
        for entry in tables.shipped(name).entries
        if isinstance(entry.config, WarpgroupConfig)
    }
)


def compiled(block_m: int, stages: int, dtype: torch.dtype = torch.float16, group_size: int = 128) -> Any:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon._runtime import GluonASTSource

    from vila_quant.kernels.cuda.w4a16.warpgroup_kernel import warpgroup_kernel

    kind, half = getattr(gl, str(dtype).removeprefix("torch.")), TYPES[dtype]
    descriptors = {
        name: f"tensordesc<{half}{block},{gl.NVMMASharedLayout.get_default_for(block, kind)!r}>"
        for name, block in {"x_descriptor": [block_m, STEP], "y_descriptor": [block_m, 128]}.items()
    }
    pointers = {"packed_pointer": "*i32", "bias_pointer": f"*{half}", "parts_pointer": "*fp32"}
    constants = {
        "HAS_BIAS": True, "GROUPS": 128 // group_size, "BLOCK_M": block_m, "STAGES": stages, "SPLIT": True, "PDL": True
    }  # fmt: skip
    names = list(warpgroup_kernel.arg_names)
    types = {**pointers, **descriptors, **dict.fromkeys(constants, "constexpr")}
    source = GluonASTSource(
        warpgroup_kernel,
        {name: types.get(name, "i32") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in pointers},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})


@pytest.mark.parametrize(("block_m", "stages"), CHOSEN)
def test_the_chosen_kernels_fit_and_do_not_spill(block_m: int, stages: int, tmp_path: Path) -> None:
    kernel = compiled(block_m, stages)
    assert "wgmma.mma_async" in kernel.asm["ptx"]
    assert stack_bytes(kernel, tmp_path) == 0
    assert kernel.metadata.shared <= SHARED_MEMORY[90] * 1024


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_other_types_and_groups_compile(dtype: torch.dtype, group_size: int, tmp_path: Path) -> None:
    assert stack_bytes(compiled(256, 5, dtype, group_size), tmp_path) == 0


def instructions(kernel: Any, folder: Path) -> list[tuple[int, str, str]]:
    """Return address, name and operands of the machine code's instructions."""
    (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    disassembler = Path(get_ptxas(90).path).with_name("cuobjdump")
    text = run_program([disassembler, "-sass", folder / "kernel.cubin"], check=True).stdout
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_.]+)\s*(.*?);", text)
    return [(int(address, 16), name, operands) for address, name, operands in found]


def loops(code: list[tuple[int, str, str]]) -> list[list[tuple[int, str, str]]]:
    """Return the loops that multiply, the shortest first."""
    places = {address: number for number, (address, _, _) in enumerate(code)}
    found: list[list[tuple[int, str, str]]] = []
    for number, (address, name, operands) in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)", operands)
        if name == "BRA" and target and int(target[1], 16) < address:
            body = code[places[int(target[1], 16)] : number + 1]
            if any(name.startswith("HGMMA") for _, name, _ in body):
                found.append(body)
    return sorted(found, key=len)


READ_ONLY = (
    "STG",
    "STS",
    "STSM",
    "ST",
    "BRA",
    "BAR",
    "SYNCS",
    "UTMALDG",
    "UTMASTG",
    "MEMBAR",
    "R2UR",
    "ISETP",
    "PLOP3",
)


def overwritten(body: list[tuple[int, str, str]]) -> list[str]:
    """Return the instructions of a loop that write a left operand which the tensor cores may still read."""
    in_flight: list[set[int]] = []
    current: set[int] = set()
    found: list[str] = []
    for address, name, operands in body * 2:
        if name.startswith("HGMMA"):
            left = int(re.findall(r"\bR(\d+)", operands)[1])
            current |= set(range(left, left + 4))
            if "gsb0" in operands:
                in_flight.append(current)
                current = set()
        elif "DEPBAR" in name and "gsb0" in operands:
            left_running = int(re.findall(r"0x([0-9a-f]+)", operands)[-1], 16)
            in_flight = in_flight[len(in_flight) - left_running :] if left_running else []
        elif name.split(".")[0] not in READ_ONLY and (written := re.match(r"R(\d+)\b", operands)):
            width = 4 if ".128" in name else 2 if ".64" in name or ".WIDE" in name else 1
            registers = set(range(int(written[1]), int(written[1]) + width))
            if any(registers & product for product in [*in_flight, current]):
                found.append(f"{address:x}: {name} {operands}")
    return found


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("block_m", "stages"), CHOSEN)
def test_nothing_writes_an_operand_while_tensor_cores_read_it(
    block_m: int, stages: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """The hardware does not check it, and a compiler that gets it wrong makes wrong results for some tiles only."""
    body = loops(instructions(compiled(block_m, stages, dtype), tmp_path))[0]
    assert not overwritten(body)


def test_the_check_of_operands_finds_an_early_write() -> None:
    product = (1, "HGMMA.64x256x16.F32", "R24, R152, gdesc[UR4], R24, gsb0")
    wait = (2, "WARPGROUP.DEPBAR.LE", "gsb0, 0x0")
    write = (3, "HMUL2", "R154, R1, R2.reuse")
    assert overwritten([product, write, wait])
    assert not overwritten([product, wait, write])


@pytest.mark.parametrize(
    ("tiles", "steps", "splits", "waves", "expected"),
    [
        (296, 28, 8, 1, (32, 4)),  # gate and up of NVILA-8B, 256 tokens: 264 tiles are two waves
        (36, 28, 8, 1, (36, 3)),
        (28, 148, 8, 1, (28, 4)),
        (112, 148, 8, 1, (0, 1)),  # splitting in two takes more than a wave
        (112, 148, 16, 3, (112, 3)),
        (132, 28, 8, 1, (0, 1)),
        (12, 5, 8, 1, (12, 5)),
    ],
)
def test_tiles_left_over_after_whole_waves_are_split(
    tiles: int, steps: int, splits: int, waves: int, expected: tuple[int, int]
) -> None:
    assert leftover(tiles, steps, splits, 132, waves) == expected
