"""Linear layers with eight-bit weights, symmetric, one scale an output.

M rows, N outputs, K inputs

    y = x (q · scale)ᵀ + bias,    q int8 in -127 … 127

Weight-only layers (an lm_head) keep activations as they are. Layers of a vision tower also quantize them, token by token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PANEL_ELEMENTS = 1 << 24
"""Weights that are dequantized at once: 32 MB of bf16, where the whole lm_head of an 8B model would be 1 GB."""

FEW_ROWS = 4
"""Up to as many rows PyTorch's int8 product on a CPU, which reads a byte a weight, beats dequantized panels."""


class Int8Linear(nn.Module):
    """`y = x Wᵀ + b` with W in int8; its names in a state dict are those of the file.

    Args:
        outputs: N.
        inputs: K.
        bias: whether there is one.
        quantize_activations: whether a row of x is cut to int8 too (dynamically, by its own largest value).
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, outputs: int, inputs: int, *, bias: bool, quantize_activations: bool):
        super().__init__()
        self.quantize_activations = quantize_activations
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=torch.int8))
        # The loader casts what is declared as float32 to the model's dtype; double passes, and `reset_buffers` makes it float32.
        self.register_buffer("weight_scale", torch.ones(outputs, 1, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False) if bias else None
        self._scale = torch.ones(0)

    def reset_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the scales into the forms that the products take: float32 `[N, 1]`, and `dtype` `[N]`."""
        self.weight_scale = self.weight_scale.to(device, torch.float32)
        self._scale = self.weight_scale.flatten().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., K]` -> `[..., N]` in the dtype of `x`."""
        rows = x.reshape(-1, x.shape[-1])
        y = multiply_weight_only(rows, self.weight, self._scale)
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        return f"in={inputs}, out={outputs}, activations={'int8' if self.quantize_activations else 'as they are'}"


def multiply_weight_only(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`x [M, K]`, `weight [N, K]` int8, `scale [N]` -> `[M, N]`; `scale` and result in the dtype of `x`."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and 0 < x.shape[0] <= FEW_ROWS:
        return torch.ops.aten._weight_int8pack_mm(x, weight, scale)
    step = max(1, PANEL_ELEMENTS // weight.shape[1])
    panels = [F.linear(x, panel.to(x.dtype)) for panel in weight.split(step)]
    return torch.cat(panels, dim=-1) * scale
