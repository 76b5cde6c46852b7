"""Frozen linears of one input with their adapters: products and gradients, by hand (the formulas are in `lora`).

Factors are trained in fp32 and multiplied in bfloat16. Casting each where it is used takes 14 launches per layer, so
all of them are cast at once, before each forward pass, to copies in bfloat16.

T tokens, I inputs, O outputs, r rank, n linears
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vila_train.compute.fp8 import Fp8Linear, QuantizedRows, joint_weight, multiply_rows, quantize_rows

Factors = tuple[Tensor, list[Tensor]]
"""All `A`, one below the other: `[Σ r, I]`; and `B [O, r]` of each."""


class LoraGroup:
    """Frozen linears that read the same `x [T, I]`, with their adapters.

    Args:
        modules: the n linears, of `linears_of_one_input`.
    """

    def __init__(self, modules: Sequence[Linear]):
        self.modules = modules
        self.bases = [cast("nn.Linear", module.base_layer) for module in modules]
        self.in_8_bits = isinstance(self.bases[0], Fp8Linear)
        self.widths = [base.out_features for base in self.bases]
        self.scales = [float(scale) for module in modules for scale in module.scaling.values()]
        self._holders = [cast("nn.Linear", a) for module in modules for a in module.lora_A.values()]
        self._holders += [cast("nn.Linear", b) for module in modules for b in module.lora_B.values()]
        self._dropouts = [dropout for module in modules for dropout in module.lora_dropout.values()]
        self.ranks = [holder.out_features for holder in self._holders[: len(modules)]]
        self._bf16_factors: Factors | None = None

    @property
    def drops(self) -> bool:
        """Whether dropout is on."""
        return any(isinstance(one, nn.Dropout) and one.training and one.p > 0 for one in self._dropouts)

    @property
    def never_drops(self) -> bool:
        """Whether there is no dropout to switch on."""
        return not any(isinstance(one, nn.Dropout) and one.p > 0 for one in self._dropouts)

    def parameters(self) -> list[Tensor]:
        """Return all A, then all B, as they are trained."""
        return [holder.weight for holder in self._holders]

    def products(self, x: Tensor, quantized: QuantizedRows | None = None) -> tuple[list[Tensor], Tensor]:
        """Return `[T, O]` of each linear of `x [T, I]`, as new tensors, and all `x Aᵀ [T, Σ r]`.

        Args:
            x: in the dtype of the products.
            quantized: x in 8 bits, if already quantized.
        """
        a, b = self._factors(x.dtype)
        low = x @ a.t()
        outputs = self._frozen(x, quantized)
        for y, own, factor, scale in zip(outputs, low.split(self.ranks, 1), b, self.scales, strict=True):
            y.addmm_(own, factor.t(), alpha=scale)
        return outputs, low

    def gradients(
        self,
        grad_y: Sequence[Tensor],
        x: Tensor,
        low: Tensor,
        quantized: QuantizedRows | None = None,
        *,
        needs_input_grad: bool = True,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradients of `x [T, I]` (None unless it needs one) and of `parameters()`.

        Args:
            grad_y: the gradient of each linear's output, `[T, O]`.
            x: the input of `products`.
            low: `x Aᵀ [T, Σ r]`, as `products` returned it.
            quantized: `grad_y` side by side in 8 bits, if already quantized.
            needs_input_grad: whether to compute the gradient of x.
        """
        parameters = self.parameters()
        a, b = self._factors(x.dtype)
        # In one tensor, so that a single copy makes them fp32.
        flat = x.new_empty(sum(parameter.numel() for parameter in parameters))
        sizes = [a.numel(), *(factor.numel() for factor in b)]
        grad_a, *grad_b = flat.split(sizes)
        grad_low = torch.empty_like(low)
        lows, grad_lows = low.split(self.ranks, 1), grad_low.split(self.ranks, 1)
        parts = zip(grad_y, lows, grad_lows, b, grad_b, self.scales, strict=True)
        for gradient, own, grad_own, factor, grad_factor, scale in parts:
            grad_own.addmm_(gradient, factor, beta=0, alpha=scale)
            grad_factor.view(factor.shape).addmm_(gradient.t(), own, beta=0, alpha=scale)
        torch.mm(grad_low.t(), x, out=grad_a.view(a.shape))
        grad_x = self._frozen_gradient(grad_y, quantized).addmm_(grad_low, a) if needs_input_grad else None
        flat = flat.to(parameters[0].dtype)
        shaped = zip(flat.split([p.numel() for p in parameters]), parameters, strict=True)
        return grad_x, [gradient.view(parameter.shape) for gradient, parameter in shaped]

    def _frozen(self, x: Tensor, quantized: QuantizedRows | None) -> list[Tensor]:
        """Return `x Wᵀ + bias` of each."""
        biases = [cast("Tensor | None", base.bias) for base in self.bases]
        biases = [None if bias is None else bias.to(x.dtype) for bias in biases]
        if not self.in_8_bits:
            pairs = zip(self.bases, biases, strict=True)
            return [F.linear(x, base.weight.to(x.dtype), bias) for base, bias in pairs]
        weight = joint_weight(cast("list[Fp8Linear]", self.bases))
        quantized = quantized or quantize_rows(x, torch.float8_e4m3fn)
        outputs = [*multiply_rows(*quantized, *weight.rows, x.dtype).split(self.widths, 1)]
        for y, bias in zip(outputs, biases, strict=True):
            if bias is not None:
                y.add_(bias)
        return outputs

    def _frozen_gradient(self, grad_y: Sequence[Tensor], quantized: QuantizedRows | None) -> Tensor:
        """Return the sum of `dy W` over the linears, `[T, I]`, as a new tensor."""
        dtype = grad_y[0].dtype
        if self.in_8_bits:
            if quantized is None:
                joined = grad_y[0] if len(grad_y) == 1 else torch.cat([*grad_y], 1)
                quantized = quantize_rows(joined, torch.float8_e5m2)
            weight = joint_weight(cast("list[Fp8Linear]", self.bases))
            return multiply_rows(*quantized, *weight.columns, dtype)
        weights = [base.weight.to(dtype) for base in self.bases]
        total = grad_y[0] @ weights[0]
        for gradient, weight in zip(grad_y[1:], weights[1:], strict=True):
            total.addmm_(gradient, weight)
        return total

    def _factors(self, dtype: torch.dtype) -> Factors:
        """Return the factors in `dtype`: the bfloat16 copies, or new tensors."""
        if self._bf16_factors is not None and self._bf16_factors[0].dtype == dtype:
            return self._bf16_factors
        a, b = self._split_factors()
        return torch.cat(a).to(dtype), [factor.to(dtype) for factor in b]

    def _split_factors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return all A, and all B."""
        parameters = self.parameters()
        return parameters[: len(self.modules)], parameters[len(self.modules) :]

    def bf16_factors(self) -> list[Tensor]:
        """Return views of the bfloat16 copies, one for each of `parameters()`; empty if factors need no cast.

        Sharded factors have no copies: FSDP casts them.
        """
        a, b = self._split_factors()
        needs = self.bases[0].weight.dtype == torch.bfloat16 and all(
            factor.dtype == torch.float32 and not isinstance(factor, DTensor) for factor in [*a, *b]
        )
        if not needs:
            self._bf16_factors = None
            return []
        if self._bf16_factors is None or self._bf16_factors[0].device != a[0].device:
            like = torch.empty(0, dtype=torch.bfloat16, device=a[0].device)
            joint = like.new_empty(sum(self.ranks), a[0].shape[1])
            self._bf16_factors = joint, [like.new_empty(factor.shape) for factor in b]
        return [*self._bf16_factors[0].split(self.ranks), *self._bf16_factors[1]]


@torch.no_grad()
def refresh_bf16_factors(groups: Sequence[LoraGroup]) -> None:
    """Cast the factors of all `groups` to their bfloat16 copies.

    It does so every time, since nothing shows whether factors have changed: fused optimizers don't count their writes.
    """
    pairs = [(copies, group.parameters()) for group in groups if (copies := group.bf16_factors())]
    if pairs:
        torch._foreach_copy_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            [copy for copies, _ in pairs for copy in copies], [p for _, parameters in pairs for p in parameters]
        )
