"""The methods `reference` (AWQ as in llm-awq d6e797a) and `nearest` (no search).

B sequences, T tokens, D width. Source: `auto_scale.py`, `auto_clip.py` and `pre_quant.py` of llm-awq.
"""

from functools import partial

import torch
from torch import Tensor

from vila_core.language.decoder import Block
from vila_quant.awq.block import LINEARS, BlockInputs, linear, record_inputs, scale_groups
from vila_quant.awq.clips import apply_clips, sample_tokens, search_clips
from vila_quant.awq.method import BlockOptions, QuantizedBlock
from vila_quant.awq.scales import ScaleChoice, activation_scale, apply_scales, reference_candidates, search_scales
from vila_quant.errors import QuantizationError
from vila_quant.packing.groupwise import GroupwiseWeight, check_group_size, fake_quantize, quantize

UNCLIPPED = ("self_attn.q_proj", "self_attn.k_proj")
"""Their outputs are multiplied with each other, where clipping loses more than its own error suggests."""


@torch.no_grad()
def quantize_reference(block: Block, x: Tensor, block_inputs: BlockInputs, options: BlockOptions) -> QuantizedBlock:
    """Quantize a block: scales, clips, rounding to nearest; arguments and errors are those of `BlockQuantizer`."""
    quantized = _quantized_linears(block, options)
    fake = partial(fake_quantize, bits=options.bits, group_size=options.group_size)
    inputs = record_chunked(block, x, block_inputs, options.sequences_at_once)
    choices: list[ScaleChoice] = []
    for group in scale_groups(block):
        if group.previous in options.skip or any(name in options.skip for name in group.linears):
            continue
        x_group = inputs[group.linears[0]]
        candidates = reference_candidates(activation_scale(x_group))
        choices.append(search_scales(block, group, x_group, block_inputs, candidates, fake, options.sequences_at_once))
    apply_scales(block, choices)
    for choice in choices:
        for name in choice.group.linears:
            inputs[name] = inputs[name] / choice.scales.to(inputs[name].device, inputs[name].dtype)
    clips: dict[str, Tensor] = {}
    for name in quantized:
        if name not in UNCLIPPED:
            weight = linear(block, name).weight
            clips[name] = search_clips(weight, sample_tokens(inputs[name]).to(weight.device), options.group_size, fake)
            apply_clips(weight, clips[name])
    return QuantizedBlock(
        weights=round_to_nearest(block, quantized, options),
        scales={f"{choice.group.previous}|{','.join(choice.group.linears)}": choice.scales for choice in choices},
        clips=clips,
        losses={choice.group.linears[0]: (choice.losses[0], min(choice.losses)) for choice in choices},
    )


@torch.no_grad()
def quantize_nearest(block: Block, x: Tensor, block_inputs: BlockInputs, options: BlockOptions) -> QuantizedBlock:
    """Quantize a block by rounding to nearest; arguments and errors are those of `BlockQuantizer`."""
    return QuantizedBlock(round_to_nearest(block, _quantized_linears(block, options), options))


def round_to_nearest(block: Block, names: list[str], options: BlockOptions) -> dict[str, GroupwiseWeight]:
    """Quantize linears to nearest, and replace their weights in the block by the dequantized ones."""
    results: dict[str, GroupwiseWeight] = {}
    for name in names:
        weight = linear(block, name).weight
        # In fp32 even if the block has 16 bits: rounding a scale affects all 128 weights of its group.
        results[name] = quantize(weight.float(), options.bits, options.group_size)
        weight.copy_(results[name].dequantize())
    return results


def record_chunked(block: Block, x: Tensor, block_inputs: BlockInputs, sequences_at_once: int) -> dict[str, Tensor]:
    """Return the input of each of `LINEARS` `[B, T, K]`, on the device of `x`. Linears with the same input share it.

    Raises:
        QuantizationError: an activation is not finite (the linear is named).
    """
    device = linear(block, LINEARS[0]).weight.device
    pieces: dict[str, list[Tensor]] = {name: [] for name in LINEARS}
    for start in range(0, len(x), sequences_at_once):
        rows = slice(start, start + sequences_at_once)
        _, inputs = record_inputs(block, x[rows].to(device), block_inputs.of(rows))
        shared: dict[int, Tensor] = {}
        for name in LINEARS:
            pieces[name].append(shared.setdefault(id(inputs[name]), inputs[name].to(x.device)))
    joined: dict[tuple[int, ...], Tensor] = {}
    whole: dict[str, Tensor] = {}
    for name in LINEARS:
        key = tuple(map(id, pieces[name]))
        if key not in joined:
            joined[key] = torch.cat(pieces[name])
        whole[name] = joined[key]
        if not bool(torch.isfinite(whole[name]).all()):
            raise QuantizationError(
                f"{name}: its inputs are not finite. Check the checkpoint and its dtype: fp16 overflows where bf16 "
                "does not."
            )
    return whole


def _quantized_linears(block: Block, options: BlockOptions) -> list[str]:
    names = [name for name in LINEARS if name not in options.skip]
    for name in names:
        check_group_size(linear(block, name).in_features, options.group_size)
    return names
