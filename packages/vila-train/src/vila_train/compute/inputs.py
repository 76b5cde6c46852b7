"""Linears with plain LoRA on frozen weights, grouped by what they read: q, k and v; gate and up; others alone."""

from collections.abc import Iterator, Sequence
from typing import cast

from peft.tuners.lora import Linear
from torch import nn

from vila_core.language.decoder import MLP, Attention


def linears_of_one_input(network: nn.Module) -> Iterator[list[Linear]]:
    """Yield all linears of `network` that `compute.lora` computes, in groups that read the same tensor."""
    grouped: set[int] = set()
    for module in network.modules():
        if isinstance(module, Attention):
            together = [module.q_proj, module.k_proj, module.v_proj]
        elif isinstance(module, MLP):
            together = [module.gate_proj, module.up_proj]
        else:
            together = [module]
        if not grouped & {id(member) for member in together} and is_frozen_under_lora(together):
            grouped |= {id(member) for member in together}
            yield cast("list[Linear]", together)


def is_plain_lora(module: nn.Module) -> bool:
    """Return whether `module` is a linear with one adapter, and not with DoRA."""
    return type(module) is Linear and not module.lora_variant and len(module.lora_A) == 1


def is_frozen_under_lora(modules: Sequence[nn.Module]) -> bool:
    """Return whether all `modules` have plain LoRA on frozen linears of one kind, whose weights are not in 4 bits."""
    if not all(is_plain_lora(module) for module in modules):
        return False
    bases = [cast("Linear", module).base_layer for module in modules]
    is_frozen = not any(parameter.requires_grad for base in bases for parameter in base.parameters())
    first = bases[0]
    is_matrix = isinstance(first, nn.Linear) and first.weight.is_floating_point()  # packed 4 bits are bytes
    return is_frozen and is_matrix and len({type(base) for base in bases}) == 1
