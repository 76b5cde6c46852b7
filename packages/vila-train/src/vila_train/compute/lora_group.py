"""Frozen linears of one input with their adapters: products and gradients, by hand (the formulas are in `lora`).

Factors are trained in fp32 and multiplied in bfloat16. Casting each where it is used takes 14 launches per layer, so
all of them are cast at once, before each forward pass, to twins.

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
        self._twins: Factors | None = None

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
            quantized: x in 8 bits, if it is known.
        """
        a, b = self._factors(x.dtype)
        low = x @ a.t()
        outputs = self._frozen(x, quantized)
        for y, own, factor, scale in zip(outputs, low.split(self.ranks, 1), b, self.scales, strict=True):
            y.addmm_(own, factor.t(), alpha=scale)
        return outputs, low

    def gradients(
        self,
        of_y: Sequence[Tensor],
        x: Tensor,
        low: Tensor,
        quantized: QuantizedRows | None = None,
        *,
        of_input: bool = True,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradients of `x [T, I]`, if it needs any, and of `parameters()`.

        Args:
            of_y: of each linear, `[T, O]`.
            x: what `products` got.
            low: what it returned.
            quantized: all gradients side by side in 8 bits, if they are known.
            of_input: whether x needs one.
        """
        parameters = self.parameters()
        a, b = self._factors(x.dtype)
        # In one tensor, so that a single copy makes them fp32.
        flat = x.new_empty(sum(parameter.numel() for parameter in parameters))
        sizes = [a.numel(), *(factor.numel() for factor in b)]
        of_a, *of_b = flat.split(sizes)
        of_low = torch.empty_like(low)
        parts = zip(of_y, low.split(self.ranks, 1), of_low.split(self.ranks, 1), b, of_b, self.scales, strict=True)
        for gradient, own, of_own, factor, of_factor, scale in parts:
            of_own.addmm_(gradient, factor, beta=0, alpha=scale)
            of_factor.view(factor.shape).addmm_(gradient.t(), own, beta=0, alpha=scale)
        torch.mm(of_low.t(), x, out=of_a.view(a.shape))
        of_x = self._frozen_gradient(of_y, quantized).addmm_(of_low, a) if of_input else None
        flat = flat.to(parameters[0].dtype)
        shaped = zip(flat.split([p.numel() for p in parameters]), parameters, strict=True)
        return of_x, [gradient.view(parameter.shape) for gradient, parameter in shaped]

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

    def _frozen_gradient(self, of_y: Sequence[Tensor], quantized: QuantizedRows | None) -> Tensor:
        """Return the sum of `dy W`, `[T, I]`, as a new tensor."""
        dtype = of_y[0].dtype
        if self.in_8_bits:
            if quantized is None:
                joined = of_y[0] if len(of_y) == 1 else torch.cat([*of_y], 1)
                quantized = quantize_rows(joined, torch.float8_e5m2)
            weight = joint_weight(cast("list[Fp8Linear]", self.bases))
            return multiply_rows(*quantized, *weight.columns, dtype)
        weights = [base.weight.to(dtype) for base in self.bases]
        total = of_y[0] @ weights[0]
        for gradient, weight in zip(of_y[1:], weights[1:], strict=True):
            total.addmm_(gradient, weight)
        return total

    # -------------------------------------------------------------------------------------------- factors

    def _factors(self, dtype: torch.dtype) -> Factors:
        if self._twins is not None and self._twins[0].dtype == dtype:
            return self._twins
        a, b = self._parted()
        return torch.cat(a).to(dtype), [factor.to(dtype) for factor in b]

    def _parted(self) -> tuple[list[Tensor], list[Tensor]]:
        parameters = self.parameters()
        return parameters[: len(self.modules)], parameters[len(self.modules) :]

    def twins(self) -> list[Tensor]:
        """Return views, one for each of `parameters()`, of bfloat16 twins; none where factors need no cast.

        Sharded factors have none: FSDP casts them.
        """
        a, b = self._parted()
        needs = self.bases[0].weight.dtype == torch.bfloat16 and all(
            factor.dtype == torch.float32 and not isinstance(factor, DTensor) for factor in [*a, *b]
        )
        if not needs:
            self._twins = None
            return []
        if self._twins is None or self._twins[0].device != a[0].device:
            own = dict[str, torch.dtype | torch.device](dtype=torch.bfloat16, device=a[0].device)
            self._twins = (
                torch.empty(sum(self.ranks), a[0].shape[1], **own),  # pyright: ignore[reportArgumentType, reportCallIssue]
                [torch.empty(factor.shape, **own) for factor in b],  # pyright: ignore[reportArgumentType, reportCallIssue]
            )
        return [*self._twins[0].split(self.ranks), *self._twins[1]]


@torch.no_grad()
def refresh_twins(groups: Sequence[LoraGroup]) -> None:
    """Cast the factors of all `groups` to their twins.

    Nothing tells whether factors have changed: fused optimizers don't count their writes.
    """
    pairs = [(twins, group.parameters()) for group in groups if (twins := group.twins())]
    if pairs:
        torch._foreach_copy_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            [twin for twins, _ in pairs for twin in twins], [p for _, parameters in pairs for p in parameters]
        )
