"""Linears in 8 bits: E4M3 for activations and weights, E5M2 for gradients (Micikevicius et al. 2022), row by row.

    s_x[t] = max |x[t]| / 448,   X = E4M3(x / s_x),    W likewise        y  = s_x (X Wᵀ) s_wᵀ
    s_d[t] = max |dy[t]| / 57344, D = E5M2(dy / s_d),  Wᵀ likewise       dx = s_d (D W) s_wᵀ
                                                                         dW = dyᵀ x, in 16 bits

Scales are computed anew in each pass. The gradient of a weight sums over tokens, which no scale of a row or column of
the other operand can follow, so it stays in 16 bits (as in torchao's "rowwise_with_gw_hp").

Dimensions: T tokens, O outputs, I inputs.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from vila_core.model import VilaModel
from vila_train.compute.layers import repeated_layers
from vila_train.errors import TrainingError

MIN_CAPABILITY = (8, 9)
MULTIPLE = 16
"""Inputs and outputs of a product of 8-bit matrices are multiples of this."""

Quantize = Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]]


def fp8_refusal(device: torch.device) -> str | None:
    """Return why `device` has no 8-bit products; None if it has."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"8-bit products need an NVIDIA GPU, but the model is on '{device}'"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"8-bit products need sm89 or later, but {name} is sm{capability[0]}{capability[1]}"
    return None


def use_fp8(network: VilaModel, *, compiled: bool = False) -> None:
    """Let the linears of the language model's layers compute in 8 bits; not adapters, and not the head.

    Args:
        network: the model; it may have adapters.
        compiled: compile the quantization of rows.

    Raises:
        TrainingError: a width is not a multiple of 16.
    """
    quantize = compiled_quantization() if compiled else quantize_rows
    for layer in repeated_layers(cast("nn.Module", network.llm)):
        for name, module in [*layer.named_modules()]:
            if type(module) is not nn.Linear or ".lora_" in name:
                continue
            if module.in_features % MULTIPLE or module.out_features % MULTIPLE:
                raise TrainingError(
                    f"compute.fp8 takes linears with multiples of {MULTIPLE} inputs and outputs; {name} has "
                    f"{module.in_features} and {module.out_features}. Set compute.fp8=false."
                )
            parent, _, child = name.rpartition(".")
            setattr(layer.get_submodule(parent), child, Fp8Linear.of(module, quantize))


class Fp8Linear(nn.Linear):
    """A linear that multiplies in 8 bits. Its parameters are ordinary ones."""

    quantize: Quantize

    @classmethod
    def of(cls, linear: nn.Linear, quantize: Quantize | None = None) -> "Fp8Linear":
        """Return an 8-bit linear with the parameters of `linear`; `quantize` is `quantize_rows`, perhaps compiled."""
        bias = cast("nn.Parameter | None", linear.bias)
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=bias is not None)
        made.quantize = quantize or quantize_rows
        made.weight = linear.weight
        made.bias = bias  # pyright: ignore[reportAttributeAccessIssue]
        return made

    def forward(self, input: Tensor) -> Tensor:
        """`[..., I]` -> `[..., O]`."""
        rows = input if input.ndim == 2 else input.flatten(0, -2)
        y = cast("Tensor", _Fp8Product.apply(rows, self.weight, self.quantize))
        bias = cast("Tensor | None", self.bias)
        y = y if bias is None else y + bias.to(y.dtype)
        return y if input.ndim == 2 else y.view(*input.shape[:-1], -1)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return `x [T, I]` in 8 bits and the fp32 scale of each row, `[T, 1]`: x ≈ scale · quantized."""
    largest = torch.finfo(dtype).max
    scale = x.abs().amax(dim=-1, keepdim=True).float() / largest
    scale = torch.where(scale > 0, scale, 1.0)
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def compiled_quantization() -> Quantize:
    """Return `quantize_rows`, compiled once for each dtype and any size."""
    by_dtype = {
        dtype: torch.compile(_quantization_to(dtype), dynamic=True)
        for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
    }
    return lambda x, dtype: by_dtype[dtype](x)


def _quantization_to(dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
        return quantize_rows(x, dtype)

    return quantize


def multiply_rows(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `a bᵀ` for 8-bit `a [T, I]` and `b [O, I]` with the scales of their rows: `[T, O]`."""
    if a.is_cuda:
        product = torch._scaled_mm(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            a, b.t(), scale_a=a_scale, scale_b=b_scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )
    else:
        product = (a.float() * a_scale) @ (b.float() * b_scale).t()
    return product.to(dtype)


def forward_product(x: Tensor, weight: Tensor, quantize: Quantize, dtype: torch.dtype) -> Tensor:
    """Return `x Wᵀ`, `[T, O]` in `dtype`."""
    # Detached, because a function is compiled again for tensors with gradients.
    rows, columns = quantize(x.detach(), torch.float8_e4m3fn), quantize(weight.detach(), torch.float8_e4m3fn)
    return multiply_rows(*rows, *columns, dtype)


def input_gradient(gradient: Tensor, weight: Tensor, quantize: Quantize, dtype: torch.dtype) -> Tensor:
    """Return `dy W`, `[T, I]` in `dtype`."""
    rows = quantize(gradient.detach().contiguous(), torch.float8_e5m2)
    columns = quantize(weight.detach().t().contiguous(), torch.float8_e4m3fn)
    return multiply_rows(*rows, *columns, dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which `x` is multiplied: that of autocast, if it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Fp8Product(torch.autograd.Function):
    """`x Wᵀ` of `x [T, I]` and `W [O, I]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, quantize: Quantize) -> Tensor:
        dtype = product_dtype(x)
        ctx.save_for_backward(x.to(dtype) if weight.requires_grad else None, weight)
        ctx.input_dtype, ctx.quantize = x.dtype, quantize
        return forward_product(x, weight, quantize, dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (gradient,) = outputs
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = input_gradient(gradient, weight, ctx.quantize, ctx.input_dtype)
        if ctx.needs_input_grad[1]:
            of_weight = (gradient.to(x.dtype).t() @ x).to(weight.dtype)
        return of_x, of_weight, None
