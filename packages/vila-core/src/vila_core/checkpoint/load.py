"""Load a checkpoint's weights into a network on the meta device, tensor by tensor and directly to the device.

V vocabulary rows of the network, V' rows in the checkpoint, D width.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import nn

from vila_core.checkpoint.checkpoint import Checkpoint
from vila_core.errors import CheckpointError, listed

if TYPE_CHECKING:
    from vila_core.checkpoint.tensors.lora import Adapter

_VOCABULARY_ROWS = ("embed_tokens.weight", "lm_head.weight")
_RECOMPUTED = ("rotary_emb.inv_freq", "position_ids")
"""Buffers saved by old libraries; modules compute them from the config."""


@runtime_checkable
class WeightAdapter(Protocol):
    """A module that converts weights as they load, such as position embeddings of another resolution."""

    def adapt_weight(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the converted `tensor`; `name` is the checkpoint's, without the module's prefix."""
        ...

    def ignores_weight(self, name: str) -> bool:
        """Return whether the module does not need the checkpoint's tensor `name`."""
        ...


@runtime_checkable
class BufferOwner(Protocol):
    """A module with buffers that are not in checkpoints, or that it stores in another form."""

    def reset_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        """Compute the buffers on `device`, for a model in `dtype`. Called after all weights are loaded."""
        ...


def load_weights(
    network: nn.Module,
    checkpoint: Checkpoint,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    vocab_size: int | None = None,
    place: Callable[[str], torch.device] | None = None,
    adapter: "Adapter | None" = None,
    on_read: Callable[[int], None] | None = None,
) -> None:
    """Load every weight of `network` from `checkpoint`; parameters on the meta device become real on `device`.

    Host memory never holds more than one tensor beyond the model (on a GPU: beyond two staging buffers).

    Args:
        network: its state-dict names are the canonical names.
        checkpoint: an opened checkpoint of the same model.
        device: where parameters go.
        place: returns the device of the parameter with this name, where that is another one.
        dtype: of all tensors that the network declares as float32; others (integers, scales of quantized weights) keep
            theirs.
        vocab_size: if the network's embedding has this many rows and the checkpoint's fewer, the missing rows become
            the mean of the others, as in the reference implementation for media tokens that a LLaMA checkpoint lacks.
            None: the numbers of rows must be equal.
        adapter: a LoRA adapter to merge into the weights as they load.
        on_read: called with the bytes of each tensor that was read.

    Raises:
        CheckpointError: weights are missing, unexpected or of the wrong shape (all listed in one error), or a file
            cannot be read.
    """
    device = torch.device(device)
    slots = dict(_slots(network))
    adapters = [
        (f"{name}." if name else "", module)
        for name, module in network.named_modules()
        if isinstance(module, WeightAdapter)
    ]
    wanted = _match(checkpoint, slots, adapters, vocab_size)
    with torch.no_grad():
        for name, stored in checkpoint.weights.shards(device):
            if on_read:
                on_read(stored.nbytes)
            if name not in wanted:
                continue
            tensor = adapter.apply(name, stored) if adapter else stored
            tensor = _adapt(adapters, name, tensor)
            slot = slots[name]
            tensor = _fill_rows(tensor, slot.tensor.shape[0]) if tensor.shape != slot.tensor.shape else tensor
            slot.set(tensor, place(name) if place else device, dtype)
            del stored, tensor
    _reset_buffers(network, place or (lambda name: device), dtype)


@dataclass(frozen=True)
class _Slot:
    """A parameter or persistent buffer of the network."""

    module: nn.Module
    attribute: str
    tensor: torch.Tensor

    def set(self, value: torch.Tensor, device: torch.device, dtype: torch.dtype) -> None:
        if not self.tensor.is_meta:
            self.tensor.copy_(value)
            return
        value = value.to(device, dtype if self.tensor.dtype == torch.float32 else self.tensor.dtype).contiguous()
        if isinstance(self.tensor, nn.Parameter):
            value = nn.Parameter(value, requires_grad=self.tensor.requires_grad)
            self.module.register_parameter(self.attribute, value)
        else:
            self.module.register_buffer(self.attribute, value)


