"""Weights sharded over all ranks (FSDP2): each layer is gathered while it computes."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from vila_train.compute.layers import repeated_layers
from vila_train.config import ComputeConfig

ACCUMULATE_BELOW = 0.15
"""Gradients of all rows of a step are added up before they are exchanged if they take at most this share of a GPU."""


def shard(root: nn.Module, mesh: DeviceMesh, compute: ComputeConfig, device: torch.device) -> None:
    """Shard the weights of `root` in place, layer by layer. Gradients are summed over ranks, not averaged.

    Weights are stored as they are (fp32, frozen ones perhaps bf16), and gathered in the precision of `compute`.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if compute.precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    data = mesh["dp"] if mesh.size() == mesh["dp"].size() else mesh._flatten("ranks")  # pyright: ignore[reportPrivateUsage]
    for layer in repeated_layers(root):
        fully_shard(layer, mesh=data, mp_policy=policy)
    fully_shard(root, mesh=data, mp_policy=policy)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            if device.type == "cpu":  # gloo cannot scale while it sums
                module.set_force_sum_reduction_for_comms(True)
            # A layer that never runs (the last ones of a vision tower) must have been gathered once: FSDP looks at
            # its gathered weights when it adds up gradients without exchanging them.
            module.unshard()
            module.reshard()


def exchange_gradients(root: nn.Module, now: bool) -> None:
    """Say whether the next backward pass ends with the exchange of all gradients since the last exchange."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(now)


def accumulates_locally(root: nn.Module, device: torch.device) -> bool:
    """Return whether complete gradients of all trained weights fit on each rank while rows add to them.

    If not, gradients are exchanged after every row, which keeps only each rank's share of them.
    """
    if device.type != "cuda":
        return True
    trained = sum(parameter.numel() for parameter in root.parameters() if parameter.requires_grad)
    return 4 * trained <= ACCUMULATE_BELOW * torch.cuda.get_device_properties(device).total_memory
