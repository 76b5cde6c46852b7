"""The Triton kernels of int8 and fp8 linears: against references in the interpreter, compiled, and on a GPU.

M rows, N outputs, K inputs
"""

import os
import subprocess
import sys

import pytest
import torch

from vila_quant.kernels.int8 import LARGEST, SMALLEST_RANGE, multiply_int8, quantize_rows

SHAPES = [(1, 16, 8), (130, 200, 72), (5, 1152, 136)]
"""M, K, N: less than a tile, several partial tiles, many steps of K."""

MATCH_THE_REFERENCES = f"""
import torch
from vila_quant.kernels.cuda import int8_triton
from vila_quant.kernels.cuda import rows_triton
from vila_quant.kernels.int8 import LARGEST, SMALLEST_RANGE, multiply_int8, quantize_rows
generator = torch.Generator().manual_seed(0)
for rows, inputs, outputs in {SHAPES}:
    x = torch.randn(rows, inputs, generator=generator)
    x[0, :8] = 0.5 * torch.arange(8)
    x[-1] *= rows > 1  # a row of zeros
    q, scale = rows_triton.quantize_rows(x, torch.int8, LARGEST, SMALLEST_RANGE)
    expected_q, expected_scale = quantize_rows(x)
    assert torch.equal(q, expected_q)
    assert torch.equal(scale, expected_scale)
    weight, weight_scale = quantize_rows(torch.randn(outputs, inputs, generator=generator))
    for bias in (None, torch.randn(outputs, generator=generator)):
        y = int8_triton.multiply_int8(q, scale, weight, weight_scale, bias, torch.float32)
        torch.testing.assert_close(y, multiply_int8(q, scale, weight, weight_scale, bias), rtol=1e-6, atol=1e-6)
assert rows_triton.quantize_rows(x[:0], torch.int8, LARGEST, SMALLEST_RANGE)[0].shape == (0, inputs)
assert int8_triton.multiply_int8(q[:0], scale[:0], weight, weight_scale, None, torch.float32).shape == (0, outputs)
for bad in (torch.nan, torch.inf):
    x[1, 3] = bad
    q, scale = rows_triton.quantize_rows(x, torch.int8, LARGEST, SMALLEST_RANGE)
    y = int8_triton.multiply_int8(q, scale, weight, weight_scale, None, torch.float32)
    assert y[0].isfinite().all() and not y[1].isfinite().any()
"""


def test_the_kernels_match_their_references() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MATCH_THE_REFERENCES], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


COMPILED = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vila_quant.kernels.cuda.int8_triton import INPUTS, OUTPUTS, ROWS, TILES, _scaled_product_kernel
pointers = {"x": "*i8", "weight": "*i8", "x_scale": "*fp32", "weight_scale": "*fp32", "bias": "*bf16", "y": "*bf16"}
signature = {f"{name}_pointer": kind for name, kind in pointers.items()}
signature |= dict.fromkeys(("rows", "outputs", "inputs"), "i32")
constants = {"HAS_BIAS": True, "ROWS": ROWS, "OUTPUTS": OUTPUTS, "INPUTS": INPUTS, "TILES": TILES}
source = ASTSource(_scaled_product_kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
target = GPUTarget("cuda", int(sys.argv[1]), 32)
kernel = triton.compile(source, target=target, options={"num_warps": 8, "num_stages": 3})
assert "mma" in kernel.asm["ptx"], "no tensor cores"
print(kernel.metadata.shared)
"""


@pytest.mark.parametrize(
    "capability", [pytest.param(87, id="Orin"), pytest.param(89, id="RTX 4090", marks=pytest.mark.slow)]
)
def test_the_product_fits_into_shared_memory(capability: int) -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(capability)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) <= 99 * 1024  # bytes of shared memory per program


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [*SHAPES, (729, 4304, 1152)])
def test_on_a_gpu(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    from vila_quant.kernels.cuda import int8_triton, rows_triton

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    weight, weight_scale = quantize_rows(torch.randn(outputs, inputs, generator=generator))
    bias = torch.randn(outputs, generator=generator).to(dtype)
    q, scale = rows_triton.quantize_rows(x.cuda(), torch.int8, LARGEST, SMALLEST_RANGE)
    expected_q, expected_scale = quantize_rows(x.float())
    assert torch.equal(q.cpu(), expected_q)
    assert torch.equal(scale.cpu(), expected_scale)
    y = int8_triton.multiply_int8(q, scale, weight.cuda(), weight_scale.cuda(), bias.cuda(), dtype)
    expected = multiply_int8(expected_q, expected_scale, weight, weight_scale, bias).to(dtype)
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-4)