def _slots(network: nn.Module) -> Iterator[tuple[str, _Slot]]:
    persistent = network.state_dict(keep_vars=True)
    for prefix, module in network.named_modules():
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        for attribute, tensor in own.items():
            name = f"{prefix}.{attribute}" if prefix else attribute
            if name in persistent:
                yield name, _Slot(module, attribute, tensor)


def _match(
    checkpoint: Checkpoint,
    slots: Mapping[str, _Slot],
    adapters: list[tuple[str, WeightAdapter]],
    vocab_size: int | None,
) -> set[str]:
    """Return the names to load. Raises `CheckpointError` if the headers do not fit the network."""
    entries = checkpoint.weights.entries
    missing = [name for name in slots if name not in entries]
    extra = [name for name in entries if name not in slots and not _is_harmless(name, slots, adapters)]
    misshapen: list[str] = []
    no_numbers: list[str] = []
    for name in entries:
        if name not in slots:
            continue
        if slots[name].tensor.is_floating_point() and not entries[name].dtype.startswith(("F", "BF")):
            no_numbers.append(f"{name} is {entries[name].dtype}")
        want = tuple(slots[name].tensor.shape)
        got = entries[name].shape
        if got == want or _fills_rows(name, got, want, vocab_size):
            continue
        adapted = tuple(_adapt(adapters, name, torch.empty(got, device="meta")).shape)
        if adapted != want:
            misshapen.append(f"{name} {list(got)}, expected {list(want)}")
    found = {
        "missing": missing,
        "not expected": extra,
        "of the wrong shape": misshapen,
        "not floating-point": no_numbers,
    }
    problems = [f"{len(names)} {kind} ({listed(names)})" for kind, names in found.items() if names]
    if problems:
        raise CheckpointError(
            f"The weights in {checkpoint.path} do not fit its config: {'; '.join(problems)}. "
            "Download the checkpoint again or fix its config."
        ).with_details(f"{kind}: {name}" for kind, names in found.items() for name in names)
    return {name for name in entries if name in slots}


def _is_harmless(name: str, slots: Mapping[str, _Slot], adapters: list[tuple[str, WeightAdapter]]) -> bool:
    if name.endswith(_RECOMPUTED):
        return True
    if name == "llm.lm_head.weight":  # a tied head is the embedding, but some writers store it anyway
        return not any(slot.startswith("llm.lm_head.") for slot in slots)
    return any(
        name.startswith(prefix) and adapter.ignores_weight(name.removeprefix(prefix)) for prefix, adapter in adapters
    )


def _adapt(adapters: list[tuple[str, WeightAdapter]], name: str, tensor: torch.Tensor) -> torch.Tensor:
    for prefix, adapter in adapters:
        if name.startswith(prefix):
            tensor = adapter.adapt_weight(name.removeprefix(prefix), tensor)
    return tensor


def _fills_rows(name: str, got: tuple[int, ...], want: tuple[int, ...], vocab_size: int | None) -> bool:
    grows = vocab_size is not None and name.endswith(_VOCABULARY_ROWS) and len(got) == len(want) == 2
    return grows and got[1] == want[1] and got[0] < want[0] == vocab_size


def _fill_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """`[V', D]` -> `[V, D]`, the new rows being the mean of the old (taken in fp32)."""
    mean = tensor.mean(dim=0, dtype=torch.float32).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(rows - tensor.shape[0], -1)])


def _reset_buffers(network: nn.Module, place: Callable[[str], torch.device], dtype: torch.dtype) -> None:
    for name, module in network.named_modules():
        if isinstance(module, BufferOwner):
            module.reset_buffers(place(f"{name}."), dtype)
    left = [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]
    assert not left, f"still without data after loading: {left[:3]}"
