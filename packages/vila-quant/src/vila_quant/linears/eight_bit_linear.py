"""Linear layers with int8 or fp8 weights, one scale per output.

N outputs, K inputs
"""

import torch
from torch import Tensor, nn

from vila_quant.kernels.cpu.pages import large_pages
from vila_quant.kernels.kernel import EightBitKernel, LinearShape, Scheme
from vila_quant.kernels.registry import choose_eight_bit


class EightBitLinear(nn.Module):
    """`y = x Wᵀ + b` with eight-bit W; its names in a state dict are those of the file.

    Once loaded, `kernel` is the kernel that multiplies.

    Args:
        scheme: "int8" (weights only: a head), "w8a8" (int8 activations too) or "fp8" (e4m3 activations too).
        outputs: N.
        inputs: K.
        bias: whether the layer has a bias.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, scheme: Scheme, outputs: int, inputs: int, *, bias: bool):
        super().__init__()
        self.shape = LinearShape.eight_bit(scheme, outputs, inputs)
        dtype = torch.float8_e4m3fn if scheme == "fp8" else torch.int8
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=dtype))
        # The loader casts float32 tensors to the model's dtype, but not double; `reset_buffers` makes it float32.
        self.register_buffer("weight_scale", torch.ones(outputs, 1, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False) if bias else None
        self.kernel: EightBitKernel | None = None

    def reset_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose the kernel for `device` and `dtype`, and convert the scales to float32."""
        self.kernel = choose_eight_bit(self.shape, device, dtype)
        if device.type == "cpu" and self.shape.scheme == "int8":
            self.weight = large_pages(self.weight.shape, torch.int8).copy_(self.weight)
        self.weight_scale = self.weight_scale.to(device, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., K]` -> `[..., N]` in the dtype of `x`."""
        assert self.kernel is not None, "the weights are not loaded"
        rows = x.reshape(-1, self.shape.inputs)
        y = self.kernel.multiply(rows, self.weight, self.weight_scale, self.bias)
        return y.view(*x.shape[:-1], self.shape.outputs)

    def extra_repr(self) -> str:
        kernel = "not loaded" if self.kernel is None else self.kernel.name
        return f"in={self.shape.inputs}, out={self.shape.outputs}, scheme={self.shape.scheme}, kernel={kernel}"
