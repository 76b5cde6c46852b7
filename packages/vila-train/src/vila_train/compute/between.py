"""What lies between the products of a block, forwards and backwards: Triton kernels on a GPU, or operators of PyTorch.

    norm:     h = x + change,   n = h / rms(h),   y = w n        dh = (w dy - n mean(w dy n)) / rms(h) + added
    SwiGLU:   y = silu(g) u     dg = dy u silu'(g),   du = dy silu(g)
    rotary:   y = (a cos - b sin, b cos + a sin) of a head's halves a and b; backwards with -sin

Results that products in 8 bits read are also returned in 8 bits, if `dtype` is given. Kernels round once, at the end.

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


def norm_backward(of_y: Tensor, x: Tensor, weight: Tensor, eps: float, added: Tensor) -> Tensor:
    """Return the gradient of `x [T, D]` from that of its norm, plus `added`."""
    if _on_kernels(x):
        from vila_train.compute.kernels import launch_norm_backward

        return launch_norm_backward(of_y, x.contiguous(), weight, eps, added.contiguous())
    wide = torch.promote_types(x.dtype, torch.float32)
    inverse = (x.to(wide).square().mean(-1, keepdim=True) + eps).rsqrt()
    n, of_n = x.to(wide) * inverse, of_y.to(wide) * weight.to(wide)
    return ((of_n - n * (of_n * n).mean(-1, keepdim=True)) * inverse + added.to(wide)).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, QuantizedRows | None]:
    """`gate`, `up` `[T, N]` -> `silu(gate) up` `[T, N]`, and that in 8 bits."""
    if _on_kernels(gate):
        from vila_train.compute.kernels import launch_swiglu

        return launch_swiglu(gate, up, dtype)
    y = F.silu(gate) * up
    return y, _quantized(y, dtype)


def swiglu_backward(
    of_y: Tensor, gate: Tensor, up: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, QuantizedRows | None]:
    """Return the gradients of gate and up side by side, `[T, 2N]`, and those in 8 bits."""
    if _on_kernels(gate):
        from vila_train.compute.kernels import launch_swiglu_backward

        return launch_swiglu_backward(of_y, gate, up, dtype)
    sigmoid = gate.sigmoid()
    joint = torch.cat([of_y * up * sigmoid * (1 + gate * (1 - sigmoid)), of_y * gate * sigmoid], 1)
    return joint, _quantized(joint, dtype)


def rotate_rows(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, direction: int) -> None:
    """Rotate `x [T, H, D_h]` into `out [T, H D_h]`, which may be the same memory.

    Args:
        x: any heads.
        cos: `[T, D_h]`, whose halves are equal.
        sin: the same.
        out: its columns are contiguous.
        direction: 1 forwards, -1 backwards, 0 copies.
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
