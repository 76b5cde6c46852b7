"""Model FLOPs of a packed row, for model FLOPs utilization (MFU).

A product of an `[M, K]` and a `[K, N]` matrix counts as 2 M K N. Counted are

- products with weights of the vision tower (all tiles, the layers that run), the projector (all tiles that it
  projects), the language model's layers (all tokens) and its head (labelled tokens), and the generation head (each
  linear once for each code of a picture that is to be drawn);
- attention: two products in the forward pass, over the keys that a token really sees: within its sample, causally;
- the backward pass, as far as something learns: a gradient of inputs costs as much as the forward pass, and so does
  one of weights. A frozen weight has no gradient of its own; a frozen tower has none at all. Attention costs twice the
  forward pass. So training all weights counts as 3 forward passes, and LoRA as about 2.

Not counted: anything that is computed twice (activation checkpointing, attention's scores in its backward pass),
elementwise operations, norms, embeddings, and DoRA's norms of weights.

Dimensions: P patches of a tile, T tokens, L labelled tokens, D width, V vocabulary, H heads, D_h head width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vila_core.config import DecoderConfig, LanguageModelConfig, VilaConfig
from vila_core.model import VilaModel
from vila_core.plugins.loader import load_plugins
from vila_core.prompt import PreparedMedium
from vila_core.towers import s2
from vila_train.compute.layers import repeated_layers
from vila_train.packing.rows import PackedRow

_WEIGHT_PRODUCTS = ("aten.mm", "aten.addmm", "aten.convolution")


@dataclass(frozen=True)
class PartFlops:
    """Operations of one part in the forward pass for each of its units (a tile, a token), and what of it learns.

    Attributes:
        weights: products with weights.
        adapters: products with weights of adapters, all of which learn.
        attention: other products; 0 where they do not grow with the number of units.
        learns: whether weights have gradients.
        passes_gradients: whether its inputs, or anything in it, have gradients.
    """

    weights: float
    adapters: float
    attention: float
    learns: bool
    passes_gradients: bool

    def step(self, units: float, attention: float = 0.0) -> float:
        """Return the operations of forward and backward pass.

        Args:
            units: tiles or tokens.
            attention: of the forward pass, besides that of each unit.
        """
        products = self.weights * (1 + self.learns + self.passes_gradients) + self.adapters * 3
        of_attention = self.attention * units + attention
        return products * units + of_attention * (3 if self.passes_gradients else 1)


@dataclass(frozen=True)
class ModelFlops:
    """The operations of a model's parts; `of_row` adds up those of a row.

    Attributes:
        config: of the model.
        tower, projector: by tile.
        layers, head: by token.
        generation: the generation head, by position of a picture that is to be drawn; None for a model without one.
        pair: of attention in all layers, by pair of a token and a key that it sees.
    """

    config: VilaConfig
    tower: PartFlops
    projector: PartFlops
    layers: PartFlops
    head: PartFlops
    generation: PartFlops | None
    pair: float

    @classmethod
    def of(cls, network: VilaModel) -> "ModelFlops":
        """Count the operations of `network`, with its adapters and with what is trainable of it at this time."""
        tower, projector, llm = network.vision_tower, network.mm_projector, cast("nn.Module", network.llm)
        language = network.config.language_model
        of_tower, of_projector = _of_tile(network.config)
        patches = (network.config.pixels.size // network.config.vision_tower.patch_size) ** 2
        media_learn = _learns(tower) or _learns(projector)
        everything = media_learn or _learns(llm)
        blocks = repeated_layers(llm)
        head = 2.0 * language.vocab_size * language.hidden_size
        return cls(
            network.config,
            PartFlops(of_tower[0], _adapters([tower]) * patches, of_tower[1], _weights_learn([tower]), _learns(tower)),
            PartFlops(of_projector[0], 0.0, of_projector[1], _weights_learn([projector]), media_learn),
            PartFlops(_weights(blocks), _adapters(blocks), 0.0, _weights_learn(blocks), everything),
            PartFlops(head, 0.0, 0.0, _head_learns(llm), everything),
            _of_generation(network, everything),
            4.0 * _query_width(language) * len(blocks),
        )

    def of_row(self, row: PackedRow) -> float:
        """Return the operations of one row's forward and backward pass."""
        media = row.batch.media
        language = self.config.language_model
        window = language.sliding_window if isinstance(language, DecoderConfig) else None
        pairs = sum(_visible_pairs(length, window) for length in row.batch.lengths)
        return (
            self.tower.step(sum(len(medium.tiles) for medium in media))
            + self.projector.step(sum(_projected_tiles(medium, self.config) for medium in media))
            + self.layers.step(sum(row.batch.lengths), self.pair * pairs)
            + self.head.step(row.num_labels)
            + (0.0 if self.generation is None else self.generation.step(row.counts.positions))
        )


