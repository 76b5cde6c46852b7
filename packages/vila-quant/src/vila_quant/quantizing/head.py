"""Quantize the output head: to int8 by rows, or to group-wise int4 with compensated rounding.

V vocabulary rows, D width, B sequences, T tokens
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.language.decoder import RMSNorm
from vila_quant.awq.moments import add_products
from vila_quant.awq.ranges import search_ranges
from vila_quant.awq.rounding import feedback, round_compensated
from vila_quant.kernels.int8 import quantize_rows
from vila_quant.packing.groupwise import GroupwiseWeight
from vila_quant.quantizing.blocks import gemm_tensors
from vila_quant.quantizing.plan import HEAD

ROWS_AT_ONCE = 16384


MEASURED_TOKENS = 512
"""Tokens on which the error of the scores is measured."""


@dataclass(frozen=True)
class HeadInputs:
    """The last block's outputs `hidden [B, T, D]`, and the weight `[D]` and `eps` of the final norm."""

    hidden: Tensor
    norm: Tensor
    eps: float

    def normalized(self, device: torch.device) -> Iterator[Tensor]:
        """Yield the head's inputs of each sequence, `[T, D]`."""
        final_norm = RMSNorm(len(self.norm), self.eps).to(device, self.hidden.dtype)
        final_norm.weight.copy_(self.norm)
        return (final_norm(sequence.to(device)) for sequence in self.hidden)

    def sample(self, device: torch.device) -> Tensor:
        """Return the first inputs in fp32, `[T, D]` with T at most `MEASURED_TOKENS`."""
        return next(iter(self.normalized(device)))[:MEASURED_TOKENS].float()


@dataclass(frozen=True)
class QuantizedHead:
    """Stored tensors by name, and the relative root mean square error of the scores."""

    tensors: dict[str, Tensor]
    error: float


@torch.no_grad()
def quantize_head_int8(weight: Tensor, inputs: HeadInputs) -> QuantizedHead:
    """`weight [V, D]` -> `llm.lm_head.weight` int8 and `llm.lm_head.weight_scale` fp32 `[V, 1]`, symmetric by rows."""
    sample, errors = inputs.sample(weight.device), ScoreErrors()
    codes: list[Tensor] = []
    scales: list[Tensor] = []
    for rows in weight.split(ROWS_AT_ONCE):
        q, scale = quantize_rows(rows.float())
        errors.add(sample, rows.float(), q.float() * scale)
        codes.append(q)
        scales.append(scale)
    tensors = {f"{HEAD}.weight": torch.cat(codes).cpu(), f"{HEAD}.weight_scale": torch.cat(scales).float().cpu()}
    return QuantizedHead(tensors, errors.relative)


@torch.no_grad()
def quantize_head_int4(weight: Tensor, inputs: HeadInputs, bits: int, group_size: int) -> QuantizedHead:
    """Quantize `weight [V, D]` by groups, compensating the rounding for the head's inputs."""
    device, sample, errors = weight.device, inputs.sample(weight.device), ScoreErrors()
    moments = torch.zeros(len(inputs.norm), len(inputs.norm), device=device)
    for sequence in inputs.normalized(device):
        add_products(moments, sequence)
    factor = feedback(moments.div_(inputs.hidden.shape[0] * inputs.hidden.shape[1]), HEAD)
    parts: list[GroupwiseWeight] = []
    for rows in weight.split(ROWS_AT_ONCE):
        unquantized = rows.float()
        grid = search_ranges(unquantized, factor.costs, group_size, bits)
        part = round_compensated(unquantized, factor, *grid, bits)
        errors.add(sample, unquantized, part.dequantize())
        parts.append(part)
    q, scales, zeros = (
        torch.cat(tensors) for tensors in zip(*((part.q, part.scales, part.zeros) for part in parts), strict=True)
    )
    return QuantizedHead(gemm_tensors(HEAD, GroupwiseWeight(q, scales, zeros, bits)), errors.relative)


class ScoreErrors:
    """Sums the squares of the scores and of their errors over rows of the vocabulary."""

    def __init__(self) -> None:
        self._errors = self._scores = 0.0

    def add(self, x: Tensor, weight: Tensor, quantized: Tensor) -> None:
        """Add the scores of `x [T, D]` for some rows `[n, D]`."""
        self._errors += (x @ (quantized - weight).T).square().sum().item()
        self._scores += (x @ weight.T).square().sum().item()

    @property
    def relative(self) -> float:
        """The relative root mean square error."""
        return (self._errors / max(self._scores, 1e-30)) ** 0.5
