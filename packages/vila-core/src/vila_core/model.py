"""The whole network: text embeddings and media tokens become one sequence for the language model.

Dimensions: N tiles, P patches, D_v tower width, S tokens per tile, D language model width, V vocabulary,
T tokens of a prompt (T' with media in place), L = sum of T' over a batch, K media tokens of a batch, B prompts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vila_core.config import (
    GenerationHeadConfig,
    LanguageModelConfig,
    MediaEncoderConfig,
    ProjectorConfig,
    VilaConfig,
    VisionTowerConfig,
)
from vila_core.encoders import BlockLayout, ExpandedPrompt, expand
from vila_core.plugins.loader import load_plugins
from vila_core.projectors import is_capturable
from vila_core.prompt import PreparedMedium, PreparedPrompt
from vila_core.tiles import PixelTable, TileLayout, Tiles
from vila_core.towers import s2

if TYPE_CHECKING:
    from vila_core.encoders import MediaEncoder
    from vila_core.generation.heads import GenerationHead, HeadModule
    from vila_core.language import LanguageModel
    from vila_core.plugins.hookspecs import Component
    from vila_core.plugins.registry import Registry
    from vila_core.projectors import Projector
    from vila_core.tokenizer import Tokenizer
    from vila_core.towers.vit import VisionTower

PartConfig = VisionTowerConfig | ProjectorConfig | MediaEncoderConfig | LanguageModelConfig | GenerationHeadConfig
TILES_AT_ONCE = 64
"""Tiles that go through the vision tower together. It bounds the memory that a long video needs."""
TILES_OF_PART = 8
"""Tiles whose tokens the engine computes, keeps and reads as one. As many as have a CUDA graph."""


@dataclass(frozen=True)
class PromptBatch:
    """Expanded prompts as tensors, one prompt after another without padding.

    Attributes:
        ids: int64 `[L]`; any valid id at media positions.
        places: int64 `[K]`, the positions of media tokens in `ids`.
        media: the media in the order of their tokens.
        lengths: T' of each of the B prompts.
    """

    ids: Tensor
    places: Tensor
    media: Sequence[PreparedMedium]
    lengths: Sequence[int]

    @classmethod
    def of(
        cls, prompts: Sequence[PreparedPrompt], expanded: Sequence[ExpandedPrompt], device: torch.device
    ) -> "PromptBatch":
        """Return the batch of `prompts`, whose expansions are `expanded`."""
        lengths = [len(one.ids) for one in expanded]
        starts = accumulate(lengths, initial=0)
        places = [start + place for start, one in zip(starts, expanded, strict=False) for place in one.places]
        return cls(
            torch.tensor([token for one in expanded for token in one.ids], dtype=torch.int64, device=device),
            torch.tensor(places, dtype=torch.int64, device=device),
            [medium for prompt in prompts for medium in prompt.media],
            lengths,
        )


class VilaModel(nn.Module):
    """Vision tower, projector, media encoders and language model.

    Args:
        config: the model's configuration.
        tokenizer: gives the ids of the media tokens and of the texts around media; it is not kept.

    Attributes:
        text_vocab_size: how many tokens the model learns to write. Of a model that draws, this excludes the
            placeholders of media at the end of the vocabulary, which its checkpoints do not have.
    """

    def __init__(self, config: VilaConfig, tokenizer: "Tokenizer"):
        super().__init__()
        plugins = load_plugins()
        self.config = config
        self.vision_tower = cast("VisionTower", _build(plugins.vision_towers, config.vision_tower))
        self.mm_projector = cast("Projector", _build(plugins.projectors, config.projector))
        self.image_encoder = cast("MediaEncoder", _build(plugins.media_encoders, config.image_encoder))
        self.video_encoder = cast("MediaEncoder", _build(plugins.media_encoders, config.video_encoder))
        self.llm = cast("LanguageModel", _build(plugins.language_models, config.language_model))
        self.generation = (
            None if config.generation_head is None else _build(plugins.generation_heads, config.generation_head)
        )
        self.text_vocab_size = _text_vocab_size(config, tokenizer)
        self._kinds = {token: kind for kind, token in tokenizer.media_token_ids.items()}
        self._text_ids = {
            text: tokenizer.encode(text) for text in (*self.image_encoder.texts, *self.video_encoder.texts)
        }

    def forward(self, prompts: Sequence[PreparedPrompt]) -> list[Tensor]:
        """Prompts to logits: `[T', V]` for each prompt."""
        batch = self.batch(prompts)
        embeds = self.embed(batch)  # [L, D]
        hidden = [self.llm(of_prompt[None])[0] for of_prompt in embeds.split(list(batch.lengths))]  # [T', D] each
        return [self.llm.logits(of_prompt) for of_prompt in hidden]

    def embed(self, batch: PromptBatch, tokens: Sequence[Tensor] | None = None) -> Tensor:
        """Return the sequences that the language model reads, one prompt after another: `[L, D]`.

        This is the only place that puts media into text. It never synchronizes with the host, so a CUDA graph can
        capture it.

        Args:
            batch: prompts.
            tokens: the media tokens of each medium, `[K_i, D]`, if they are known.
        """
        text = self.llm.embed(batch.ids[None])[0]  # [L, D]
        if not batch.media:
            return text
        together = torch.cat(list(self.encode(batch.media) if tokens is None else tokens))  # [K, D]
        return text.index_copy(0, batch.places, together.to(text.dtype))

    def encode(self, media: Sequence[PreparedMedium]) -> list[Tensor]:
        """Return the media tokens of each medium, `[K_i, D]`: vision tower, projector, media encoder."""
        # Training keeps all activations anyway, so splitting would save nothing.
        at_once = sum(len(medium.tiles) for medium in media) if torch.is_grad_enabled() else TILES_AT_ONCE
        return self.media_tokens(self.tile_tokens([medium.tiles for medium in media], at_once), media)

    def tile_tokens(self, tiles: Sequence[Tiles], at_once: int = TILES_AT_ONCE) -> Tensor:
        """Return what each of N tiles becomes on its own: `[N, S, D]`, or features `[N, P, D_v]` under dynamic S2.

        Args:
            tiles: of several media.
            at_once: how many go through the vision tower together.
        """
        made = [self._tokens_together(parts) for parts in _split(tiles, at_once)]
        return made[0] if len(made) == 1 else torch.cat(made)

    def _tokens_together(self, tiles: Sequence[Tiles]) -> Tensor:
        """`tile_tokens` of tiles that go through the vision tower together."""
        weight = next(self.vision_tower.parameters())
        projector = None if self.config.dynamic_s2 is not None else self.mm_projector
        table = self._common_table(tiles, weight)
        if table is not None and (projector is None or is_capturable(projector, weight.device)):
            tokens = self.vision_tower.encode_bytes([one.values for one in tiles], table, projector)
            if tokens is not None:
                return tokens
        features = self.features(torch.cat([one.pixels_on(weight.device, weight.dtype) for one in tiles]))
        return features if projector is None else projector(features)

    def _common_table(self, tiles: Sequence[Tiles], weight: Tensor) -> PixelTable | None:
        """Return what normalizes all tiles, which are bytes that the tower reads at one scale; None if they are not."""
        normalizations = {one.normalization for one in tiles}
        normalization = normalizations.pop()
        if normalizations or normalization is None or self.config.s2 is not None or not weight.is_cuda:
            return None
        return normalization.table(weight.device, weight.dtype)

    def media_tokens(self, tiles: Tensor, media: Sequence[PreparedMedium]) -> list[Tensor]:
        """Return the media tokens of each medium, `[K_i, D]`, from the `tile_tokens` of all."""
        if self.config.dynamic_s2 is None:
            tokens = list(tiles.split([len(medium.tiles) for medium in media]))  # [N_i, S, D] each
        else:
            tokens = self.project_scales(tiles, media)  # [N_i, S, D] each, or [1, S_i, D] where scales were merged
        return [self._encode_blocks(medium, of_medium) for medium, of_medium in zip(media, tokens, strict=True)]

    def parts(self, medium: PreparedMedium) -> list[PreparedMedium]:
        """Split a medium into parts that become tokens whatever the others are, of about `TILES_OF_PART` tiles."""
        layout, count = medium.tiles.layout, len(medium.tiles)
        together = {"separate": 1, "whole": self._encoder(medium.kind).frame_group, "merged": None}[layout.kind]
        if together is None:
            return [medium]
        size = max(1, TILES_OF_PART // together) * together
        return [replace(medium, tiles=medium.tiles.part(start, start + size)) for start in range(0, count, size)]

    def num_tokens(self, medium: PreparedMedium) -> int:
        """Return how many media tokens a medium, or a part of one, becomes. Nothing is encoded."""
        of_block = sum(part for part in self._block_layout(medium) if isinstance(part, int))
        return of_block * medium.tiles.num_placeholders

    def _encode_blocks(self, medium: PreparedMedium, tokens: Tensor) -> Tensor:
        """`[N, S, D]` of one medium -> the media tokens of its blocks, `[K_i, D]`."""
        blocks = tokens.split(1) if medium.tiles.layout.kind == "separate" else [tokens]
        return torch.cat([self._encoder(medium.kind)(block) for block in blocks])

    def features(self, pixels: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> `[N, P, D_v]`, with the channels of all scales under static S2."""
        return _features(self.vision_tower, pixels, self.config)

    def project_scales(self, features: Tensor, media: Sequence[PreparedMedium]) -> list[Tensor]:
        """Project under dynamic S2: merge the scales of each image, project tile by tile, and merge the tiles again.

        `[N, P, D_v]` of all media -> `[1, S_i, D]` for each merged image, `[N_i, S, D]` for other media.
        """
        assert self.config.dynamic_s2 is not None
        pictures = [picture for medium in media for picture in _pictures(medium)]
        grids = [layout.grid if layout.kind == "merged" else None for layout in pictures]
        merged, boards = s2.merge_scales(features, grids, self.config.dynamic_s2)  # [1, K·D_v, H, W] each
        tiles = [
            s2.split_chessboard(maps, *board).flatten(2).transpose(1, 2)
            for maps, board in zip(merged, boards, strict=True)
        ]
        projected = self.mm_projector(torch.cat(tiles)).split([len(of_picture) for of_picture in tiles])
        maps = [s2.merge_chessboard(x, *board) for x, board in zip(projected, boards, strict=True)]  # [1, D, H', W']
        tokens = iter([x.flatten(2).transpose(1, 2) for x in maps])  # [1, S_i, D] each
        return [torch.cat([next(tokens) for _ in _pictures(medium)]) for medium in media]

    def batch(self, prompts: Sequence[PreparedPrompt]) -> PromptBatch:
        """Return prompts as a batch on the model's device. Raises `PromptError` as `expand` does."""
        device = next(self.parameters()).device
        return PromptBatch.of(prompts, [self.expand(prompt) for prompt in prompts], device)

    def expand(self, prompt: PreparedPrompt) -> ExpandedPrompt:
        """Return the ids of `prompt` with room for its media. Nothing is encoded.

        Raises:
            PromptError: media tokens and media do not agree.
            MediaError: an encoder cannot take a medium of this shape.
        """
        placeholders = [
            (medium.kind, [self._block_layout(medium)] * medium.tiles.num_placeholders) for medium in prompt.media
        ]
        return expand(prompt.input_ids, placeholders, self._kinds, self._text_ids)

    def _block_layout(self, medium: PreparedMedium) -> BlockLayout:
        """Return the layout of the block behind each placeholder of `medium`."""
        layout, tokens = medium.tiles.layout, self.tokens_per_tile
        frames = 1 if layout.kind != "whole" else len(medium.tiles)
        if layout.kind == "merged":
            assert self.config.dynamic_s2 is not None, "only dynamic S2 merges tiles"
            rows, columns = s2.merged_board(layout.grid, self.config.dynamic_s2)
            tokens *= rows * columns
        return self._encoder(medium.kind).layout(frames, tokens)

    def _encoder(self, kind: str) -> "MediaEncoder":
        return {"image": self.image_encoder, "video": self.video_encoder}[kind]

    @cached_property
    def generation_head(self) -> "GenerationHead | None":
        """What draws; None for models that only write."""
        return None if self.generation is None else cast("HeadModule", self.generation).head(self)

    @cached_property
    def tokens_per_tile(self) -> int:
        """S: how many tokens one tile becomes.

        By arithmetic where that is possible: a forward pass on the meta device imports PyTorch's compiler, which takes
        two seconds of the first answer.
        """
        known = self.config.tokens_per_tile
        return measure_tokens_per_tile(self.config) if known is None else known


