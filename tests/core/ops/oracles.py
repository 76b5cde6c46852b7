"""Code that runs in Triton's interpreter, and compares with the oracles in fp64."""

from tests.interpreted_kernels import run_interpreted

CHECK = """
import torch
from vila_core.ops import reference

generator = torch.Generator().manual_seed(0)
F16, F32 = torch.float16, torch.float32

def randn(*shape, dtype=F16):
    return torch.randn(*shape, generator=generator).to(dtype)

def fill_new_tensors_with_nan():
    # Whatever a kernel does not write shows as NaN.
    original = torch.Tensor.new_empty
    def new_empty(self, *shape, **options):
        made = original(self, *shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made.fill_(-7)
    torch.Tensor.new_empty = new_empty

fill_new_tensors_with_nan()

def check(y, expected, tolerance, name):
    assert y.shape == expected.shape, (name, y.shape, expected.shape)
    error = ((y.double() - expected).norm() / expected.norm()).item()
    largest = (y.double() - expected).abs().max().item()
    assert error <= tolerance, f"{name}: relative error {error:.2e}, largest {largest:.2e}"
"""
"""Defines `check`, `randn` and number types, and fills new tensors with NaN."""


def run_checks(code: str) -> None:
    """Run `code` after `CHECK` in the interpreter; the test fails with what it raises."""
    run_interpreted(CHECK + code)
