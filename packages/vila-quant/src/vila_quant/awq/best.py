"""The method `best`: scales and ranges chosen by the cost of errors after compensation, then compensated rounding.

N outputs, K inputs, B sequences, T tokens, D width

The second moments H of the linears' inputs are measured once per activation of the block. Their factor (see
`rounding.py`) gives the cost D_k of an error in column k. The loss of a candidate scale s is Σ D_k (Q(W s)/s - W)_k²,
which needs no forward pass; neither do the ranges.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from vila_core.language.decoder import Block
from vila_quant.awq.block import LINEARS, BlockInputs, ScaleGroup, linear, scale_groups
from vila_quant.awq.method import BlockOptions, QuantizedBlock
from vila_quant.awq.moments import READERS, measure_inputs
from vila_quant.awq.ranges import row_chunks, search_ranges
from vila_quant.awq.rounding import feedback, round_compensated
from vila_quant.awq.scales import Candidate, FakeQuantize, ScaleChoice, best_candidates
from vila_quant.packing.groupwise import GroupwiseWeight, check_group_size, fake_quantize


@torch.no_grad()
def quantize_best(block: Block, x: Tensor, block_inputs: BlockInputs, options: BlockOptions) -> QuantizedBlock:
    """Quantize a block; arguments and errors are those of `BlockQuantizer.quantize_block`."""
    quantized = [name for name in LINEARS if name not in options.skip]
    for name in quantized:
        check_group_size(linear(block, name).in_features, options.group_size)
    moments = measure_inputs(block, x, block_inputs, options.sequences_at_once)
    factors = {name: feedback(moments.pop(name), name) for name in list(moments)}

    weights = {name: linear(block, name).weight.float().clone() for name in LINEARS}
    fake = partial(fake_quantize, bits=options.bits, group_size=options.group_size)
    choices: list[ScaleChoice] = []
    for group in scale_groups(block):
        names = [name for name in group.linears if name in quantized]
        # Dividing a linear that is not quantized by scales would round it.
        if not names or group.previous in options.skip:
            continue
        costs = factors[group.linears[0]].costs
        stacked = torch.cat([weights[name] for name in names])
        candidates = best_candidates(costs.sqrt(), stacked, options.group_size)
        choices.append(search_costed_scales(group, stacked, costs, candidates, fake))
    for choice in choices:
        scales = fold_scales(block, choice, weights, options.stored_dtype)
        factors[choice.group.linears[0]] = factors[choice.group.linears[0]].scaled(scales)

    results: dict[str, GroupwiseWeight] = {}
    for readers in READERS:
        names = [name for name in readers if name in quantized]
        if not names:
            continue
        # Linears that share a factor are rounded together.
        stacked = torch.cat([weights[name] for name in names])
        factor = factors.pop(readers[0])
        grid = search_ranges(stacked, factor.costs, options.group_size, options.bits)
        together = round_compensated(stacked, factor, *grid, options.bits)
        results |= zip(names, split_rows(together, [len(weights[name]) for name in names]), strict=True)
    for name in LINEARS:
        linear(block, name).weight.copy_(results[name].dequantize() if name in results else weights[name])
    return QuantizedBlock(
        weights=results,
        scales={f"{choice.group.previous}|{','.join(choice.group.linears)}": choice.scales for choice in choices},
        losses={choice.group.linears[0]: (choice.losses[0], min(choice.losses)) for choice in choices},
    )


def search_costed_scales(
    group: ScaleGroup, weight: Tensor, costs: Tensor, candidates: Sequence[Candidate], fake_quantize: FakeQuantize
) -> ScaleChoice:
    """Return the candidate with the least loss Σ D (Q(W · s) / s - W)², for `weight [N, K]` and `costs` D `[K]`."""
    losses: list[float] = []
    for candidate in candidates:
        lost = torch.zeros((), device=costs.device)
        for rows in row_chunks(weight):
            change = fake_quantize(rows * candidate.scales).div_(candidate.scales).sub_(rows)
            lost += change.square_().sum(0).dot(costs)
        losses.append(float(lost))
    best = losses.index(min(losses))
    return ScaleChoice(group, candidates[best].scales.float(), best, tuple(losses))


def fold_scales(
    block: Block, choice: ScaleChoice, weights: dict[str, Tensor], stored_dtype: torch.dtype | None = None
) -> Tensor:
    """Multiply the group's fp32 `weights` by the scales, divide the previous module; return the applied scales `[K]`.

    A norm's weight may be stored in 16 bits. The linears then use the scale implied by its rounded quotient, so nothing
    is lost.
    """
    scales = choice.scales
    previous = block.get_submodule(choice.group.previous)
    if choice.group.previous in weights:
        weights[choice.group.previous].div_(scales[:, None])
    else:
        weight = previous.weight
        assert isinstance(weight, Tensor)
        whole = weight.float().clone()
        weight.copy_((whole / scales).to(stored_dtype or weight.dtype))
        applied = whole / weight.float()
        scales = torch.where(torch.isfinite(applied) & (applied > 0), applied, scales)
    bias = dict(previous.named_parameters(recurse=False)).get("bias")
    if bias is not None:
        bias.div_(scales)
    for name in choice.group.linears:
        weights[name].mul_(scales)
    return scales


def split_rows(weight: GroupwiseWeight, rows: Sequence[int]) -> list[GroupwiseWeight]:
    """Split a quantized weight into parts with the given numbers of rows."""
    parts = zip(
        weight.q.split(list(rows)), weight.scales.split(list(rows)), weight.zeros.split(list(rows)), strict=True
    )
    return [GroupwiseWeight(q, scales, zeros, weight.bits) for q, scales, zeros in parts]
