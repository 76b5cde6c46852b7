"""The parts of a decoder block that AWQ works on: groups of linears that share a scale, and their inputs.

B sequences, T tokens, D width
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vila_core.language.attention import AttentionInputs, sdpa
from vila_core.language.decoder import Block


@dataclass(frozen=True)
class ScaleGroup:
    """Linears that read one activation x. Scaling is exact before rounding: `W x = (W · s)(x / s)`.

    Attributes:
        previous: the module whose output is x, and whose weight absorbs 1 / s.
        linears: the linears that read x.
        inspected: the module whose output error is the loss of a scale.
    """

    previous: str
    linears: tuple[str, ...]
    inspected: str


LINEARS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
"""The linears of a block, in order of computation."""


def scale_groups(block: Block) -> tuple[ScaleGroup, ...]:
    """Return the groups of a block. With grouped queries, v → o is left out: one value channel feeds several heads."""
    attention = block.self_attn
    value_to_output = ScaleGroup("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj")
    return (
        ScaleGroup("input_layernorm", LINEARS[:3], "self_attn"),
        *((value_to_output,) if attention.v_proj.weight.shape == attention.o_proj.weight.shape else ()),
        ScaleGroup("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp"),
        ScaleGroup("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj"),
    )


@dataclass(frozen=True)
class BlockInputs:
    """A block's inputs besides hidden states: rotation (two `[1 or B, 1, T, D_h]`) and mask `[1 or B, 1, T, T]`."""

    rotation: tuple[Tensor, Tensor]
    mask: Tensor | None = None

    def of(self, rows: slice) -> "BlockInputs":
        """Return the inputs for the sequences `rows`."""
        cos, sin = self.rotation
        return BlockInputs((_rows(cos, rows), _rows(sin, rows)), None if self.mask is None else _rows(self.mask, rows))


def _rows(tensor: Tensor, rows: slice) -> Tensor:
    return tensor if len(tensor) == 1 else tensor[rows]


def run_block(block: Block, x: Tensor, block_inputs: BlockInputs) -> Tensor:
    """Run a block: `[B, T, D]` -> `[B, T, D]`."""
    return block(x, block_inputs.rotation, AttentionInputs(block_inputs.mask))


def run_part(block: Block, name: str, x: Tensor, block_inputs: BlockInputs) -> Tensor:
    """Run one part of a block by name: its attention, its MLP, or a linear."""
    if name == "self_attn":
        return block.self_attn(x, block_inputs.rotation, AttentionInputs(block_inputs.mask), sdpa)
    return block.get_submodule(name)(x)


@torch.no_grad()
def record_inputs(block: Block, x: Tensor, block_inputs: BlockInputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the block; return its output, and the input `[B, T, K]` of each of `LINEARS` (shared if it is the same)."""
    inputs: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs[name] = arguments[0].detach()

        return record

    handles = [linear(block, name).register_forward_pre_hook(recorder(name)) for name in LINEARS]
    try:
        return run_block(block, x, block_inputs), inputs
    finally:
        for handle in handles:
            handle.remove()


def linear(block: Block, name: str) -> nn.Linear:
    """Return a linear of the block by name."""
    module = block.get_submodule(name)
    assert isinstance(module, nn.Linear), f"{name} is {type(module).__name__}"
    return module
