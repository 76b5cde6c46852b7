"""Placement of a model: its memory is estimated before it loads, and its blocks may be split over devices."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, cast

import torch

from vila_core.checkpoint import Checkpoint, estimate
from vila_core.checkpoint.description import name_checkpoint
from vila_core.checkpoint.sizes import DTYPE_BYTES
from vila_core.config import DecoderConfig
from vila_core.device_memory import free_bytes, name_size
from vila_core.errors import ConfigError, shown
from vila_core.smaller_variants import say_what_fits

_BLOCK = re.compile(r"llm\.model\.layers\.(\d+)\.")
CACHED_TOKENS = 4096
"""Room to leave for the key/value cache, in tokens, where the context is longer."""


@dataclass(frozen=True)
class Need:
    """Bytes of a loaded model.

    Attributes:
        blocks: weights and cache of each decoder block; empty for a language model that cannot be split.
        rest: everything else: vision tower, projector, embedding, head.
        cached_tokens: length of the sequence in the cache.
    """

    blocks: tuple[int, ...]
    rest: int
    cached_tokens: int = 0

    @property
    def total(self) -> int:
        return sum(self.blocks) + self.rest


@dataclass(frozen=True)
class DeviceMap:
    """Devices in order, and for each decoder block the place of its device; the rest is on the first device.

    If `shares_blocks`, blocks are only loaded there: then each is divided among all devices.
    """

    devices: tuple[torch.device, ...]
    blocks: tuple[int, ...]
    shares_blocks: bool = False

    @property
    def counts(self) -> tuple[tuple[torch.device, int], ...]:
        """Each device with the number of its blocks."""
        return tuple((device, self.blocks.count(place)) for place, device in enumerate(self.devices))

    def device_of(self, name: str) -> torch.device:
        """Return the device of the parameter `name`, or of the parts of a module if it ends in a dot."""
        found = _BLOCK.match(name)
        return self.devices[0 if found is None else self.blocks[int(found[1])]]


def estimate_need(checkpoint: Checkpoint, dtype: torch.dtype) -> Need:
    """Return what `checkpoint` takes in `dtype`, with a cache of one sequence of at most `CACHED_TOKENS` tokens."""
    packed = {} if checkpoint.quantization is None else checkpoint.quantization.packed
    config = checkpoint.config.language_model
    cached_tokens = min(config.max_length, CACHED_TOKENS)
    cache = estimate(checkpoint).cache_bytes(name_dtype(dtype), cached_tokens) or 0
    count = config.num_hidden_layers if isinstance(config, DecoderConfig) else 0
    blocks, rest = [cache // count] * count if count else [], 0 if count else cache
    for name, entry in checkpoint.weights.entries.items():
        size = entry.nbytes if name in packed else entry.numel * DTYPE_BYTES[name_dtype(dtype)]
        found = _BLOCK.match(name)
        if found is not None and int(found[1]) < count:
            blocks[int(found[1])] += size
        else:
            rest += size
    return Need(tuple(blocks), rest, cached_tokens)


def require_memory(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
    """Raise `ConfigError` if the weights do not fit on `device`."""
    free, need = free_bytes(device), estimate(checkpoint).weight_bytes(name_dtype(dtype))
    if free is not None and need > free:
        split = ", or split over several GPUs with device_map='auto'" if torch.cuda.device_count() > 1 else ""
        raise ConfigError(
            f"{_does_not_fit(checkpoint, need, dtype)}, but {device} has {name_size(free)} free. "
            f"{say_what_fits(checkpoint, dtype, free)}{split}."
        )


def ran_out_of_memory(checkpoint: Checkpoint, dtype: torch.dtype) -> ConfigError:
    """Return the error for weights that do not fit although the memory seemed to suffice when loading began."""
    need = estimate(checkpoint).weight_bytes(name_dtype(dtype))
    return ConfigError(
        f"{_does_not_fit(checkpoint, need, dtype)}, and the memory ran out while it was loaded: another program may "
        f"use it, too. {say_what_fits(checkpoint, dtype, None)}."
    )


DeviceNames = Literal["auto"] | Sequence[str | torch.device]


@dataclass(frozen=True)
class DeviceChoice:
    """What a user has asked for: devices that hold some of the layers each, or (`shares_blocks`) a share of each."""

    names: DeviceNames
    shares_blocks: bool = False


def check_device_map(device_map: object) -> DeviceChoice:
    """Return what `device_map` asks for. Raises `ConfigError` if it is not a device map."""
    if device_map == "auto":
        return DeviceChoice("auto")
    if isinstance(device_map, str) and device_map.partition(":")[0] == "tensor":
        names = [name.strip() for name in device_map.removeprefix("tensor").removeprefix(":").split(",")]
        return DeviceChoice([name for name in names if name], shares_blocks=True)
    if isinstance(device_map, list | tuple):
        devices = cast("Sequence[object]", device_map)
        if devices and all(isinstance(device, str | torch.device) for device in devices):
            return DeviceChoice(cast("Sequence[str | torch.device]", devices))
    raise ConfigError(
        f"device_map is {shown(device_map)}; expected 'auto' or a list of devices such as ['cuda:0', 'cuda:1'] to "
        "split the model by layers, or 'tensor' or 'tensor:cuda:0,cuda:1' for tensor parallelism. "
        "For one device use device=."
    )


def plan_split(
    checkpoint: Checkpoint,
    device_map: DeviceNames,
    dtype: torch.dtype,
    choose: Callable[[str | torch.device], torch.device],
    free: Callable[[torch.device], int | None] = free_bytes,
) -> DeviceMap:
    """Return where the parts of a model go.

    Args:
        checkpoint: the model.
        device_map: "auto" uses as few GPUs as hold the model, in order of their numbers; a list of devices uses all of
            them.
        dtype: of the weights.
        choose: returns the device of a name; raises `ConfigError` if it is not on this machine.
        free: returns the free bytes of a device.

    Raises:
        ConfigError: the model does not fit, or its language model cannot be split.
    """
    need = estimate_need(checkpoint, dtype)
    if device_map == "auto":
        gpus = [choose(f"cuda:{number}") for number in range(torch.cuda.device_count())]
        devices = _fewest(checkpoint, need, dtype, gpus, free)
    else:
        devices = [choose(device) for device in device_map]
        _require_total(checkpoint, need, dtype, devices, free)
    if len(devices) > 1 and not need.blocks:
        raise ConfigError(
            f"{name_checkpoint(checkpoint.path)} runs its language model through transformers, which device_map cannot "
            "split. Use device=."
        )
    devices = devices[: max(len(need.blocks), 1)]
    return DeviceMap(tuple(devices), assign_blocks(need, [free(device) or 0 for device in devices]))


def assign_blocks(need: Need, free: Sequence[int]) -> tuple[int, ...]:
    """Return the place of the device of each block.

    Every device gets bytes in proportion to what it has free; the first also holds the rest of the model. The blocks
    of a device follow one another, and each device gets at least one while there are enough.
    """
    shares = [max(share, 1) for share in free]
    ends = [need.total * filled / sum(shares) for filled in accumulate(shares)]
    places: list[int] = []
    for number, (size, end) in enumerate(zip(need.blocks, accumulate(need.blocks, initial=0), strict=False)):
        middle = need.rest + end + size / 2
        wanted = next((place for place, limit in enumerate(ends) if middle <= limit), len(shares) - 1)
        at_least = max(places[-1] if places else 0, len(shares) - (len(need.blocks) - number))
        at_most = places[-1] + 1 if places else 0
        places.append(min(max(wanted, at_least), at_most))
    return tuple(places)


def _fewest(
    checkpoint: Checkpoint,
    need: Need,
    dtype: torch.dtype,
    gpus: Sequence[torch.device],
    free: Callable[[torch.device], int | None],
) -> list[torch.device]:
    if not gpus:
        return [torch.device("cpu")]
    for count in range(1, len(gpus) + 1):
        if sum(free(gpu) or 0 for gpu in gpus[:count]) >= need.total:
            return list(gpus[:count])
    _require_total(checkpoint, need, dtype, gpus, free)
    return list(gpus)


def _require_total(
    checkpoint: Checkpoint,
    need: Need,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    free: Callable[[torch.device], int | None],
) -> None:
    sizes = {device: size for device in devices if (size := free(device)) is not None}
    free_together, weights = sum(sizes.values()), estimate(checkpoint).weight_bytes(name_dtype(dtype))
    if len(sizes) == len(set(devices)) and need.total > free_together:
        found = ", ".join(f"{device} {name_size(size)}" for device, size in sizes.items())
        raise ConfigError(
            f"{_does_not_fit(checkpoint, need.total, dtype)} with a cache of {need.cached_tokens:,} tokens, but "
            f"{name_size(free_together)} are free ({found}). "
            f"{say_what_fits(checkpoint, dtype, free_together, beside=need.total - weights)}."
        )


def _does_not_fit(checkpoint: Checkpoint, need: int, dtype: torch.dtype) -> str:
    return f"{name_checkpoint(checkpoint.path)} needs {name_size(need)} in {name_dtype(dtype)}"


def name_dtype(dtype: torch.dtype) -> str:
    """Return the name without `torch.`."""
    return str(dtype).removeprefix("torch.")
