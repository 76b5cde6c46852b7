"""Linear layers with group-wise int4 weights. They load the tensors of the file, then repack them for their kernel.

M rows, N outputs, K inputs, g group size
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vila_core.language.linear_groups import LinearGroup
from vila_quant.kernels.kernel import LinearShape, MatmulKernel
from vila_quant.kernels.registry import choose
from vila_quant.packing.autoawq import GemmTensors, unpack_gemm
from vila_quant.packing.groupwise import GroupwiseWeight


class GroupwiseLinear(nn.Module):
    """`y = x Wᵀ + b` with int4 W in AutoAWQ's gemm layout; its names in a state dict are those of the file.

    Once loaded, `kernel` is the kernel that multiplies, and `packed` is the weight in its layout.

    Args:
        shape: N must be a multiple of 8, and g must divide K.
        bias: whether the layer has a bias.
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
        """Use `weight` `[N, K]`, and release the file's tensors."""
        self.kernel = choose(self.shape, device, dtype)
        self.packed = self.kernel.pack(weight, device, dtype)
        for name in ("qweight", "qzeros", "scales"):
            self.register_buffer(name, getattr(self, name).new_empty(0).to(device))

    def forward(self, x: Tensor) -> Tensor:
        assert self.kernel is not None, "the weights are not loaded"
        y = self.kernel.multiply(x.reshape(-1, self.shape.inputs), self.packed, self.shape)
        y = y.view(*x.shape[:-1], self.shape.outputs)
        return y if self.bias is None else y + self.bias

    def grouped(self, others: Sequence[nn.Module]) -> LinearGroup | None:
        """Return this linear and `others` as one, if all run on the W4A16 kernel (see `GroupableLinear`)."""
        linears = [self, *(other for other in others if isinstance(other, GroupwiseLinear))]
        names = {None if linear.kernel is None else linear.kernel.name for linear in linears}
        if len(linears) <= len(others) or names != {"cuda-w4a16"}:
            return None
        from vila_quant.linears.w4a16_group import W4A16Group  # needs Triton

        return W4A16Group.of(linears)

    def extra_repr(self) -> str:
        kernel = "not loaded" if self.kernel is None else self.kernel.name
        return f"in={self.shape.inputs}, out={self.shape.outputs}, group_size={self.shape.group_size}, kernel={kernel}"
