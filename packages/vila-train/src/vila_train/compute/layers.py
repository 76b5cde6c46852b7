"""The layers of a network: what is recomputed, compiled and sharded one by one."""

from collections.abc import Iterator

from torch import nn

from vila_core.model import VilaModel


def repeated_layers(root: nn.Module) -> list[nn.Module]:
    """Return the equal layers that a model is a stack of, such as the blocks of its tower and language model, in order.

    They are the members of each list of modules of one class, if these have parts of their own.
    """
    return [*_find(root)]


def separate_layers(root: nn.Module) -> list[nn.Module]:
    """Return the `repeated_layers` that are sharded and recomputed one by one.

    All but those of generation heads: their loss is computed in chunks, forward and backward, so that nothing is kept.
    """
    heads = [model.generation for model in root.modules() if isinstance(model, VilaModel)]
    of_heads = {id(layer) for head in heads if isinstance(head, nn.Module) for layer in repeated_layers(head)}
    return [layer for layer in repeated_layers(root) if id(layer) not in of_heads]


def _find(module: nn.Module) -> Iterator[nn.Module]:
    members = [*module.children()]
    if isinstance(module, nn.ModuleList | nn.Sequential) and _is_stack(members):
        yield from members
        return
    for member in members:
        yield from _find(member)


def _is_stack(members: list[nn.Module]) -> bool:
    kinds = {type(member) for member in members}
    return len(kinds) == 1 and all(any(True for _ in member.children()) for member in members)
