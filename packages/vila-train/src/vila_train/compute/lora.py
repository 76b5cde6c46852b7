"""LoRA's linears with fewer passes over memory than peft's own `forward`: products are added in place.

    y = x Wᵀ + bias + s (x Aᵀ) Bᵀ        dB = s dyᵀ (x Aᵀ)        dA = s (dy B)ᵀ x        dx = dy W + s (dy B) A

T tokens, I inputs, O outputs, r rank; `W [O, I]`, `A [r, I]`, `B [O, r]`
"""

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn

from vila_core.model import VilaModel
from vila_train.compute.fp8 import Fp8Linear, Quantize, forward_product, input_gradient, product_dtype


def add_in_place(network: VilaModel) -> None:
    """Replace the `forward` of LoRA's linears, but not of DoRA's; parameters and names stay."""
    for module in network.modules():
        if type(module) is Linear and not module.lora_variant and len(module.lora_A) == 1:
            module.forward = partial(_forward, module, *module.lora_A)


def _forward(module: Linear, adapter: str, x: Tensor) -> Tensor:
    """`[..., I]` -> `[..., O]`."""
    base, scale = module.base_layer, module.scaling[adapter]
    a, b = (cast("nn.Linear", factors[adapter]).weight for factors in (module.lora_A, module.lora_B))
    rows = x.flatten(0, -2)
    dropout = module.lora_dropout[adapter]
    drops = isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0
    is_frozen = not any(parameter.requires_grad for parameter in base.parameters())
    if type(base) in (nn.Linear, Fp8Linear) and is_frozen and not drops:
        quantize = base.quantize if isinstance(base, Fp8Linear) else None
        total = _LoraLinear.apply(rows, base.weight, base.bias, a, b, scale, quantize)
    else:
        total = _LoraSum.apply(base(rows), dropout(rows), a, b, scale)
    return cast("Tensor", total).view(*x.shape[:-1], -1)


class _LoraLinear(torch.autograd.Function):
    """The linear of `x [T, I]` whose weight `W` and bias are frozen, with its adapter; in 8 bits with `quantize`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float,
        quantize: Quantize | None,
    ) -> Tensor:  # fmt: skip
        dtype = product_dtype(x)
        rows = x.to(dtype)
        if quantize is None:
            y = F.linear(rows, weight.to(dtype), None if bias is None else bias.to(dtype))
        else:
            y = forward_product(rows, weight, quantize, dtype)
            y = y if bias is None else y.add_(bias.to(dtype))
        low = rows @ a.to(dtype).t()  # [T, r]
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scale, ctx.quantize, ctx.input_dtype = scale, quantize, x.dtype
        return y.addmm_(low, b.to(dtype).t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (gradient,) = outputs
        x, low, weight, a, b = ctx.saved_tensors
        of_low, of_a, of_b = _factor_gradients(gradient, x, low, a, b, ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            if ctx.quantize is None:
                of_x = gradient @ weight.to(gradient.dtype)
            else:
                of_x = input_gradient(gradient, weight, ctx.quantize, gradient.dtype)
            of_x = of_x.addmm_(of_low, a.to(gradient.dtype)).to(ctx.input_dtype)
        return of_x, None, None, of_a, of_b, None, None


class _LoraSum(torch.autograd.Function):
    """`y + s x Aᵀ Bᵀ` of `y [T, O]`, which is overwritten and must not be a view, and `x [T, I]`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.to(y.dtype)
        low = rows @ a.to(y.dtype).t()  # [T, r]
        ctx.save_for_backward(rows, low, a, b)
        ctx.scale, ctx.input_dtype = scale, x.dtype
        ctx.mark_dirty(y)
        return y.addmm_(low, b.to(y.dtype).t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (gradient,) = outputs
        x, low, a, b = ctx.saved_tensors
        of_low, of_a, of_b = _factor_gradients(gradient, x, low, a, b, ctx.scale)
        of_x = (of_low @ a.to(gradient.dtype)).to(ctx.input_dtype) if ctx.needs_input_grad[1] else None
        return gradient, of_x, of_a, of_b, None


def _factor_gradients(
    gradient: Tensor, x: Tensor, low: Tensor, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `x Aᵀ` `[T, r]`, of A and of B."""
    of_low = (gradient @ b.to(gradient.dtype)).mul_(scale)
    return of_low, (of_low.t() @ x).to(a.dtype), (gradient.t() @ low).to(b.dtype).mul_(scale)