def measure_tokens_per_tile(config: VilaConfig) -> int:
    """Return how many tokens the projector makes of one tile, from shapes alone (on torch's meta device).

    A vision tower or projector of a plugin must therefore run on the meta device.
    """
    plugins = load_plugins()
    with torch.device("meta"), torch.inference_mode():
        tower = _build(plugins.vision_towers, config.vision_tower)
        projector = _build(plugins.projectors, config.projector)
        features = _features(tower, torch.empty(1, 3, config.pixels.size, config.pixels.size), config)  # [1, P, D_v]
        return int(projector(torch.empty(1, features.shape[1], config.projector.in_size)).shape[1])


def _build(registry: "Registry[Component]", config: PartConfig) -> Any:
    with _NoInitializationOnMeta():
        return registry.get(config.name).build(config)


class _NoInitializationOnMeta(TorchFunctionMode):
    """Skips the random initialization of tensors on the meta device, which hold no values.

    PyTorch would import its compiler for it (1.1 s of the 3.9 s that loading the smallest model takes).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the tensor as it is if `func` would only fill it with numbers."""
        tensor = args[0] if args else (kwargs or {}).get("tensor")  # torch.nn.init names it
        if isinstance(tensor, Tensor) and tensor.is_meta and _initializes(func):
            return tensor
        return func(*args, **(kwargs or {}))


