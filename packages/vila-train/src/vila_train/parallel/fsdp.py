"""Weights sharded over all ranks (FSDP2): each layer is gathered while it computes."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vila_train.compute.layers import separate_layers
from vila_train.config import ComputeConfig

FEW = 0.25
"""One GPU does without shards if at most this share of the weights is trained."""
ACCUMULATE_BELOW = 0.15
"""Gradients of all rows of a step are added up before they are exchanged if they take at most this share of a GPU."""


def needs_shards(network: nn.Module, compute: ComputeConfig, world_size: int) -> bool:
    """Return whether weights are sharded, with what is trainable of `network` at this time.

    On one GPU, sharding is what keeps fp32 weights beside bf16 ones. If few are trained, casting them where they are
    used does it without copying each layer.
    """
    if world_size > 1 or compute.sharded is not None:
        return world_size > 1 or bool(compute.sharded)
    if compute.precision != "bf16":
        return False
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return sum(size for size, trained in sizes if trained) > FEW * sum(size for size, _ in sizes)


def shard(
    root: nn.Module, mesh: DeviceMesh, compute: ComputeConfig, device: torch.device, *, from_first: bool = False
) -> None:
    """Shard the weights of `root` in place, layer by layer. Gradients are summed over ranks, not averaged.

    Weights are stored as they are (fp32, frozen ones perhaps bf16), and gathered in the precision of `compute`. Those
    in 4 bits (QLoRA) stay whole on each rank: bitsandbytes keeps the scales of their blocks outside of the tensor.

    Args:
        root: the same on all ranks.
        mesh: of all ranks.
        compute: precision, and whether weights stay gathered.
        device: of this rank.
        from_first: only rank 0 has the weights, and `root` is on the meta device elsewhere.
    """
    whole = {name: parameter.detach() for name, parameter in root.named_parameters()} if from_first else {}
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if compute.precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    data = mesh["dp"] if mesh.size() == mesh["dp"].size() else mesh._flatten("ranks")  # pyright: ignore[reportPrivateUsage]
    packed = _move_packed_weights(root, device)
    for layer in separate_layers(root):
        keep = compute.keep_gathered
        fully_shard(layer, mesh=data, mp_policy=policy, reshard_after_forward=not keep, ignored_params=packed)
    fully_shard(root, mesh=data, mp_policy=policy, ignored_params=packed)
    if from_first:
        _scatter(root, whole, device)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            if device.type == "cpu":  # gloo cannot scale while it sums
                module.set_force_sum_reduction_for_comms(True)
            # A layer that never runs (the last ones of a vision tower) must have been gathered once: FSDP looks at
            # its gathered weights when it adds up gradients without exchanging them.
            module.unshard()
            module.reshard()


def _move_packed_weights(root: nn.Module, device: torch.device) -> set[nn.Parameter]:
    """Move the linears whose weights are in 4 bits to `device`, and return these weights."""
    packed: set[nn.Parameter] = set()
    for module in root.modules():
        if any(not one.is_floating_point() for one in module.parameters(recurse=False)):
            module.to(device)
            packed |= {one for one in module.parameters(recurse=False) if not one.is_floating_point()}
    return packed


def _scatter(root: nn.Module, whole: Mapping[str, Tensor], device: torch.device) -> None:
    """Give each rank its shards of the weights that rank 0 has `whole`, one weight at a time."""
    if any(parameter.is_meta for parameter in root.parameters()):
        root.to_empty(device=device)
    for name, parameter in root.named_parameters():
        assert isinstance(parameter, DTensor), "all weights are sharded"
        weight = whole[name]
        sent = torch.empty_like(weight, device=device) if weight.is_meta else weight.to(device)
        shards = distribute_tensor(sent, parameter.device_mesh, parameter.placements)
        cast("DTensor", parameter.detach()).to_local().copy_(shards.to_local())
    for buffer in root.buffers():
        dist.broadcast(buffer, src=0)


def next_row(root: nn.Module, *, is_last: bool, exchange: bool, keep_gathered: bool = False) -> None:
    """Say what the next backward pass is in its step. Does nothing if `root` is not sharded.

    Args:
        root: that `shard` got.
        is_last: of the step.
        exchange: it ends with the exchange of all gradients since the last exchange.
        keep_gathered: weights stay gathered until the last row.
    """
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(exchange)
        root.set_is_last_backward(is_last)
        if keep_gathered:
            root.set_reshard_after_backward(is_last)


def accumulates_locally(trained: Sequence[Tensor], device: torch.device) -> bool:
    """Return whether complete gradients of all `trained` weights fit on each rank while rows add to them.

    If not, gradients are exchanged after every row, which keeps only each rank's share of them.
    """
    if device.type != "cuda":
        return True
    total = sum(weight.numel() for weight in trained)
    return 4 * total <= ACCUMULATE_BELOW * torch.cuda.get_device_properties(device).total_memory
