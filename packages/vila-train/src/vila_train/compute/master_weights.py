"""Trained weights in fp32 that are computed with in bfloat16, without sharding: what FSDP does, on one GPU.

A weight is cast where it is used, each time anew, so that recomputed layers see it too. Gradients arrive in fp32.
"""

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.utils import parametrize


class _Rounded(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.to(torch.bfloat16)


def compute_in_bf16(network: nn.Module) -> None:
    """Compute with the trained fp32 weights of `network` in bfloat16, in place.

    Call it after layers are prepared. The parameters themselves stay; `checkpoints.parameter_name` undoes their names.
    """
    done = {id(weight) for module in network.modules() for weight in _cast_where_used(module)}
    for module in [*network.modules()]:
        for name, weight in [*module.named_parameters(recurse=False)]:
            if weight.requires_grad and weight.dtype == torch.float32 and id(weight) not in done:
                parametrize.register_parametrization(module, name, _Rounded(), unsafe=True)


def _cast_where_used(module: nn.Module) -> list[nn.Parameter]:
    """Return the adapter's weights in a linear of `compute.lora`, which casts them itself."""
    if type(module) is not LoraLinear or module.lora_variant:
        return []
    return [weight for name, weight in module.named_parameters() if ".lora_" in f".{name}"]
