"""Estimate of the GPU memory of a training step, from the shapes of the model and the settings.

Estimated is the peak of what PyTorch allocates (`torch.cuda.max_memory_allocated`), as the largest of

- the loss: weights, optimizer, kept activations, and a chunk of logits with the gradients of the head;
- the backward pass, at its beginning: the same without logits, but with one layer's recomputed activations, gradients
  and gathered weights;
- the update: weights, optimizer and all gradients.

R ranks; n trained weights and m frozen ones; T tokens, K tiles and L labelled tokens of a row; V vocabulary; D width
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from vila_core.config import DecoderConfig
from vila_core.language.decoder import Block, Decoder
from vila_core.model import VilaModel
from vila_train.compute.fp8 import frozen_linears
from vila_train.compute.layers import repeated_layers, separate_layers
from vila_train.config import AdapterConfig, ComputeConfig, TrainConfig
from vila_train.estimates.activations import (
    attention_inputs_and_result,
    compiled_block,
    kept_by_block,
    kept_by_layer,
)
from vila_train.loss import LOGITS_AT_ONCE, positions_at_once
from vila_train.parallel.fsdp import needs_shards

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits: with an 8-bit constant for each 64, and an fp32 constant for each 256 of these."""
RESERVE = 1.08
"""Memory that PyTorch takes from the GPU, over what it allocates, and what CUDA itself needs."""


@dataclass(frozen=True)
class RowLoad:
    """The rows that a GPU computes at once.

    Attributes:
        tokens: T, media included.
        tiles: K, that the vision tower sees.
        labels: L.
        rows: of each rank in a step.
        positions: of pictures that are to be drawn.
    """

    tokens: int
    tiles: int
    labels: int
    rows: int = 1
    positions: int = 0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each GPU.

    Attributes:
        weights: fp32 of trained weights, and bf16 or twice 8 bits of frozen ones, this rank's share.
        gradients: fp32, this rank's share.
        optimizer: AdamW's two moments, this rank's share.
        gathered: bf16 copies of weights while they compute.
        activations: kept from the forward for the backward pass.
        logits: of a chunk, with their gradients and those of what computes them: the language model's head, and the
            generation head.
        layer: one layer's recomputed activations and gradients.
        peak: of all of these that exist at the same time.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    layer: int
    peak: int

    @property
    def parts(self) -> Mapping[str, int]:
        """By name."""
        return {name: value for name, value in vars(self).items() if name != "peak"}

    @property
    def gpu_bytes(self) -> int:
        """Memory that a GPU should have."""
        return int(self.peak * RESERVE)


def estimate_memory(
    network: VilaModel,
    compute: ComputeConfig,
    load: RowLoad,
    *,
    world_size: int = 1,
    adapter: AdapterConfig | None = None,
    gpu_bytes: int | None = None,
) -> MemoryEstimate:
    """Return the memory of a training step.

    Args:
        network: on any device, also meta, with adapters installed and frozen as it will be trained, but before
            `compute.prepare` and before it is sharded.
        compute: how steps are computed.
        load: the largest row.
        world_size: R.
        adapter: tells 4-bit weights, if they are not there yet.
        gpu_bytes: memory of a GPU, which decides where gradients of several rows are added up (see
            `parallel.fsdp.accumulates_locally`); None: they are exchanged after each row.
    """
    itemsize = 2 if compute.precision == "bf16" else 4
    dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    is_sharded = needs_shards(network, compute, world_size)
    in_8_bits = frozen_linears(network) if compute.fp8 and not is_sharded else []
    trained, frozen = _stored(network, itemsize, adapter, in_8_bits)
    layers = separate_layers(network)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in inside]
    root = sum(parameter.numel() for parameter in rest)
    root_trained = sum(parameter.numel() for parameter in rest if parameter.requires_grad)
    largest = max((_numel(layer) for layer in layers), default=0)
    largest_trained = max((_numel(layer, trained=True) for layer in layers), default=0)

    weights = (4 * trained + frozen) // world_size
    optimizer = 8 * trained // world_size
    gradients = 4 * trained // world_size
    everything = sum(parameter.numel() for parameter in network.parameters())
    at_once = everything if compute.keep_gathered else root + 2 * largest
    gathered = int(itemsize * at_once) if is_sharded else 0
    activations, recomputed = activation_bytes(network, compute, load, dtype)
    logits, of_head = _logits(network, load, itemsize)
    code_logits, of_generation = _code_logits(network, load, itemsize)
    logits, of_head = max(logits, code_logits), of_head + of_generation
    # Gradients in the precision of the computation, and in fp32 while ranks exchange them.
    of_layer = recomputed + (itemsize + 4) * largest_trained
    adds_up = load.rows > 1
    if adds_up and is_sharded and gpu_bytes is not None and 4 * trained <= 0.15 * gpu_bytes:
        before = 4 * trained
    else:
        before = gradients if adds_up else 0
    stored = weights + optimizer
    stream = load.tokens * network.config.language_model.hidden_size * itemsize
    at_loss = stored + before + gathered + activations + 2 * stream + logits + of_head
    at_backward = stored + before + gathered + activations + of_layer + of_head // 3
    # The weights outside of layers have their gradients exchanged together, last.
    at_end = stored + gradients + (itemsize * root + (itemsize + 4) * root_trained if is_sharded else 0)
    peak = max(at_loss, at_backward, at_end, stored + gradients)
    return MemoryEstimate(weights, gradients, optimizer, gathered, activations, logits + of_head, of_layer, peak)


