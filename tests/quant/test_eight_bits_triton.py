"""The Triton kernels of int8 and fp8 linears: against references in the interpreter, compiled, and on a GPU.

M rows, N outputs, K inputs
"""

import sys

import pytest
import torch
from tests.interpreted_kernels import run_interpreted
from tests.programs import run_program

from vila_quant.kernels.int8 import LARGEST, SMALLEST_RANGE, multiply_int8, quantize_rows

SHAPES = [(1, 16, 8), (130, 200, 72), (5, 1152, 136)]
"""M, K, N: less than a tile, several partial tiles, many steps of K."""

MATCH_THE_REFERENCES = f"""
import torch
from vila_quant.kernels.cuda import int8_triton
from vila_core.ops.row_settings import RowFormat
from vila_core.ops.rows import process_rows
from vila_quant.kernels.int8 import LARGEST, SMALLEST_RANGE, multiply_int8, quantize_rows
FORMAT = RowFormat(torch.int8, LARGEST, SMALLEST_RANGE)
generator = torch.Generator().manual_seed(0)
for rows, inputs, outputs in {SHAPES}:
    x = torch.randn(rows, inputs, generator=generator)
    x[0, :8] = 0.5 * torch.arange(8)
    x[-1] *= rows > 1  # a row of zeros
    q, scale, _ = process_rows(x, quantize=FORMAT)
    expected_q, expected_scale = quantize_rows(x)
    assert torch.equal(q, expected_q)
    assert torch.equal(scale, expected_scale)
    weight, weight_scale = quantize_rows(torch.randn(outputs, inputs, generator=generator))
    for bias in (None, torch.randn(outputs, generator=generator)):
        y = int8_triton.multiply_int8(q, scale, weight, weight_scale, bias, torch.float32)
        torch.testing.assert_close(y, multiply_int8(q, scale, weight, weight_scale, bias), rtol=1e-6, atol=1e-6)
assert process_rows(x[:0], quantize=FORMAT)[0].shape == (0, inputs)
assert int8_triton.multiply_int8(q[:0], scale[:0], weight, weight_scale, None, torch.float32).shape == (0, outputs)
for bad in (torch.nan, torch.inf):
    x[1, 3] = bad
    q, scale, _ = process_rows(x, quantize=FORMAT)
    y = int8_triton.multiply_int8(q, scale, weight, weight_scale, None, torch.float32)
    assert y[0].isfinite().all() and not y[1].isfinite().any()
"""


def test_the_kernels_match_their_references() -> None:
    run_interpreted(MATCH_THE_REFERENCES)


COMPILED = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vila_quant.kernels.cuda.int8_triton import GROUP, choose_tile, scaled_product_kernel
capability = int(sys.argv[1])
copy_engine = capability == 90
shared = []
for rows, outputs, inputs in ((1024, 1152, 1152), (1024, 1152, 4304), (65536, 3456, 1152), (65536, 1152, 4304)):
    tile = choose_tile(rows, outputs, inputs, copy_engine=copy_engine)
    descriptors = {"x": [tile.rows, tile.inputs], "weight": [tile.outputs, tile.inputs]}
    signature = {name: f"tensordesc<i8{block}>" if copy_engine else "*i8" for name, block in descriptors.items()}
    pointers = {"x_scale": "*fp32", "weight_scale": "*fp32", "bias": "*bf16", "y": "*bf16"}
    signature |= {f"{name}_pointer": kind for name, kind in pointers.items()}
    signature |= dict.fromkeys(("rows", "outputs", "inputs"), "i32")
    constants = {"HAS_BIAS": True, "ROWS": tile.rows, "OUTPUTS": tile.outputs, "INPUTS": tile.inputs, "GROUP": GROUP}
    constants["COPY_ENGINE"] = copy_engine
    source = ASTSource(scaled_product_kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
    target = GPUTarget("cuda", capability, 32)
    kernel = triton.compile(source, target=target, options={"num_warps": tile.warps, "num_stages": tile.stages})
    assert ("wgmma" if copy_engine else "mma") in kernel.asm["ptx"], "no tensor cores"
    assert ("cp.async.bulk.tensor" in kernel.asm["ptx"]) == copy_engine
    shared.append(kernel.metadata.shared)
print(max(shared))
"""


@pytest.mark.parametrize(
    "capability",
    [
        pytest.param(80, id="A100", marks=pytest.mark.slow),
        pytest.param(86, id="RTX 3090", marks=pytest.mark.slow),
        pytest.param(87, id="Orin"),
        pytest.param(89, id="RTX 4090", marks=pytest.mark.slow),
        pytest.param(90, id="H100"),
        pytest.param(120, id="RTX 5090", marks=pytest.mark.slow),
    ],
)
def test_the_product_fits_into_shared_memory(capability: int) -> None:
    pytest.importorskip("triton")
    done = run_program([sys.executable, "-c", COMPILED, str(capability)])
    assert done.returncode == 0, done.stderr[-2000:]
    from tests.compiled_kernels import SHARED_MEMORY  # needs Triton

    assert int(done.stdout) <= SHARED_MEMORY[capability] * 1024


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [*SHAPES, (729, 4304, 1152)])
def test_on_a_gpu(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    from vila_core.ops.row_settings import RowFormat
    from vila_core.ops.rows import process_rows
    from vila_quant.kernels.cuda import int8_triton

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    weight, weight_scale = quantize_rows(torch.randn(outputs, inputs, generator=generator))
    bias = torch.randn(outputs, generator=generator).to(dtype)
    q, scale, _ = process_rows(x.cuda(), quantize=RowFormat(torch.int8, LARGEST, SMALLEST_RANGE))
    assert scale is not None
    expected_q, expected_scale = quantize_rows(x.float())
    assert torch.equal(q.cpu(), expected_q)
    assert torch.equal(scale.cpu(), expected_scale)
    y = int8_triton.multiply_int8(q, scale, weight.cuda(), weight_scale.cuda(), bias.cuda(), dtype)
    expected = multiply_int8(expected_q, expected_scale, weight, weight_scale, bias).to(dtype)
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-4)
