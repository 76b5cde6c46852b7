"""Linears in 8 bits: E4M3 for activations and weights, E5M2 for gradients (Micikevicius et al. 2022), row by row.

    s_x[t] = max |x[t]| / 448,   X = E4M3(x / s_x),    W likewise        y  = s_x (X Wᵀ) s_wᵀ
    s_d[t] = max |dy[t]| / 57344, D = E5M2(dy / s_d),  Wᵀ likewise       dx = s_d (D W) s_wᵀ
                                                                         dW = dyᵀ x, in 16 bits

Frozen linears of one input (q, k and v; gate and up) are one product: their weights lie one below the other.
Scales are computed anew in each pass, but for frozen weights only once: both 8-bit forms of such a weight then lie on
the GPU (as many bytes as it has in bf16), and the weight itself in main memory, where checkpoints and exports find it.
The gradient of a weight sums over tokens, which no scale of a row or column of the other operand can follow, so it
stays in 16 bits (as in torchao's "rowwise_with_gw_hp").

Dimensions: T tokens, O outputs, I inputs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from vila_core.model import VilaModel
from vila_core.ops.support import refusal
from vila_train.compute.inputs import linears_of_one_input
from vila_train.compute.layers import repeated_layers
from vila_train.errors import TrainingError

MIN_CAPABILITY = (8, 9)
MULTIPLE = 16
"""Inputs and outputs of a product of 8-bit matrices are multiples of this."""

SMALLEST_RANGE = 1e-30
"""Smaller magnitudes of a row count as this one, to avoid division by zero."""

QuantizedRows = tuple[Tensor, Tensor]
"""8-bit `[T, I]` and the fp32 scale of each row, `[T, 1]`."""


def fp8_refusal(device: torch.device) -> str | None:
    """Return why `device` has no 8-bit products; None if it has."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"8-bit products need an NVIDIA GPU, but the model is on '{device}'"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"8-bit products need sm89 or later, but {name} is sm{capability[0]}{capability[1]}"
    return None


def require_fp8(device: torch.device) -> None:
    """Raise `TrainingError` if `device` has no 8-bit products."""
    if (reason := fp8_refusal(device)) is not None:
        raise TrainingError(f"compute.fp8 cannot be used here: {reason}. Set compute.fp8=false.")


def require_fp8_widths(network: VilaModel) -> None:
    """Raise `TrainingError` if the width of a linear that computes in 8 bits is not a multiple of 16."""
    for _, name, module in _linears(network):
        if module.in_features % MULTIPLE or module.out_features % MULTIPLE:
            raise TrainingError(
                f"compute.fp8 takes linears with multiples of {MULTIPLE} inputs and outputs; {name} has "
                f"{module.in_features} and {module.out_features}. Set compute.fp8=false."
            )


def use_fp8(network: VilaModel) -> None:
    """Let the linears of the language model's layers compute in 8 bits; not adapters, and not the head.

    Args:
        network: the model; it may have adapters.

    Raises:
        TrainingError: a width is not a multiple of 16.
    """
    require_fp8_widths(network)
    for layer, name, module in _linears(network):
        parent, _, child = name.rpartition(".")
        setattr(layer.get_submodule(parent), child, Fp8Linear.of(module))


def quantize_frozen(network: VilaModel) -> None:
    """Quantize the frozen weights of 8-bit linears once, and move the weights themselves to main memory.

    Not under DoRA, which reads the weights themselves in each pass. Call it after `use_fp8`, with the network on the
    device where it computes, and not for weights that will be sharded.
    """
    for modules in linears_of_one_input(network):
        bases = [module.base_layer for module in modules]
        if isinstance(bases[0], Fp8Linear):
            quantize_together(cast("list[Fp8Linear]", bases))
    for module in frozen_linears(network):
        if isinstance(module, Fp8Linear) and not module.is_quantized:
            quantize_together([module])


def frozen_linears(network: VilaModel) -> list[nn.Linear]:
    """Return the linears whose weights `quantize_frozen` quantizes, before or after `use_fp8`."""
    modules = network.modules()
    under_dora = {id(layer.base_layer) for layer in modules if isinstance(layer, LoraLayer) and layer.lora_variant}
    linears = [module for _, _, module in _linears(network)]
    return [module for module in linears if not module.weight.requires_grad and id(module) not in under_dora]