def _stored(
    network: nn.Module, itemsize: int, adapter: AdapterConfig | None, in_8_bits: Sequence[nn.Linear]
) -> tuple[int, int]:
    """Return the number of trained weights, and the bytes of frozen ones.

    A weight of `in_8_bits` is there twice, by rows and by columns, with fp32 scales of both.
    """
    packs = adapter is not None and adapter.method == "qlora"
    trained, frozen = 0, 0.0
    shapes = {id(linear.weight): linear.weight.shape for linear in in_8_bits}
    for name, parameter in network.named_parameters():
        if id(parameter) in shapes and not (packs and name.endswith("base_layer.weight")):
            frozen += 2 * parameter.numel() + 4 * sum(shapes[id(parameter)])
        elif parameter.requires_grad:
            trained += parameter.numel()
        elif not parameter.is_floating_point():
            frozen += parameter.numel() * parameter.element_size()
        else:
            frozen += parameter.numel() * (NF4_BYTES if packs and name.endswith("base_layer.weight") else itemsize)
    return trained, int(frozen)


def _numel(module: nn.Module, *, trained: bool = False) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)


def activation_bytes(network: VilaModel, compute: ComputeConfig, load: RowLoad, dtype: torch.dtype) -> tuple[int, int]:
    """Return the bytes that are kept of all layers, and those of one layer while its backward pass runs."""
    parts = [*_of_tower(network, compute, load, dtype), *_of_language_model(network, compute, load, dtype)]
    kept = sum(kept for kept, _ in parts)
    return kept, max((once for _, once in parts), default=0)


def _of_language_model(
    network: VilaModel, compute: ComputeConfig, load: RowLoad, dtype: torch.dtype
) -> Iterator[tuple[int, int]]:
    """Yield what is kept of the language model, and what one of its layers needs. Nothing if nothing learns."""
    llm, config = cast("nn.Module", network.llm), network.config.language_model
    itemsize = dtype.itemsize
    stream = load.tokens * config.hidden_size * itemsize
    if not _learns(network):
        return
    blocks = [layer for layer in repeated_layers(llm) if isinstance(layer, Block)]
    if not isinstance(llm, Decoder) or not blocks or not isinstance(config, DecoderConfig):
        yield 16 * stream * max(len(repeated_layers(llm)), 1), 0  # about what a layer keeps with flash attention
        return
    yield kept_by_layer(llm.model.norm, (1, load.tokens, config.hidden_size), dtype), 0
    eager = kept_by_block(blocks[0], config, load.tokens, dtype)
    learns = _learns(blocks[0])
    whole = compiled_block(config, load.tokens, itemsize, learns=learns) if compute.compile else eager
    transient = 3 * load.tokens * config.intermediate_size * itemsize  # gradients in the MLP
    match compute.activation_checkpointing:
        case "none":
            yield len(blocks) * whole, transient
        case "full":
            yield len(blocks) * stream, whole + transient
        case "linears":
            attention = attention_inputs_and_result(config, load.tokens, itemsize)
            yield len(blocks) * (stream + attention), whole - attention + transient


