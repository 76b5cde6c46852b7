"""Norm, activation and quantization of rows: in the interpreter against the oracle in fp64, and compiled for each GPU.

M rows, D columns
"""

import sys
from pathlib import Path

import pytest
from tests.interpreted_kernels import run_interpreted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

INTERPRETED = """
import itertools
import torch
from vila_core.ops import reference
from vila_core.ops.row_settings import ACTIVATIONS, LayerNorm, RowFormat
from vila_core.ops.rows import process_rows
from vila_core.towers.vit import activation

generator = torch.Generator().manual_seed(0)
original = torch.Tensor.new_empty
def new_empty(self, *shape, **options):
    # Whatever a kernel does not write shows.
    made = original(self, *shape, **options)
    return made.fill_(torch.nan) if made.dtype in (torch.float32, torch.float16, torch.bfloat16) else made
torch.Tensor.new_empty = new_empty

def randn(*shape, dtype):
    return torch.randn(*shape, generator=generator).to(dtype)

def check(y, expected, tolerance, name):
    assert y.shape == expected.shape, (name, y.shape, expected.shape)
    error = ((y.double() - expected).norm() / expected.norm()).item()
    largest = (y.double() - expected).abs().max().item()
    assert error < tolerance, f"{name}: relative error {error:.2e}, largest {largest:.2e}"

INT8 = RowFormat(torch.int8, 127.0, 1e-5)
FP8 = RowFormat(torch.float8_e4m3fn, 448.0, 1e-5)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
settings = itertools.product((None, "added"), (None, "shift"), (None, "norm"), (None, INT8, FP8))
acts = itertools.cycle(ACTIVATIONS)
for (rows, width), dtype in zip(
    itertools.cycle(((1, 7), (3, 48), (2, 300), (2, 1152), (1, 4304), (3, 1024))), 4 * list(TOLERANCE) * 2
):
    has_added, has_shift, has_norm, quantize = next(settings)
    act = next(acts)
    x, added, shift = (randn(*shape, dtype=dtype) for shape in ((rows, width), (rows, width), (width,)))
    weight, bias = randn(width, dtype=dtype), randn(width, dtype=dtype)
    added, shift = added if has_added else None, shift if has_shift else None
    norm = LayerNorm(weight, bias, 1e-6) if has_norm else None
    y, scales, h = process_rows(x, added=added, shift=shift, norm=norm, act=act, quantize=quantize)
    summed = h.double()  # rounded once: the oracle goes on from there
    expected, expected_scales, _ = reference.rows(
        summed, None, None if shift is None else shift.double(),
        None if norm is None else (weight.double(), bias.double(), 1e-6),
        activation(act) if act else None,
        None if quantize is None else (quantize.largest, quantize.smallest_range),
    )
    name = f"{rows} {width} {dtype} {has_added} {has_shift} {has_norm} {act} {quantize}"
    check(h, x.double() if added is None else x.double() + added.double(), TOLERANCE[dtype], "h " + name)
    if quantize is None:
        assert scales is None and y.dtype == dtype
        check(y, expected, TOLERANCE[dtype], name)
    else:
        check(scales, expected_scales, 1e-4, "scales " + name)
        # The interpreter truncates to fp8, where a GPU rounds.
        check(y.float(), expected, 0.08 if quantize is FP8 else 0.02, name)
        assert y.dtype == quantize.dtype and (quantize is FP8 or y.float().abs().max() == quantize.largest), name
for bad in (torch.nan, torch.inf):
    x = randn(2, 300, dtype=torch.float32)
    x[1, 299] = bad
    scales = process_rows(x, quantize=INT8)[1]
    assert scales[0].isfinite() and not scales[1].isfinite()
zeros, scales, _ = process_rows(torch.zeros(1, 40), quantize=INT8)
assert not zeros.any() and scales.isfinite().all()
for given in (None, torch.zeros(0, 40)):
    assert process_rows(torch.zeros(0, 40), added=given)[0].shape == (0, 40)
with torch.device("meta"):
    for dtype in (None, INT8):
        y, scales, h = process_rows(torch.zeros(3, 40), added=torch.zeros(3, 40), quantize=dtype)
        assert y.shape == h.shape == (3, 40) and (scales is None or scales.shape == (3, 1))
"""


def test_rows_match_the_oracle() -> None:
    run_interpreted(INTERPRETED)


@pytest.mark.parametrize("quantize", ["", "i8", "fp8e4nv"], ids=["16-bit", "int8", "fp8"])
@pytest.mark.parametrize(("width", "act"), [(1152, ""), (4304, "gelu_pytorch_tanh")])
def test_rows_of_a_tower_fit_every_gpu(width: int, act: str, quantize: str, tmp_path: Path) -> None:
    flags = {"ADD": not act, "SHIFT": not act, "NORM": not act, "ACT": act, "EXACT": False}
    compile_for_every_gpu(width, quantize, flags, tmp_path)


@pytest.mark.parametrize("quantize", ["fp8e4nv", "fp8e5"])
@pytest.mark.parametrize("width", [512, 3584, 18944])
def test_rows_of_a_language_model_in_training_fit_every_gpu(width: int, quantize: str, tmp_path: Path) -> None:
    flags = {"ADD": False, "SHIFT": False, "NORM": False, "ACT": "", "EXACT": True}
    compile_for_every_gpu(width, quantize, flags, tmp_path)


def compile_for_every_gpu(width: int, quantize: str, flags: dict[str, bool | str], folder: Path) -> None:
    triton = pytest.importorskip("triton")
    from tests.compiled_kernels import SHARED_MEMORY, stack_bytes
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vila_core.ops.rows import parts_of_row, rows_kernel, warps_for

    main, rest = parts_of_row(width)
    for capability, shared in SHARED_MEMORY.items():
        if quantize.startswith("fp8") and capability < 89:
            continue  # these GPUs have no fp8
        constants = {
            **flags, "QUANTIZE": bool(quantize), "ROUND": quantize == "i8", "MAIN": main, "REST": rest,
            "PDL": capability >= 90,
        }  # fmt: skip
        types = {
            name: "constexpr" if name in constants
            else "*fp32" if name == "scales_pointer"
            else f"*{quantize}" if name == "y_pointer" and quantize
            else "*bf16" if name.endswith("_pointer")
            else "i32" if name == "width" else "fp32"
            for name in rows_kernel.arg_names
        }  # fmt: skip
        made = triton.compile(
            ASTSource(rows_kernel, types, constants),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": warps_for(1024, width)},
        )
        assert stack_bytes(made, folder) == 0, f"sm{capability}: registers spilled"
        assert made.metadata.shared <= shared * 1024
        assert ("griddepcontrol.wait" in made.asm["ptx"]) == (capability >= 90)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, [0]), (1, [1]), (7, [4, 2, 1]), (64, [64]), (13, [8, 4, 1])], ids=str
)
def test_images_attend_in_groups_of_known_sizes(count: int, expected: list[int]) -> None:
    from vila_core.ops.full_attention import powers_of_two

    assert powers_of_two(count) == expected