def _linears(network: VilaModel) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield the linears of the language model's layers that may be in 8 bits: layer, name in it, linear."""
    for layer in repeated_layers(cast("nn.Module", network.llm)):
        for name, module in [*layer.named_modules()]:
            if type(module) in (nn.Linear, Fp8Linear) and ".lora_" not in name:
                yield layer, name, cast("nn.Linear", module)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight `W [O, I]` in 8 bits.

    Attributes:
        rows: of W, for `x Wᵀ`.
        columns: rows of Wᵀ, `[I, O]`, for `dy W`.
    """

    rows: QuantizedRows
    columns: QuantizedRows


class Fp8Linear(nn.Linear):
    """A linear that multiplies in 8 bits. Its parameters are ordinary ones."""

    _joint: QuantizedWeight | None = None
    """The quantized weights of several linears, one below the other; this one's rows are `_rows_of_joint`."""
    _rows_of_joint = slice(0, 0)

    @classmethod
    def of(cls, linear: nn.Linear) -> "Fp8Linear":
        """Return an 8-bit linear with the parameters of `linear`."""
        bias = cast("nn.Parameter | None", linear.bias)
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=bias is not None)
        made.weight = linear.weight
        made.bias = bias  # pyright: ignore[reportAttributeAccessIssue]
        return made

    @property
    def is_quantized(self) -> bool:
        """Whether its weight is quantized for good."""
        return self._joint is not None

    def keep(self, joint: QuantizedWeight, first: int) -> None:
        """Use rows of `joint`, from `first` on, from now on. Move the weight, which must not change, to main memory."""
        self._joint, self._rows_of_joint = joint, slice(first, first + self.out_features)
        self.weight.data = self.weight.data.cpu()

    @property
    def joint(self) -> QuantizedWeight | None:
        """What its weight was quantized in."""
        return self._joint

    def forward(self, input: Tensor) -> Tensor:
        """`[..., I]` -> `[..., O]`."""
        rows = input if input.ndim == 2 else input.flatten(0, -2)
        y = cast("Tensor", _Fp8Product.apply(rows, self.weight, self))
        bias = cast("Tensor | None", self.bias)
        y = y if bias is None else y + bias.to(y.dtype)
        return y if input.ndim == 2 else y.view(*input.shape[:-1], -1)

    def product(self, x: QuantizedRows, dtype: torch.dtype) -> Tensor:
        """Return `x Wᵀ` of E4M3 rows `x [T, I]`: `[T, O]` in `dtype`."""
        if self._joint is None:
            return multiply_rows(*x, *_rows(self.weight), dtype)
        codes, scale = self._joint.rows
        return multiply_rows(*x, codes[self._rows_of_joint], scale[self._rows_of_joint], dtype)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Return `dy W` of `gradient [T, O]`: `[T, I]` in its dtype."""
        quantized = quantize_rows(gradient, torch.float8_e5m2)
        if self._joint is None:
            return multiply_rows(*quantized, *_columns(self.weight), gradient.dtype)
        codes, scale = self._joint.columns
        return multiply_rows(*quantized, codes[:, self._rows_of_joint].contiguous(), scale, gradient.dtype)


def quantize_together(linears: Sequence[Fp8Linear]) -> None:
    """Quantize frozen linears of one input for good, one below the other (see `Fp8Linear.keep`)."""
    joint = joint_weight(linears)
    first = 0
    for linear in linears:
        linear.keep(joint, first)
        first += linear.out_features


def joint_weight(linears: Sequence[Fp8Linear]) -> QuantizedWeight:
    """Return the weights of linears of one input, one below the other, in 8 bits: kept ones, or quantized now.

    Columns have one scale each for all linears, so that gradients side by side are multiplied in one go.
    """
    joint = linears[0].joint
    if joint is not None:
        return joint
    weights = [linear.weight.detach() for linear in linears]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return QuantizedWeight(_rows(weight), _columns(weight))


def _rows(weight: Tensor) -> QuantizedRows:
    return quantize_rows(weight.detach(), torch.float8_e4m3fn)


def _columns(weight: Tensor) -> QuantizedRows:
    return quantize_rows(weight.detach().t(), torch.float8_e4m3fn)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> QuantizedRows:
    """Return `x [T, I]` in 8 bits and the fp32 scale of each row, `[T, 1]`: x ≈ scale · quantized.

    One Triton kernel on NVIDIA GPUs (`compute.kernels`).
    """
    if has_kernels(x.device):
        from vila_train.compute.kernels import launch_quantize  # needs Triton

        return launch_quantize(x.detach().contiguous(), dtype)
    return quantize_rows_reference(x, dtype)


def quantize_rows_reference(x: Tensor, dtype: torch.dtype) -> QuantizedRows:
    """`quantize_rows` in PyTorch's operators, on any device."""
    largest = torch.finfo(dtype).max
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp(min=SMALLEST_RANGE) / largest
    return (x.float() * (1.0 / scale)).clamp(-largest, largest).to(dtype).contiguous(), scale


@cache
def has_kernels(device: torch.device) -> bool:
    """Return whether `compute.kernels` run on `device`."""
    return refusal(device, torch.bfloat16) is None


def multiply_rows(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `a bᵀ` for 8-bit `a [T, I]` and `b [O, I]` with the scales of their rows: `[T, O]`."""
    if a.is_cuda:
        product = torch._scaled_mm(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            a, b.t(), scale_a=a_scale, scale_b=b_scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )
    else:
        product = (a.float() * a_scale) @ (b.float() * b_scale).t()
    return product.to(dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which `x` is multiplied: that of autocast, if it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Fp8Product(torch.autograd.Function):
    """`x Wᵀ` of `x [T, I]` and the weight `W [O, I]` of a linear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, linear: Fp8Linear) -> Tensor:
        dtype = product_dtype(x)
        ctx.save_for_backward(x.to(dtype) if weight.requires_grad else None)
        ctx.input_dtype, ctx.linear = x.dtype, linear
        return linear.product(quantize_rows(x, torch.float8_e4m3fn), dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (gradient,) = outputs
        (x,) = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.linear.input_gradient(gradient).to(ctx.input_dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = (gradient.to(x.dtype).t() @ x).to(ctx.linear.weight.dtype)
        return grad_x, grad_weight, None
