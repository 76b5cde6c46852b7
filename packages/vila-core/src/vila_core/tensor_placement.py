"""Tensor parallelism: which GPUs share a model, and whether it fits."""

from collections.abc import Callable, Sequence
from itertools import permutations

import torch

from vila_core.checkpoint import Checkpoint
from vila_core.checkpoint.description import name_checkpoint
from vila_core.config import DecoderConfig
from vila_core.device_memory import free_bytes, name_size
from vila_core.errors import ConfigError
from vila_core.language.tensor_parallel import part_config, possible_counts
from vila_core.placement import DeviceMap, estimate_need, name_dtype

BY_LAYERS = "Split it by layers: device_map='auto'"


def plan_shares(
    checkpoint: Checkpoint,
    names: Sequence[str | torch.device],
    dtype: torch.dtype,
    choose: Callable[[str | torch.device], torch.device],
    free: Callable[[torch.device], int | None] = free_bytes,
) -> DeviceMap:
    """Return where a model goes whose decoder blocks all devices share.

    Args:
        checkpoint: the model.
        names: of the devices; none for as many of the machine's GPUs as can share it.
        dtype: of the weights.
        choose: returns the device of a name; raises `ConfigError` if it is not on this machine.
        free: returns the free bytes of a device.

    Raises:
        ConfigError: the devices cannot share the model, or it does not fit.
    """
    config = checkpoint.config.language_model
    model = name_checkpoint(checkpoint.path)
    if not isinstance(config, DecoderConfig):
        raise ConfigError(
            f"{model} runs its language model through transformers, which device_map='tensor' cannot divide. "
            "Use device=."
        )
    packed = {} if checkpoint.quantization is None else checkpoint.quantization.packed
    if checkpoint.quantization is not None and any(name.startswith("llm.model.layers.") for name in packed):
        raise ConfigError(
            f"{model} is quantized ({checkpoint.quantization.method}), and device_map='tensor' divides unquantized "
            f"weights only. {BY_LAYERS}."
        )
    devices = [choose(name) for name in names] or [choose(f"cuda:{number}") for number in _all_gpus(config)]
    part_config(config, len(devices))
    _require_alike(devices)
    _require_room(checkpoint, devices, dtype, free)
    # Blocks are loaded in turns, so that no device ever holds more than its share and a few of them.
    blocks = tuple(number % len(devices) for number in range(config.num_hidden_layers))
    return DeviceMap(tuple(devices), blocks, shares_blocks=len(devices) > 1)


def _all_gpus(config: DecoderConfig) -> range:
    """Return the numbers of the GPUs to use: as many as there are and can share the heads."""
    found = torch.cuda.device_count()
    counts = [count for count in possible_counts(config) if count <= found]
    if found >= 2 and not counts:
        part_config(config, found)  # says what can
    if not counts:
        raise ConfigError(
            f"device_map='tensor' needs at least two GPUs; this machine has {found}. Use device= for one device."
        )
    return range(counts[-1])


def _require_alike(devices: Sequence[torch.device]) -> None:
    """Raise `ConfigError` unless the devices are different GPUs of one kind that reach each other's memory."""
    gpus = [device for device in devices if device.type == "cuda"]
    if not gpus:
        return
    if len(gpus) < len(devices) or len(set(gpus)) < len(gpus):
        raise ConfigError(
            f"device_map='tensor' names {', '.join(map(str, devices))}; expected different GPUs. "
            "They compute at the same time."
        )
    kinds = {device: torch.cuda.get_device_name(device) for device in gpus}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{device} {kind}" for device, kind in kinds.items())
        raise ConfigError(f"device_map='tensor' needs GPUs of one kind, and these differ ({listed}). {BY_LAYERS}.")
    for one, other in permutations(gpus, 2):
        if not torch.cuda.can_device_access_peer(one, other):
            raise ConfigError(
                f"device_map='tensor' needs GPUs that reach each other's memory, and {one} cannot reach that of "
                f"{other} (see `nvidia-smi topo -p2p w`). {BY_LAYERS}."
            )


def _require_room(
    checkpoint: Checkpoint,
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    free: Callable[[torch.device], int | None],
) -> None:
    """Raise `ConfigError` if a device has less memory than its share, or the first less than that and the rest."""
    need = estimate_need(checkpoint, dtype)
    sizes: dict[torch.device, int] = {}
    for rank, device in enumerate(devices):
        sizes[device] = sizes.get(device, 0) + sum(need.blocks) // len(devices) + (0 if rank else need.rest)
    for device, size in sizes.items():
        found = free(device)
        if found is not None and size > found:
            raise ConfigError(
                f"{name_checkpoint(checkpoint.path)} needs {name_size(size)} on {device} in {name_dtype(dtype)}, one "
                f"of {len(devices)} that share it, with a cache of {need.cached_tokens:,} tokens, but "
                f"{name_size(found)} are free. Free memory, choose a smaller dtype (--dtype), or name more devices."
            )
