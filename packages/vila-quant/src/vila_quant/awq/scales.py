"""The search for scales, group by group, each on the unscaled block (AWQ, section 3.2; `auto_scale.py` of llm-awq).

N outputs, K inputs, T tokens
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.language.decoder import Block
from vila_quant.awq.block import BlockInputs, ScaleGroup, linear, run_part

FakeQuantize = Callable[[Tensor], Tensor]
"""A function from a weight `[N, K]` to its dequantized form."""


@dataclass(frozen=True)
class Candidate:
    """Scales `[K]` to try, and the powers of activations (`ratio`) and weights (0 for none) they were made with."""

    scales: Tensor
    ratio: float
    weight_ratio: float = 0.0


@dataclass(frozen=True)
class ScaleChoice:
    """The best scales `[K]` fp32 of a group, and the loss of every candidate, in order."""

    group: ScaleGroup
    scales: Tensor
    best: int
    losses: tuple[float, ...]


def activation_scale(x: Tensor) -> Tensor:
    """Mean magnitude of each channel: `[…, K]` -> `[K]`."""
    return x.abs().reshape(-1, x.shape[-1]).mean(0)


def reference_candidates(x_scale: Tensor) -> list[Candidate]:
    """Return `x^r` for r = 0, 1/20, … 19/20, each divided by the geometric mean of its extremes. The first is 1."""
    return [Candidate(balanced(x_scale.pow(step / 20).clamp(min=1e-4)), step / 20) for step in range(20)]


def best_candidates(x_scale: Tensor, weight: Tensor, group_size: int) -> list[Candidate]:
    """Return all ones, then `x^r` and `x^r / w^(1 - r)` for r = 1/20, … 1, as llm-compressor does.

    Args:
        x_scale: the weight of each channel `[K]`: its mean magnitude, or the square root of the cost of an error.
        weight: weights of all linears `[N, K]`; w is the mean magnitude, relative to the largest of each group.
        group_size: weights per group.
    """
    magnitude = weight.abs().unflatten(1, (-1, group_size))
    w_scale = (magnitude / (magnitude.amax(-1, keepdim=True) + 1e-6)).flatten(1).mean(0)
    candidates = [Candidate(torch.ones_like(x_scale), 0.0)]
    for step in range(1, 21):
        ratio = step / 20
        powered = x_scale.pow(ratio)
        candidates.append(Candidate(balanced(powered.clamp(min=1e-4)), ratio))
        if ratio < 1:
            duo = powered / (w_scale.pow(1 - ratio) + 1e-4)
            candidates.append(Candidate(balanced(duo.clamp(min=1e-4)), ratio, 1 - ratio))
    return candidates


def balanced(scales: Tensor) -> Tensor:
    """Divide by the geometric mean of the largest and smallest scale, so that weights keep their magnitude."""
    return scales / (scales.max() * scales.min()).sqrt()


@torch.no_grad()
def search_scales(
    block: Block,
    group: ScaleGroup,
    x: Tensor,
    block_inputs: BlockInputs,
    candidates: Iterable[Candidate],
    fake_quantize: FakeQuantize,
    sequences_at_once: int | None = None,
) -> ScaleChoice:
    """Return the best candidate, by the output error of the inspected module with `Q(W · s) / s` in place of `W`.

    Args:
        block: unchanged on return.
        group: the linears to scale.
        x: input of the group's linears `[B, T, K]`.
        block_inputs: rotation and mask.
        candidates: scales to try; the first of equally good ones wins.
        fake_quantize: quantizes as the weights will be.
        sequences_at_once: sequences per forward pass; None for all.
    """
    chunk = sequences_at_once or len(x)
    linears = [linear(block, name) for name in group.linears]
    originals = [module.weight.detach().clone() for module in linears]
    expected = _run_chunked(block, group.inspected, x, block_inputs, chunk)
    losses: list[float] = []
    best: Candidate | None = None
    for candidate in candidates:
        for module, original in zip(linears, originals, strict=True):
            scales = candidate.scales.to(original.dtype)
            module.weight.copy_(fake_quantize(original * scales) / scales)
        losses.append(_chunked_error(block, group.inspected, x, block_inputs, expected))
        if best is None or losses[-1] < min(losses[:-1]):
            best = candidate
    for module, original in zip(linears, originals, strict=True):
        module.weight.copy_(original)
    assert best is not None, "no candidate"
    return ScaleChoice(group, best.scales.float(), losses.index(min(losses)), tuple(losses))


def _run_chunked(block: Block, part: str, x: Tensor, block_inputs: BlockInputs, chunk: int) -> list[Tensor]:
    device = next(block.parameters()).device
    starts = range(0, len(x), chunk)
    return [
        run_part(block, part, x[at : at + chunk].to(device), block_inputs.of(slice(at, at + chunk))) for at in starts
    ]


def _chunked_error(block: Block, part: str, x: Tensor, block_inputs: BlockInputs, expected: Sequence[Tensor]) -> float:
    """Return the mean squared error of the part's output over all of `x`; `expected` is in chunks."""
    device, at, total = next(block.parameters()).device, 0, 0.0
    for wanted in expected:
        rows = slice(at, at + len(wanted))
        total += mean_squared_error(run_part(block, part, x[rows].to(device), block_inputs.of(rows)), wanted) * len(
            wanted
        )
        at = rows.stop
    return total / len(x)


def mean_squared_error(actual: Tensor, expected: Tensor) -> float:
    """Mean of the squared differences, in fp32."""
    return float((actual - expected).float().pow(2).mean())


@torch.no_grad()
def apply_scales(block: Block, choices: Sequence[ScaleChoice]) -> None:
    """Multiply each group's linears by its scales, and divide the previous module by them. Outputs do not change."""
    for choice in choices:
        previous = block.get_submodule(choice.group.previous)
        weight = previous.weight
        assert isinstance(weight, Tensor)
        scales = choice.scales.to(weight.device, weight.dtype)
        # A norm has one weight per channel; the channels of a linear are its rows.
        weight.div_(scales if weight.ndim == 1 else scales[-weight.shape[0] :, None])
        bias = dict(previous.named_parameters(recurse=False)).get("bias")
        if bias is not None:
            bias.div_(scales)
        for name in choice.group.linears:
            linear(block, name).weight.mul_(scales)