def row_flops(network: VilaModel, row: PackedRow) -> float:
    """Return the operations of forward and backward pass for `row`. For many rows, keep a `ModelFlops`."""
    return ModelFlops.of(network).of_row(row)


def _of_tile(config: VilaConfig) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (products with weights, attention) of tower and projector for one tile, counted on the meta device."""
    plugins = load_plugins()
    with torch.device("meta"), torch.no_grad():
        tower = plugins.vision_towers.get(config.vision_tower.name).build(config.vision_tower)
        projector = plugins.projectors.get(config.projector.name).build(config.projector)
        with FlopCounterMode(display=False) as of_tower:
            pixels = torch.empty(1, 3, config.pixels.size, config.pixels.size)
            features = tower(pixels) if config.s2 is None else s2.multiscale(tower, pixels, config.s2)
        with FlopCounterMode(display=False) as of_projector:
            projector(torch.empty(1, features.shape[1], config.projector.in_size))
    return _split(of_tower), _split(of_projector)


def _of_generation(network: VilaModel, hidden_learns: bool) -> PartFlops | None:
    """Return the operations of the generation head for one position."""
    head, module = network.generation_head, network.generation
    if head is None or module is None:
        return None
    weights, learns = _weights([module]) * head.codes_per_position, _weights_learn([module])
    return PartFlops(weights, 0.0, 0.0, learns, hidden_learns or learns)


def _split(counter: FlopCounterMode) -> tuple[float, float]:
    counts = counter.get_flop_counts()["Global"] if counter.get_flop_counts() else {}
    products = sum(count for operator, count in counts.items() if str(operator).startswith(_WEIGHT_PRODUCTS))
    return float(products), float(counter.get_total_flops() - products)


def _linears(roots: Sequence[nn.Module]) -> Iterable[tuple[str, nn.Linear]]:
    for root in roots:
        for name, module in root.named_modules():
            if isinstance(module, nn.Linear):
                yield name, module


def _weights(roots: Sequence[nn.Module]) -> float:
    return float(sum(2 * x.in_features * x.out_features for name, x in _linears(roots) if ".lora_" not in name))


def _adapters(roots: Sequence[nn.Module]) -> float:
    return float(sum(2 * x.in_features * x.out_features for name, x in _linears(roots) if ".lora_" in name))


def _weights_learn(roots: Sequence[nn.Module]) -> bool:
    return any(module.weight.requires_grad for name, module in _linears(roots) if ".lora_" not in name)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _head_learns(llm: nn.Module) -> bool:
    """Return whether the head's weight has a gradient; the embedding is the head of a tied model."""
    heads = [module for name, module in llm.named_modules() if name.rpartition(".")[2] == "lm_head"]
    return any(_learns(module) for module in heads or [x for x in llm.modules() if isinstance(x, nn.Embedding)])


def _query_width(config: LanguageModelConfig) -> int:
    return config.num_attention_heads * config.head_dim if isinstance(config, DecoderConfig) else config.hidden_size


def _visible_pairs(length: int, window: int | None) -> int:
    """Return how many pairs of a token and a key that it sees a sample has."""
    seen = length if window is None else min(window, length)
    return seen * (seen + 1) // 2 + (length - seen) * seen


def _projected_tiles(medium: PreparedMedium, config: VilaConfig) -> int:
    layout = medium.tiles.layout
    if layout.kind != "merged" or config.dynamic_s2 is None:
        return len(medium.tiles)
    rows, columns = s2.merged_board(layout.grid, config.dynamic_s2)
    return rows * columns
