"""LoRA's linears with fewer passes over memory than peft's own `forward`: products are added in place.

    y = x Wᵀ + bias + s (x Aᵀ) Bᵀ        dB = s dyᵀ (x Aᵀ)        dA = s (dy B)ᵀ x        dx = dy W + s (dy B) A

Linears that read the same x (q, k and v; gate and up) are computed together: x is multiplied once by all A, one below
the other, and dx is summed in place.

T tokens, I inputs, O outputs, r rank; `W [O, I]`, `A [r, I]`, `B [O, r]`
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn

from vila_core.language.decoder import MLP, Attention
from vila_core.model import VilaModel
from vila_train.compute.fp8 import Fp8Linear, product_dtype, quantize_rows


def add_in_place(network: VilaModel) -> None:
    """Replace the `forward` of LoRA's linears, but not of DoRA's; parameters and names stay.

    Call it when frozen weights are frozen, and linears in 8 bits.
    """
    for module in network.modules():
        if isinstance(module, Linear) and _is_plain(module):
            direct = _takes_together([module])
            module.forward = partial(_forward, module, direct)
        elif isinstance(module, Attention):
            together = [module.q_proj, module.k_proj, module.v_proj]
            if _takes_together(together):
                module.project = partial(_forward_together, cast("list[Linear]", together))
        elif isinstance(module, MLP):
            together = [module.gate_proj, module.up_proj]
            if _takes_together(together):
                module.gate_and_up = partial(_forward_together, cast("list[Linear]", together))


def _is_plain(module: nn.Module) -> bool:
    return type(module) is Linear and not module.lora_variant and len(module.lora_A) == 1


def _takes_together(modules: Sequence[nn.Module]) -> bool:
    """Return whether `_LoraLinears` computes all `modules`: LoRA on frozen linears of one kind."""
    if not all(_is_plain(module) for module in modules):
        return False
    bases = [cast("nn.Linear", module.base_layer) for module in modules]
    is_frozen = not any(parameter.requires_grad for base in bases for parameter in base.parameters())
    return is_frozen and type(bases[0]) in (nn.Linear, Fp8Linear) and len({type(base) for base in bases}) == 1


def _forward(module: Linear, direct: bool, x: Tensor) -> Tensor:
    """`[..., I]` -> `[..., O]`."""
    if direct and not _drops(module):
        return _together([module], x)[0]
    (adapter,) = module.lora_A
    rows = x.flatten(0, -2)
    a, b = _factors(module)
    total = _LoraSum.apply(module.base_layer(rows), module.lora_dropout[adapter](rows), a, b, module.scaling[adapter])
    return cast("Tensor", total).view(*x.shape[:-1], -1)


def _forward_together(modules: Sequence[Linear], x: Tensor) -> Sequence[Tensor]:
    """`[..., I]` -> `[..., O]` of each."""
    return [module(x) for module in modules] if any(map(_drops, modules)) else _together(modules, x)


def _together(modules: Sequence[Linear], x: Tensor) -> Sequence[Tensor]:
    bases = [cast("nn.Linear", module.base_layer) for module in modules]
    scales = [scale for module in modules for scale in module.scaling.values()]
    a, b = zip(*map(_factors, modules), strict=True)
    outputs = cast("Sequence[Tensor]", _LoraLinears.apply(x.flatten(0, -2), bases, scales, *a, *b))
    return [y.view(*x.shape[:-1], -1) for y in outputs]


def _drops(module: Linear) -> bool:
    (dropout,) = module.lora_dropout.values()
    return isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0


def _factors(module: Linear) -> tuple[Tensor, Tensor]:
    (a,), (b,) = module.lora_A.values(), module.lora_B.values()
    return cast("nn.Linear", a).weight, cast("nn.Linear", b).weight


class _LoraLinears(torch.autograd.Function):
    """Frozen linears of the same `x [T, I]`, with their adapters: `[T, O]` of each."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, linears: Sequence[nn.Linear], scales: Sequence[float], *factors: Tensor
    ) -> tuple[Tensor, ...]:
        dtype = product_dtype(x)
        a, b = factors[: len(linears)], factors[len(linears) :]
        rows = x.to(dtype)
        low = rows @ torch.cat(a).to(dtype).t()  # [T, r] of each, side by side
        ctx.save_for_backward(rows, low, *factors)
        ctx.linears, ctx.scales, ctx.input_dtype = linears, scales, x.dtype
        outputs = _products(rows, linears)
        for y, own, factor, scale in zip(outputs, low.split([len(f) for f in a], 1), b, scales, strict=True):
            y.addmm_(own, factor.to(dtype).t(), alpha=scale)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, low, *factors = ctx.saved_tensors
        linears, scales, dtype = ctx.linears, ctx.scales, gradients[0].dtype
        a, b = factors[: len(linears)], factors[len(linears) :]
        ranks = [len(factor) for factor in a]
        of_low, of_b = torch.empty_like(low), list[Tensor]()
        parts = zip(gradients, low.split(ranks, 1), of_low.split(ranks, 1), b, scales, strict=True)
        for gradient, own, of_own, factor, scale in parts:
            of_own.addmm_(gradient, factor.to(dtype), beta=0, alpha=scale)
            of_b.append((gradient.t() @ own).to(factor.dtype).mul_(scale))
        of_a = (of_low.t() @ x).to(a[0].dtype).split(ranks)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = _input_gradient(gradients, linears)
            of_x = of_x.addmm_(of_low, torch.cat(a).to(dtype)).to(ctx.input_dtype)
        return of_x, None, None, *of_a, *of_b


def _products(x: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
    """Return `x Wᵀ + bias` of linears of one kind, `[T, O]` each, as new tensors."""
    biases = [None if linear.bias is None else linear.bias.to(x.dtype) for linear in linears]  # pyright: ignore[reportUnnecessaryComparison]
    if not isinstance(linears[0], Fp8Linear):
        return [F.linear(x, linear.weight.to(x.dtype), bias) for linear, bias in zip(linears, biases, strict=True)]
    quantized = quantize_rows(x, torch.float8_e4m3fn)
    products = [cast("Fp8Linear", linear).product(quantized, x.dtype) for linear in linears]
    return [y if bias is None else y.add_(bias) for y, bias in zip(products, biases, strict=True)]


def _input_gradient(gradients: Sequence[Tensor], linears: Sequence[nn.Linear]) -> Tensor:
    """Return the sum of `dy W`, `[T, I]`, as a new tensor."""
    total = None
    for gradient, linear in zip(gradients, linears, strict=True):
        if isinstance(linear, Fp8Linear):
            product = linear.input_gradient(gradient)
            total = product if total is None else total.add_(product)
        else:
            weight = linear.weight.to(gradient.dtype)
            total = gradient @ weight if total is None else total.addmm_(gradient, weight)
    assert total is not None
    return total


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
        of_low = (gradient @ b.to(gradient.dtype)).mul_(ctx.scale)  # of x Aᵀ
        of_a, of_b = (of_low.t() @ x).to(a.dtype), (gradient.t() @ low).to(b.dtype).mul_(ctx.scale)
        of_x = (of_low @ a.to(gradient.dtype)).to(ctx.input_dtype) if ctx.needs_input_grad[1] else None
        return gradient, of_x, of_a, of_b, None
