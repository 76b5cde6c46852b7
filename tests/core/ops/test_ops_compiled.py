"""The operators compiled for the GPUs they are for, without one: registers, shared memory, and wide loads."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import triton
from tests.compiled_kernels import SHARED_MEMORY, stack_bytes
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vila_core.ops.attention import MERGED
from vila_core.ops.attention_kernel import decode_attention_kernel
from vila_core.ops.codes import choose_codes_kernel, warps_for
from vila_core.ops.depth_attention import depth_attention_kernel
from vila_core.ops.eight_bits_kernel import quantize_kernel
from vila_core.ops.few_tokens import MAX_REGISTERS, SLOTS, WARPS, few_tokens_kernel
from vila_core.ops.filters import floor_kernel, search_kernel
from vila_core.ops.linear import choose_matrix_config, choose_vector_config, matrix_kernel, vector_kernel
from vila_core.ops.norm import add_rms_norm_kernel
from vila_core.ops.rotary import rotate_and_write_kernel
from vila_core.ops.sampling import argmax_kernel, final_kernel, prepare_kernel
from vila_core.ops.swiglu import swiglu_kernel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

STACK = {"attention in 8 bits, rows": 8, "codes": 96}
"""Bytes that a thread may spill, if any."""

INTEGERS = {
    "positions_pointer": "*i64", "table_pointer": "*i32", "counters_pointer": "*i32",
    "wanted_pointer": "*i32", "floor_pointer": "*i32", "earlier_pointer": "*i32", "low_pointer": "*i32",
    "companions_pointer": "*i64", "leaders_pointer": "*i64", "top_k_pointer": "*i32",
    "index_pointer": "*i32", "seed_pointer": "*i64", "chosen_pointer": "*i64", "allowed_pointer": "*i32",
    "seen_pointer": "*i8", "ids_pointer": "*i64", "next_pointer": "*u8", "after_pointer": "*u8",
    "codes_pointer": "*u8", "key_scales_pointer": "*bf16", "value_scales_pointer": "*bf16", "scales_pointer": "*bf16",
}  # fmt: skip
FLOATS = (
    "cos_pointer", "sin_pointer", "parts_pointer", "sums_pointer", "logs_pointer", "temperature_pointer",
    "guidance_pointer", "top_p_pointer",
    "penalty_pointer", "value_pointer", "lowest_pointer", "highest_pointer", "maxima_pointer", "partial_pointer",
)  # fmt: skip
ODD = (
    "tokens",
    "rows",
    "window",
    "kv_heads",
    "heads",
    "blocks",
    "vocabulary",
    "page",
    "table_stride",
    "ahead",
    "depth",
    "depths",
    "words",
)


def compiled(kernel: Any, constants: dict[str, Any], half: str, capability: int, **options: int) -> Any:
    names = list(kernel.arg_names)

    def type_of(name: str) -> str:
        if kernel is few_tokens_kernel and name in ("w0_pointer", "w1_pointer", "w2_pointer", "x_pointer"):
            return "*i32"
        if constants.get("QUANTIZED") and name in ("keys_pointer", "values_pointer"):
            return "*u8"
        if name in constants:
            return "constexpr"
        if name in INTEGERS:
            return INTEGERS[name]
        if name.endswith("_pointer"):
            return "*fp32" if name in FLOATS else f"*{half}"
        return "fp32" if name in ("eps", "scale") else "i32"

    types = {name: type_of(name) for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in types.items()
        if kind not in ("constexpr", "fp32") and name not in ODD
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    return triton.compile(
        ASTSource(kernel, types, values, aligned), target=GPUTarget("cuda", capability, 32), options=options
    )


def attention_constants(
    *, group: int, width: int, splits: int, paged: bool, parts: bool, quantized: bool = False
) -> dict[str, Any]:
    return {
        "GROUP": group, "QUERIES": max(16, triton.next_power_of_2(group)), "PARTS": 8 if parts else 0,
        "MERGED_QUERIES": triton.next_power_of_2(group), "MERGED": MERGED, "WIDTH": width, "BLOCK": 64,
        "SPLITS": splits, "PAGED": paged, "PREFETCH": parts, "WARPS": 4,
        "QUANTIZED": quantized, "INLINE": True,
    }  # fmt: skip


def vector_constants(inputs: int, *, both: bool) -> tuple[dict[str, Any], int]:
    config = choose_vector_config(inputs, 3584, both=both)
    rounds = triton.cdiv(inputs, config.chunk * config.ahead)
    constants = {
        "HAS_BIAS": not both, "SWIGLU": both, "ACT": "" if both else "gelu", "ROWS": config.rows,
        "CHUNK": config.chunk, "AHEAD": config.ahead,
        "ROUNDS": rounds,
    }  # fmt: skip
    return constants, config.warps


def matrix_constants(outputs: int) -> dict[str, Any]:
    config = choose_matrix_config(outputs)
    return {
        "HAS_BIAS": True, "ACT": "gelu", "ROWS": config.rows, "CHUNK": config.chunk, "PREFETCH": config.prefetch
    }  # fmt: skip


def few_tokens_constants(inputs: int, *, both: bool) -> dict[str, Any]:
    return {
        "HAS_BIAS": not both, "SWIGLU": both, "ACT": "" if both else "gelu", "WARPS": WARPS, "SLOTS": SLOTS,
        "ROUNDS": triton.cdiv(inputs, 32 * WARPS * SLOTS), "INLINE": True,
    }  # fmt: skip


FEW_TOKENS = {"num_warps": WARPS, "num_stages": 1, "maxnreg": MAX_REGISTERS}

KERNELS: dict[str, tuple[Any, dict[str, Any], dict[str, int]]] = {
    "norm": (add_rms_norm_kernel, {"HAS_RESIDUAL": True, "BLOCK": 4096}, {"num_warps": 8}),
    "swiglu": (swiglu_kernel, {"BLOCK": 1024}, {"num_warps": 4}),
    "rotary": (rotate_and_write_kernel, {"WIDTH": 128}, {"num_warps": 1}),
    "attention, one row": (
        decode_attention_kernel,
        attention_constants(group=7, width=128, splits=64, paged=True, parts=True),
        {"num_warps": 4, "num_stages": 3},
    ),
    "attention, pages": (
        decode_attention_kernel,
        attention_constants(group=8, width=64, splits=2, paged=True, parts=False),
        {"num_warps": 4, "num_stages": 3},
    ),
    "attention in 8 bits, one row": (
        decode_attention_kernel,
        attention_constants(group=7, width=128, splits=64, paged=True, parts=True, quantized=True),
        {"num_warps": 4, "num_stages": 3},
    ),
    "attention in 8 bits, rows": (
        decode_attention_kernel,
        attention_constants(group=7, width=128, splits=2, paged=True, parts=False, quantized=True),
        {"num_warps": 4, "num_stages": 3},
    ),
    "quantization of heads": (quantize_kernel, {"WIDTH": 128}, {"num_warps": 1}),
    "linear": (vector_kernel, vector_constants(3584, both=False)[0], {"num_warps": 2}),
    "linear, wide": (vector_kernel, vector_constants(18944, both=False)[0], {"num_warps": 8}),
    "linear, swiglu": (vector_kernel, vector_constants(3584, both=True)[0], {"num_warps": 2}),
    "linear of few tokens": (few_tokens_kernel, few_tokens_constants(4096, both=False), FEW_TOKENS),
    "linear of few tokens, wide": (few_tokens_kernel, few_tokens_constants(11008, both=False), FEW_TOKENS),
    "linear of few tokens, swiglu": (few_tokens_kernel, few_tokens_constants(4096, both=True), FEW_TOKENS),
    "linear of 16 tokens": (matrix_kernel, matrix_constants(12_288), {"num_warps": 4, "num_stages": 4}),
    "linear of 16 tokens, narrow": (matrix_kernel, matrix_constants(2560), {"num_warps": 4, "num_stages": 4}),
    "depth attention": (depth_attention_kernel, {"BLOCK": 64, "DEPTHS": 16}, {"num_warps": 1}),
    "codes": (
        choose_codes_kernel,
        {"DRAWS": True, "TOP_K": True, "TOP_P": True, "BLOCK": 16_384},
        {"num_warps": warps_for(16_384)},
    ),
    "penalties": (prepare_kernel, {"PENALIZES": True, "MASKS": True, "BLOCK": 2048}, {"num_warps": 4}),
    "top-k": (
        search_kernel,
        {"PASS": 3, "COUNT": True, "FLOOR": False, "BLOCKS": 128, "BLOCK": 2048},
        {"num_warps": 4},
    ),
    "top-p": (
        search_kernel,
        {"PASS": 0, "COUNT": False, "FLOOR": True, "BLOCKS": 128, "BLOCK": 2048},
        {"num_warps": 4},
    ),
    "floor": (floor_kernel, {"LAST": 4, "COUNT": False, "EARLIER": True, "BLOCKS": 128}, {"num_warps": 4}),
    "argmax": (argmax_kernel, {"FILTER": True, "NOISE": True, "BLOCK": 2048}, {"num_warps": 4}),
    "final": (final_kernel, {"BLOCKS": 128, "PENALIZES": True}, {"num_warps": 1}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_fits_every_gpu(name: str, tmp_path: Path) -> None:
    kernel, constants, options = KERNELS[name]
    for capability, limit in SHARED_MEMORY.items():
        early = capability >= 90 and "PDL" in kernel.arg_names
        constants = constants | ({"PDL": early} if "PDL" in kernel.arg_names else {})
        made = compiled(kernel, constants, "bf16" if capability != 80 else "fp16", capability, **options)
        assert stack_bytes(made, tmp_path) <= STACK.get(name, 0), f"sm{capability}: registers spilled"
        assert made.metadata.shared <= limit * 1024, f"sm{capability}: {made.metadata.shared} bytes"
        assert ("griddepcontrol.wait" in made.asm["ptx"]) == early


@pytest.mark.parametrize("name", ["attention, one row", "attention, pages", "linear", "linear, wide"])
def test_weights_and_caches_are_read_16_bytes_at_a_time(name: str) -> None:
    kernel, constants, options = KERNELS[name]
    ptx = compiled(kernel, constants | {"PDL": False}, "bf16", 80, **options).asm["ptx"]
    assert len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)) >= 4


def test_products_of_few_tokens_load_weights_before_they_wait() -> None:
    """Weights are constants, activations are not: they may be read only once the kernel ahead has ended."""
    kernel, constants, options = KERNELS["linear of few tokens"]
    made = compiled(kernel, constants | {"PDL": True}, "bf16", 90, **options)
    before, after = made.asm["sass"].split("ACQBULK")
    loads = [len(re.findall(r"LDG\.E\.(?:NA\.)?128", part)) for part in (before, after)]
    assert loads[0] == 2 * SLOTS
    assert len(re.findall(r"LDG\.E\.128", before)) == 0
    assert loads[1] >= SLOTS
    assert "HMMA.16816.F32.BF16" in after
