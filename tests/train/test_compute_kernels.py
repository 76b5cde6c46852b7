"""The Triton kernels of training, against their references."""

import pytest
import torch
from tests.interpreted_kernels import run_interpreted


def test_a_gpu_quantizes_rows_as_the_reference_does():
    run_interpreted(
        """
import torch
from vila_train.compute.fp8 import quantize_rows_reference
from vila_train.compute.kernels import launch_quantize

generator = torch.Generator().manual_seed(0)
for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
    for width in (48, 300, 3584):
        x = torch.randn(3, width, generator=generator).bfloat16()
        x[0] = 0
        x[1] *= 1e-12
        q, scale = launch_quantize(x, dtype)
        expected, expected_scale = quantize_rows_reference(x, dtype)
        assert torch.equal(scale, expected_scale), (scale, expected_scale)
        assert q.dtype == dtype
        # The interpreter's rounding loses the carry to the next power of two, and is coarse below normal numbers.
        info, t = torch.finfo(dtype), x.float() / scale
        carries = (expected.float().abs().frexp().mantissa == 0.5) & (expected.float().abs() > t.abs())
        compared = (t.abs() >= info.smallest_normal) & ~carries
        assert compared.float().mean() > 0.5
        assert ((q.float() - t).abs() <= 0.501 * info.eps * t.abs())[compared].all(), (dtype, width)
"""
    )


def test_a_gpu_computes_between_products_as_the_reference_does():
    run_interpreted(KERNELS_AGAINST_REFERENCES.replace("DEVICE", "cpu"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_kernels_between_products_on_a_gpu():
    exec(KERNELS_AGAINST_REFERENCES.replace("DEVICE", "cuda"), {})


KERNELS_AGAINST_REFERENCES = """
import torch
from vila_train.compute import block_ops, kernels

def near(found, expected, tolerance=0.01):
    assert torch.isfinite(found.float()).all()
    assert (found.float() - expected.float()).norm() < tolerance * expected.float().norm()

def random(*shape):
    return torch.randn(shape, generator=generator).bfloat16().to("DEVICE")

generator = torch.Generator().manual_seed(0)
tokens, inner, width, heads, head_dim = 5, 2100, 300, 3, 64
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
gate, up = random(tokens, 2 * inner).split(inner, 1)
grad_inner, x, change, added, grad_y = random(tokens, inner), *random(4, tokens, width)
weight = random(width)
wide = lambda *tensors: [None if one is None else one.float() for one in tensors]

for quantized in (False, True):
    y, codes = kernels.launch_swiglu(gate, up, E4M3 if quantized else None)
    near(y, block_ops.swiglu(*wide(gate, up), None)[0])
    joint, grad_codes = kernels.launch_swiglu_backward(grad_inner, gate, up, E5M2 if quantized else None)
    near(joint, block_ops.swiglu_backward(*wide(grad_inner, gate, up), None)[0])
    pairs = [(y, codes), (joint, grad_codes)]
    for term in (None, change):
        total, y, codes = kernels.launch_norm(x, term, weight, 1e-6, E4M3 if quantized else None)
        expected = block_ops.add_norm(*wide(x, term, weight), 1e-6, None)
        near(total, expected[0])
        near(y, expected[1])
        pairs.append((y, codes))
    for y, codes in pairs if quantized else []:  # the interpreter's rounding loses the carry to the next power of two
        near(codes[0].float() * codes[1], y, 0.15)
        largest = torch.finfo(codes[0].dtype).max
        scales = y.abs().amax(1, keepdim=True).float() / largest
        torch.testing.assert_close(codes[1], scales, rtol=1e-6, atol=0)  # a GPU's division is not exactly rounded
found = kernels.launch_norm_backward(grad_y, x, weight, 1e-6, added)
near(found, block_ops.norm_backward(*wide(grad_y, x, weight), 1e-6, added.float()))

angles = random(tokens, head_dim // 2).repeat(1, 2)
vectors = random(tokens, heads, head_dim)
for direction in (1, -1, 0):
    expected = torch.empty(tokens, heads * head_dim, device="DEVICE")
    block_ops.rotate_rows(*wide(vectors, angles.cos(), angles.sin()), expected, direction)
    out = torch.full((tokens, 300), torch.nan, device="DEVICE").bfloat16()
    kernels.launch_rotate(vectors, angles.cos(), angles.sin(), out[:, 20 : 20 + expected.shape[1]], direction)
    near(out[:, 20 : 20 + expected.shape[1]], expected)
    assert out[:, :20].isnan().all() and out[:, 20 + expected.shape[1] :].isnan().all()
    in_place = vectors.clone()
    kernels.launch_rotate(in_place, angles.cos(), angles.sin(), in_place.flatten(1), direction)
    near(in_place.flatten(1), expected)

x[1, 7], x[2] = torch.nan, 0
codes, scales = kernels.launch_quantize(x, E4M3)
assert scales.isnan().flatten().tolist() == [False, True, False, False, False]
assert (codes[2].float() == 0).all()
"""
