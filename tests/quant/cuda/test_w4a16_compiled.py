"""The W4A16 kernels compiled for the GPUs they are for, without one: no registers spilled, shared memory within the
limit."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
from tests.compiled_kernels import SHARED_MEMORY, stack_bytes
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vila_quant.kernels.cuda.w4a16 import tables
from vila_quant.kernels.cuda.w4a16.decode import DecodeConfig, decode_kernel
from vila_quant.kernels.cuda.w4a16.dequantize_kernel import UNITS, dequantize_kernel
from vila_quant.kernels.cuda.w4a16.tiles import TileConfig, tile_kernel

STACK = 144
"""Bytes that a thread may spill. Some of the fastest configurations do: tiles of 128 x 128 with 4 warps the most."""

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
ODD = (
    "tokens",
    "partials",
    "norm_scale",
    "eps",
    "blocks",
    "units",
    "whole_tiles",
    "split_tiles",
    "steps_per_split",
    "window",
)


def compiled(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, options: dict[str, int]
) -> Any:
    names = list(kernel.arg_names)
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]] for name in names if name not in constants and name not in ODD
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    return triton.compile(
        ASTSource(kernel, signature, values, aligned), target=GPUTarget("cuda", capability, 32), options=options
    )


def compile_decode(
    config: DecodeConfig, tokens: int, dtype: torch.dtype, group_size: int, capability: int, *, variant: str = ""
) -> Any:
    half = f"*{TYPES[dtype]}"
    types = {
        "packed_pointer": "*i32",
        "x_pointer": "*i32",
        "bias_pointer": half,
        "y_pointer": half,
        "next_pointer": "*u8",
        "squares_pointer": "*fp32",
        "logs_pointer": "*fp32",
        "position_pointer": "*i64",
        "norm_scale": "fp32",
        "eps": "fp32",
    }
    types |= dict.fromkeys(("residual_pointer", "norm_pointer", "scaled_pointer"), half)
    hopper = capability >= 90
    constants = {
        "HAS_BIAS": variant in ("", "normed"), "GROUPS": 128 // group_size, "ONE_TOKEN": tokens == 1,
        "COLUMNS": 1 if tokens <= 8 else 2,
        "TILES": config.tiles, "WARPS": config.warps, "SLOTS": config.slots, "AHEAD": min(config.ahead, config.slots),
        "CHAINS": config.chains, "ROUNDS": 3, "SWIGLU": variant == "swiglu",
        "ADDS": variant in ("adding", "heads"), "HEAD_PARTS": 8 if variant == "heads" else 0, "HEAD_WIDTH": 128,
        "HEAD_BLOCK": 64, "PARTIALS": 7 if tokens == 1 and variant in ("normed", "swiglu") else 0,
        "PDL": hopper,
        "PREFETCH": 264 if hopper and config.prefetch else 0, "INLINE": True,
    }  # fmt: skip
    options = {"num_warps": config.warps, "num_stages": 1} | ({"maxnreg": config.registers} if config.registers else {})
    return compiled(decode_kernel, types, constants, capability, options)


def compile_tiles(config: TileConfig, dtype: torch.dtype, group_size: int, capability: int) -> Any:
    half = f"*{TYPES[dtype]}"
    types = dict.fromkeys(("x_pointer", "bias_pointer", "y_pointer"), half)
    types |= {"packed_pointer": "*i32", "parts_pointer": "*fp32"}
    constants = {
        "HAS_BIAS": False, "GROUPS": 128 // group_size, "BLOCK_N": config.block_n, "BLOCK_M": config.block_m,
        "BLOCK_K": config.block_k,
        "WARPS": config.warps, "SPLIT": config.splits > 1, "PDL": capability >= 90, "INLINE": True,
    }  # fmt: skip
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return compiled(tile_kernel, types, constants, capability, options)


def chosen_configs(capability: int) -> list[tuple[int, tables.Config]]:
    table = tables.shipped("NVIDIA H100 80GB HBM3" if capability == 90 else "some other GPU")
    return sorted({(entry.tokens, entry.config) for entry in table.entries}, key=repr)


# The slow ones have the settings and the shared memory of another: 86 and 89 those of 120, 87 those of 80.
@pytest.mark.parametrize(
    "capability",
    [pytest.param(number, marks=[pytest.mark.slow] * (number in (86, 87, 89))) for number in SHARED_MEMORY],
)
def test_the_chosen_kernels_fit_the_gpu(capability: int, tmp_path: Path) -> None:
    for tokens, config in chosen_configs(capability):
        if isinstance(config, DecodeConfig):
            kernel = compile_decode(config, tokens, torch.float16, 128, capability)
            assert "mma.sync" in kernel.asm["ptx"]
            variants = ["swiglu"] if config.tiles == 2 else []
            for variant in (*variants, "adding", "heads", "normed") if tokens == 1 else variants:
                other = compile_decode(config, tokens, torch.float16, 128, capability, variant=variant)
                assert stack_bytes(other, tmp_path) <= STACK, f"{variant} with {config} spills registers"
        elif isinstance(config, TileConfig):
            kernel = compile_tiles(config, torch.float16, 128, capability)
            assert "mma" in kernel.asm["ptx"], "no tensor cores"
        else:
            continue
        assert stack_bytes(kernel, tmp_path) <= STACK, f"{config} for {tokens} tokens spills registers"
        assert kernel.metadata.shared <= SHARED_MEMORY[capability] * 1024, (
            f"{config} takes {kernel.metadata.shared} bytes"
        )


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_other_types_and_groups_compile(dtype: torch.dtype, group_size: int, tmp_path: Path) -> None:
    kernels = [
        compile_decode(DecodeConfig(), 1, dtype, group_size, 80),
        compile_decode(DecodeConfig(tiles=2, slots=1), 16, dtype, group_size, 80),
        compile_tiles(TileConfig(64, 64, 64, 1, 4, 3), dtype, group_size, 80),
        compiled(
            dequantize_kernel,
            {"packed_pointer": "*i32", "w_pointer": "*i32"},
            {
                "IS_FP16": dtype == torch.float16,
                "GROUPS": 128 // group_size,
                "UNITS_OF_BLOCK": UNITS,
                "INLINE": True,
            },
            80,
            {"num_warps": 4},
        ),
    ]
    for kernel in kernels:
        assert stack_bytes(kernel, tmp_path) <= STACK
