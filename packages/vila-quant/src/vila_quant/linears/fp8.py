"""Linear layers with eight-bit floating weights (e4m3), one scale an output; activations are cut to e4m3 token by token.

M rows, N outputs, K inputs

    y = (x_q qᵀ) · x_scale · scale + bias,   x_scale = max|x| / 448 of each row

On GPUs with fp8 units (Ada, Hopper and later) through `torch._scaled_mm`; elsewhere both sides are dequantized, which saves memory alone.
"""

# PyTorch has no public names for these products.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vila_quant.linears.int8 import SMALLEST_RANGE

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max


class Fp8Linear(nn.Module):
    """`y = x Wᵀ + b` with W in e4m3; its names in a state dict are those of the file.

    Args:
        outputs: N.
        inputs: K.
        bias: whether there is one.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, outputs: int, inputs: int, *, bias: bool):
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=FP8))
        # The loader casts what is declared as float32 to the model's dtype; double passes, and `reset_buffers` makes it float32.
        self.register_buffer("weight_scale", torch.ones(outputs, 1, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False) if bias else None
        self.is_fast = False

    def reset_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the scales to float32 and see whether the device multiplies e4m3; a GPU that does not is warned of."""
        self.weight_scale = self.weight_scale.to(device, torch.float32)
        self.is_fast = multiplies_fp8(device, *self.weight.shape)
        if device.type == "cuda" and not self.is_fast:
            name = torch.cuda.get_device_name(device)
            warnings.warn(
                f"{name} does not multiply fp8: the vision tower is dequantized at each step. Use --vision int8.",
                stacklevel=2,
            )

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., K]` -> `[..., N]` in the dtype of `x`."""
        rows = x.reshape(-1, x.shape[-1])
        cut = _cutting_of_triton() if self.is_fast else None
        q, scale = quantize_rows_fp8(rows.float()) if cut is None else cut(rows)
        multiply = multiply_fp8 if self.is_fast else multiply_fp8_reference
        y = multiply(q, scale, self.weight, self.weight_scale, self.bias)
        return y.to(x.dtype).view(*x.shape[:-1], y.shape[-1])

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        return f"in={inputs}, out={outputs}, product={'scaled_mm' if self.is_fast else 'dequantized'}"


def multiplies_fp8(device: torch.device, outputs: int, inputs: int) -> bool:
    """Return whether `torch._scaled_mm` takes e4m3 weights `[outputs, inputs]` on `device`: sm89 on, sizes that are multiples of 16."""
    if device.type != "cuda" or torch.version.hip or outputs % 16 or inputs % 16:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def quantize_rows_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Cut each row to e4m3, its largest magnitude to 448: `x [M, K]` -> `[M, K]` e4m3, scales `[M, 1]` in the dtype of `x`."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_RANGE) / LARGEST
    return (x / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


@cache
def _cutting_of_triton() -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """Return the same in one kernel on a GPU, where Triton is installed."""
    try:
        from vila_quant.kernels.cuda.rows_triton import quantize_rows
    except ImportError:
        return None
    return lambda x: quantize_rows(x, FP8, LARGEST, SMALLEST_RANGE)


def multiply_fp8(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """`x [M, K]` and `weight [N, K]` e4m3, scales `[M, 1]` and `[N, 1]` float32, `bias [N]` -> `[M, N]`.

    The product comes out of the tensor cores in bfloat16; a bias in bfloat16 is added before it is rounded to that.
    """
    inside = bias if bias is not None and bias.dtype == torch.bfloat16 else None
    y = torch._scaled_mm(
        x, weight.T, x_scale, weight_scale.T, bias=inside, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return y if bias is None or inside is not None else y + bias.float()


def multiply_fp8_reference(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """The same anywhere, in float32: the oracle of `multiply_fp8`."""
    y = F.linear(x.float(), weight.float()) * weight_scale.T * x_scale
    return y if bias is None else y + bias.float()
