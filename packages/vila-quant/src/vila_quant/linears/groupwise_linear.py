"""Linear layers with quantized weights. While loading they hold the tensors of the file; then what their kernel wants.

M rows, N outputs, K inputs, g group size
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vila_quant.kernels.registry import LinearShape, MatmulKernel, choose
from vila_quant.packing.autoawq import GemmTensors, unpack_gemm
from vila_quant.packing.groupwise import GroupwiseWeight


class GroupwiseLinear(nn.Module):
    """`y = x Wᵀ + b` with a four-bit W in AutoAWQ's gemm layout; its names in a state dict are those of the file.

    Once loaded, `kernel` says which kernel multiplies, and `packed` holds the weight as that kernel wants it.

    Args:
        shape: N must be a multiple of 8, g divide K.
        bias: whether there is one.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor

    def __init__(self, shape: LinearShape, *, bias: bool):
        super().__init__()
        groups = shape.inputs // shape.group_size
        self.shape = shape
        self.register_buffer("qweight", torch.zeros(shape.inputs, shape.outputs // 8, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(groups, shape.outputs // 8, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(groups, shape.outputs, dtype=torch.float16))
        self.bias = nn.Parameter(torch.zeros(shape.outputs), requires_grad=False) if bias else None
        self.kernel: MatmulKernel | None = None
        self.packed: Sequence[Tensor] = ()

    def reset_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose the kernel for `device` and `dtype`, and repack the weight for it."""
        self.use_weight(unpack_gemm(GemmTensors(self.qweight, self.qzeros, self.scales)), device, dtype)

    def use_weight(self, weight: GroupwiseWeight, device: torch.device, dtype: torch.dtype) -> None:
        """Take a weight `[N, K]` from memory; the file's tensors are given up."""
        self.kernel = choose(self.shape, device, dtype)
        self.packed = self.kernel.pack(weight, device, dtype)
        for name in ("qweight", "qzeros", "scales"):
            self.register_buffer(name, getattr(self, name).new_empty(0).to(device))

    def forward(self, x: Tensor) -> Tensor:
        assert self.kernel is not None, "the weights are not loaded"
        y = self.kernel.multiply(x.reshape(-1, self.shape.inputs), self.packed, self.shape)
        y = y.view(*x.shape[:-1], self.shape.outputs)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        kernel = "not loaded" if self.kernel is None else self.kernel.name
        return f"in={self.shape.inputs}, out={self.shape.outputs}, group_size={self.shape.group_size}, kernel={kernel}"
