"""Second moments of the inputs of a block's linears, computed in one pass.

B sequences, T tokens, D width, K inputs of a linear
"""

import torch
from torch import Tensor

from vila_core.language.decoder import Block
from vila_quant.awq.block import BlockInputs, linear, record_inputs
from vila_quant.errors import QuantizationError

READERS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linears of a block that read the same activation, in order of computation."""


@torch.no_grad()
def measure_inputs(block: Block, x: Tensor, block_inputs: BlockInputs, sequences_at_once: int) -> dict[str, Tensor]:
    """Return H = mean_t x_t x_tᵀ `[K, K]` fp32 over `x [B, T, D]` for the first linear of each of `READERS`.

    Raises:
        QuantizationError: an activation is not finite (the linear is named).
    """
    device = block.self_attn.q_proj.weight.device
    names = [readers[0] for readers in READERS]
    widths = {name: linear(block, name).in_features for name in names}
    second = {name: torch.zeros(width, width, device=device) for name, width in widths.items()}
    for start in range(0, len(x), sequences_at_once):
        rows = slice(start, start + sequences_at_once)
        _, inputs = record_inputs(block, x[rows].to(device), block_inputs.of(rows))
        for name in names:
            add_products(second[name], inputs.pop(name).flatten(0, 1))
        inputs.clear()
    tokens = x.shape[0] * x.shape[1]
    for name in names:
        if not bool(torch.isfinite(second[name].diagonal()).all()):
            raise QuantizationError(
                f"{name}: its inputs are not finite. Check the checkpoint and its dtype: fp16 overflows where bf16 "
                "does not."
            )
    return {name: total.div_(tokens) for name, total in second.items()}


def add_products(total: Tensor, tokens: Tensor) -> None:
    """Add `tokensᵀ tokens` to `total [K, K]` fp32, in fp32; products of 16-bit numbers are exact."""
    if tokens.is_cuda and tokens.dtype != torch.float32:
        total += torch.mm(tokens.T, tokens, out_dtype=torch.float32)
    else:
        tokens = tokens.float()
        total.addmm_(tokens.T, tokens)
