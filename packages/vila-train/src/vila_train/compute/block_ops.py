"""The operations between the matrix products of a block, forward and backward: Triton kernels on a GPU, else PyTorch.

    norm:     h = x + change,   n = h / rms(h),   y = w n        dh = (w dy - n mean(w dy n)) / rms(h) + added
    SwiGLU:   y = silu(g) u     dg = dy u silu'(g),   du = dy silu(g)
    rotary:   y = (a cos - b sin, b cos + a sin) of a head's halves a and b; backward with -sin

With `dtype` (E4M3 or E5M2), a result is also returned quantized, for products in 8 bits. Kernels compute in fp32 and
round once, at the end; they run for bfloat16 tensors only.

T tokens, D width, N width of the MLP, H heads, D_h head width
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vila_train.compute.fp8 import QuantizedRows, has_kernels, quantize_rows


def _on_kernels(x: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.bfloat16 and has_kernels(x.device)


def add_norm(
    x: Tensor, change: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, QuantizedRows | None]:
    """`x`, `change` `[T, D]` -> their sum (x without change), its norm `[T, D]`, and that in 8 bits."""
    if _on_kernels(x):
        from vila_train.compute.kernels import launch_norm

        return launch_norm(x.contiguous(), change, weight, eps, dtype)
    total = x if change is None else x + change
    y = weight.to(x.dtype) * F.rms_norm(total, total.shape[-1:], None, eps)
    return total, y, _quantized(y, dtype)


def norm_backward(grad_y: Tensor, x: Tensor, weight: Tensor, eps: float, added: Tensor) -> Tensor:
    """Return the gradient of `x [T, D]`: that of its norm, from `grad_y [T, D]`, plus `added [T, D]`."""
    if _on_kernels(x):
        from vila_train.compute.kernels import launch_norm_backward

        return launch_norm_backward(grad_y, x.contiguous(), weight, eps, added.contiguous())
    wide = torch.promote_types(x.dtype, torch.float32)
    inverse = (x.to(wide).square().mean(-1, keepdim=True) + eps).rsqrt()
    n, grad_n = x.to(wide) * inverse, grad_y.to(wide) * weight.to(wide)
    return ((grad_n - n * (grad_n * n).mean(-1, keepdim=True)) * inverse + added.to(wide)).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, QuantizedRows | None]:
    """`gate`, `up` `[T, N]` -> `silu(gate) up` `[T, N]`, and that in 8 bits."""
    if _on_kernels(gate):
        from vila_train.compute.kernels import launch_swiglu

        return launch_swiglu(gate, up, dtype)
    y = F.silu(gate) * up
    return y, _quantized(y, dtype)


def swiglu_backward(
    grad_y: Tensor, gate: Tensor, up: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, QuantizedRows | None]:
    """Return the gradients of gate and up side by side, `[T, 2N]`, and those in 8 bits."""
    if _on_kernels(gate):
        from vila_train.compute.kernels import launch_swiglu_backward

        return launch_swiglu_backward(grad_y, gate, up, dtype)
    sigmoid = gate.sigmoid()
    joint = torch.cat([grad_y * up * sigmoid * (1 + gate * (1 - sigmoid)), grad_y * gate * sigmoid], 1)
    return joint, _quantized(joint, dtype)


def rotate_rows(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, direction: int) -> None:
    """Apply rotary embedding to `x` and write the result to `out`, which may be the same memory.

    Args:
        x: queries or keys `[T, H, D_h]`.
        cos: `[T, D_h]`, both halves equal.
        sin: likewise.
        out: `[T, H D_h]`, columns contiguous.
        direction: 1 for the forward pass, -1 for the backward pass, 0 to copy.
    """
    if _on_kernels(x):
        from vila_train.compute.kernels import launch_rotate

        launch_rotate(x if x.stride(2) == 1 else x.contiguous(), cos, sin, out, direction)
        return
    if direction:
        a, b = x.chunk(2, dim=-1)
        x = x * cos[:, None] + direction * torch.cat((-b, a), dim=-1) * sin[:, None]
    out.copy_(x.flatten(1))


def _quantized(x: Tensor, dtype: torch.dtype | None) -> QuantizedRows | None:
    return None if dtype is None else quantize_rows(x, dtype)