def _initializes(func: Callable[..., Any]) -> bool:
    in_place = func.__name__.endswith("_") and not func.__name__.endswith("__")
    module: object = getattr(func, "__module__", None)  # methods of tensors have none
    return in_place and (module == nn.init.__name__ or func.__name__ in ("normal_", "uniform_"))


def _text_vocab_size(config: VilaConfig, tokenizer: "Tokenizer") -> int:
    size = config.language_model.vocab_size
    placeholders = {tokenizer.sentinel_token_id, *tokenizer.media_token_ids.values()}
    while config.generation_head is not None and size - 1 in placeholders:
        size -= 1
    return size


def _split(tiles: Sequence[Tiles], at_once: int) -> Iterator[list[Tiles]]:
    """Yield the tiles in groups of `at_once`, in order; the last group may be smaller."""
    group, room = list[Tiles](), at_once
    for one in tiles:
        start = 0
        while start < len(one):
            part = one.part(start, start + room)
            group.append(part)
            start, room = start + len(part), room - len(part)
            if not room:
                yield group
                group, room = [], at_once
    if group:
        yield group


def _features(tower: Callable[[Tensor], Tensor], pixels: Tensor, config: VilaConfig) -> Tensor:
    return tower(pixels) if config.s2 is None else s2.multiscale(tower, pixels, config.s2)


def _pictures(medium: PreparedMedium) -> Sequence[TileLayout]:
    """Return the layout of each picture that dynamic S2 projects: the whole of a merged image, else every tile."""
    layout = medium.tiles.layout
    return [layout] if layout.kind == "merged" else [layout] * len(medium.tiles)