def _of_tower(
    network: VilaModel, compute: ComputeConfig, load: RowLoad, dtype: torch.dtype
) -> Iterator[tuple[int, int]]:
    """Yield the same of the vision tower and the projector."""
    tower, projector = cast("nn.Module", network.vision_tower), cast("nn.Module", network.mm_projector)
    config, itemsize, tiles = network.config.vision_tower, dtype.itemsize, max(load.tiles, 1)
    size = network.config.pixels.size if network.config.s2 is None else config.image_size
    patches = (size // config.patch_size) ** 2
    stream = tiles * patches * config.hidden_size * itemsize
    pixels = tiles * 3 * size**2 * itemsize
    if _learns(tower):
        layers = repeated_layers(tower)[: _depth(network)]
        shape = (tiles, patches, config.hidden_size)
        whole = kept_by_layer(layers[0], shape, dtype) if layers else 0
        recomputes = compute.activation_checkpointing != "none"
        yield pixels + len(layers) * (stream if recomputes else whole), 2 * stream + (whole if recomputes else 0)
    if _learns(tower) or _learns(projector):
        kept = kept_by_layer(projector, (tiles, patches, network.config.projector.in_size), dtype)
        yield kept, 0


def _depth(network: VilaModel) -> int:
    """Return how many layers of the tower run."""
    config = network.config.vision_tower
    total = len(repeated_layers(cast("nn.Module", network.vision_tower)))
    return total + 1 + config.select_layer if config.select_layer < 0 else config.select_layer


def _logits(network: VilaModel, load: RowLoad, itemsize: int) -> tuple[int, int]:
    """Return the bytes of a chunk of logits, and of the gradients of the head.

    A chunk exists in the precision of the computation, in fp32, and as its gradient in both.
    """
    config = network.config.language_model
    chunk = min(load.labels, max(LOGITS_AT_ONCE // config.vocab_size, 1)) * config.vocab_size
    llm = network.llm
    head = llm.lm_head if isinstance(llm, Decoder) and llm.lm_head is not None else None
    learns = _learns(head) if head is not None else _learns(cast("nn.Module", llm))
    of_head = (4 + itemsize) * config.vocab_size * config.hidden_size if learns else 0
    return chunk * (8 + itemsize), of_head


def _code_logits(network: VilaModel, load: RowLoad, itemsize: int) -> tuple[int, int]:
    """Return the same of the generation head, whose layers keep their activations for one chunk."""
    head = network.generation_head
    if head is None or network.generation is None or not load.positions:
        return 0, 0
    positions = min(load.positions, positions_at_once(head))
    codes = positions * head.codes_per_position
    linears = [module for module in network.generation.modules() if isinstance(module, nn.Linear)]
    kept = sum(linear.in_features + linear.out_features for linear in linears) * codes * itemsize
    trained = _numel(network.generation, trained=True)
    return codes * head.codebook_size * (8 + itemsize) + kept, (4 + itemsize) * trained


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


@dataclass(frozen=True)
class Suggestion:
    """Settings that need less memory.

    Attributes:
        settings: for `--set`, such as "compute.activation_checkpointing=full".
        gpu_bytes: memory that a GPU should have.
    """

    settings: str
    gpu_bytes: int

    def __str__(self) -> str:
        return f"{self.settings}: about {gigabytes(self.gpu_bytes)}"


def gigabytes(count: int) -> str:
    """Return a number of bytes as text."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def suggest(network: VilaModel, config: TrainConfig, load: RowLoad, *, world_size: int = 1) -> Sequence[Suggestion]:
    """Return settings that need less memory than `config`, the least change first.

    Args:
        network: as for `estimate_memory`.
        config: of the run that needs too much.
        load: the largest row.
        world_size: R.
    """
    compute, data = config.compute, config.data
    length = data.row_length or data.max_length
    half = RowLoad(load.tokens // 2, -(-load.tiles // 2), load.labels // 2, load.rows, load.positions // 2)
    changes: list[tuple[str, ComputeConfig, RowLoad, int]] = [
        (
            f"compute.activation_checkpointing={name}",
            compute.model_copy(update={"activation_checkpointing": name}),
            load,
            1,
        )
        for name in ("linears", "full")
    ]
    full = compute.model_copy(update={"activation_checkpointing": "full"})
    changes += [
        ("compute.precision=bf16", full.model_copy(update={"precision": "bf16"}), load, 1),
        (f"data.max_length={length // 2} data.row_length={length // 2}", full, half, 1),
        (f"{2 * world_size} GPUs", full, load, 2),
        (f"{4 * world_size} GPUs", full, load, 4),
    ]
    now = estimate_memory(network, compute, load, world_size=world_size, adapter=config.adapter)
    found: list[Suggestion] = []
    for settings, changed, size, factor in changes:
        need = estimate_memory(network, changed, size, world_size=world_size * factor, adapter=config.adapter)
        best = min([now.gpu_bytes, *(one.gpu_bytes for one in found)])
        if need.gpu_bytes < 0.97 * best:
            found.append(Suggestion(settings, need.gpu_bytes))
    return found
