"""The whole network: text embeddings and media blocks become one sequence for the language model.

Dimensions: N tiles, P patches, D_v tower width, D language model width, T tokens (T' with media spliced in), V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vila_core.config import VilaConfig
from vila_core.encoders import BasicImageEncoder, BasicVideoEncoder
from vila_core.errors import PromptError
from vila_core.plugins.loader import load_plugins
from vila_core.preprocess import Tiles
from vila_core.towers import s2

if TYPE_CHECKING:
    from vila_core.language import LanguageModel
    from vila_core.projectors import Projector
    from vila_core.tokenizer import Tokenizer
    from vila_core.towers.vit import VisionTower

TILES_AT_ONCE = 64
"""Tiles that pass the tower together; bounds the memory that a long video takes."""


class VilaModel(nn.Module):
    """Vision tower, projector, media encoders and language model.

    Args:
        config: the model's configuration.
        tokenizer: gives the ids of the media tokens and of the texts around media; it is not kept.
    """

    def __init__(self, config: VilaConfig, tokenizer: "Tokenizer"):
        super().__init__()
        plugins = load_plugins()
        self.config = config
        self.vision_tower = cast(
            "VisionTower", plugins.vision_towers.get(config.vision_tower.name).build(config.vision_tower)
        )
        self.mm_projector = cast("Projector", plugins.projectors.get(config.projector.name).build(config.projector))
        self.image_encoder = cast(
            "BasicImageEncoder", plugins.media_encoders.get(config.image_encoder.name).build(config.image_encoder)
        )
        self.video_encoder = cast(
            "BasicVideoEncoder", plugins.media_encoders.get(config.video_encoder.name).build(config.video_encoder)
        )
        self.llm = cast(
            "LanguageModel", plugins.language_models.get(config.language_model.name).build(config.language_model)
        )
        self._projected_tokens: int | None = None
        self.media_token_ids = tokenizer.media_token_ids
        self.text_ids = {
            text: tokenizer.encode(text) for text in (*self.image_encoder.texts, *self.video_encoder.texts)
        }

    def forward(self, input_ids: Tensor, images: Sequence[Tiles] = (), videos: Sequence[Tiles] = ()) -> Tensor:
        """One prompt to logits: `input_ids [T]` -> `[T', V]`."""
        embeds = self.embed(input_ids, images, videos)  # [T', D]
        hidden = self.llm(embeds[None])  # [1, T', D]
        return self.llm.logits(hidden)[0]

    def embed(self, input_ids: Tensor, images: Sequence[Tiles] = (), videos: Sequence[Tiles] = ()) -> Tensor:
        """Return the sequence that the language model reads: `input_ids [T]` and media -> `[T', D]`."""
        text = self.llm.embed(input_ids[None])[0]  # [T, D]
        return self.splice(input_ids, text, {"image": self.image_blocks(images), "video": self.video_blocks(videos)})

    def image_blocks(self, images: Sequence[Tiles]) -> list[Tensor]:
        """Return a block `[T_i, D]` for each `<image>` of the prompt: an image has one, or one a tile under dynamic tiling."""
        if not images:
            return []
        features = self._features(torch.cat([image.pixels for image in images]))  # [N, P, D_v]
        blocks = [
            image.block_size for image in images for _ in range(len(image.pixels) if image.block_size is None else 1)
        ]
        return [self.image_encoder(tokens, self._embed_text) for tokens in self._project(features, blocks)]

    def video_blocks(self, videos: Sequence[Tiles]) -> list[Tensor]:
        """Return a block `[T_i, D]` for each `<vila/video>` of the prompt."""
        if not videos:
            return []
        frames = [len(video.pixels) for video in videos]
        features = self._features(torch.cat([video.pixels for video in videos]))  # [N, P, D_v]
        tokens = torch.stack(self._project(features, [None] * len(features)))  # [N, T_f, D]
        return [self.video_encoder(of_video, self._embed_text) for of_video in tokens.split(frames)]

    def block_lengths(self, images: Sequence[Tiles], videos: Sequence[Tiles]) -> tuple[list[list[int]], list[int]]:
        """Return the tokens of each image's blocks and of each video's block, without encoding them: shapes alone."""
        width, per_tile = self.config.language_model.hidden_size, self._tokens_per_tile()
        meta = torch.device("meta")

        def embed_text(text: str) -> Tensor:
            return torch.empty(len(self.text_ids[text]), width, device=meta)

        def of_image(image: Tiles) -> list[int]:
            if image.block_size is None:
                return [len(self.image_encoder(torch.empty(per_tile, width, device=meta), embed_text))] * len(
                    image.pixels
                )
            assert self.config.dynamic_s2 is not None, "only dynamic S2 has blocks"
            rows, columns = s2.merged_board(image.block_size, self.config.dynamic_s2)
            return [len(self.image_encoder(torch.empty(rows * columns * per_tile, width, device=meta), embed_text))]

        of_videos = [
            len(self.video_encoder(torch.empty(len(video.pixels), per_tile, width, device=meta), embed_text))
            for video in videos
        ]
        return [of_image(image) for image in images], of_videos

    @torch.no_grad()
    def _tokens_per_tile(self) -> int:
        """Return how many tokens the projector makes of one tile. The first call sends a black one through."""
        if self._projected_tokens is None:
            size = self.config.pixels.size
            self._projected_tokens = len(self._project(self._features(torch.zeros(1, 3, size, size)), [None])[0])
        return self._projected_tokens

    def _features(self, pixels: Tensor) -> Tensor:
        """`[N, 3, H, W]` on any device -> `[N, P, D_v]`, channels of all scales under static S2."""
        weight = next(self.vision_tower.parameters())
        features: list[Tensor] = []
        for chunk in pixels.split(TILES_AT_ONCE):
            chunk = chunk.to(weight.device, weight.dtype)
            if self.config.s2:
                features.append(s2.multiscale(self.vision_tower, chunk, self.config.s2))
            else:
                features.append(self.vision_tower(chunk))
        return torch.cat(features)

    def _project(self, features: Tensor, block_sizes: Sequence[tuple[int, int] | None]) -> list[Tensor]:
        """`[N, P, D_v]` -> one `[T_i, D]` per image. Under dynamic S2 an image's tiles are merged before and after."""
        if self.config.dynamic_s2 is None:
            return list(self.mm_projector(features))
        merged, blocks = s2.merge_scales(features, block_sizes, self.config.dynamic_s2)  # [1, K·D_v, H, W] each
        tiles = [
            s2.split_chessboard(maps, *block).flatten(2).transpose(1, 2)
            for maps, block in zip(merged, blocks, strict=True)
        ]
        tokens = self.mm_projector(torch.cat(tiles)).split(
            [len(of_image) for of_image in tiles]
        )  # [rows·cols, P', D] each
        maps = [
            s2.merge_chessboard(of_image, *block) for of_image, block in zip(tokens, blocks, strict=True)
        ]  # [1, D, H', W']
        return [of_image[0].flatten(1).T for of_image in maps]

    def _embed_text(self, text: str) -> Tensor:
        """Return the embeddings of a text around media, `[t, D]`."""
        device = next(self.parameters()).device
        return self.llm.embed(torch.tensor([self.text_ids[text]], device=device))[0]

    def splice(self, input_ids: Tensor, text: Tensor, blocks: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """Put each medium's block in place of its token, in order: `[T, D]` -> `[T', D]`.

        Raises:
            PromptError: the prompt has more or fewer media tokens than there are media.
        """
        parts: list[Tensor] = []
        remaining = {name: list(of_medium) for name, of_medium in blocks.items()}
        names = {token: name for name, token in self.media_token_ids.items()}
        start = 0
        for position, token in enumerate(input_ids.tolist()):
            if token not in names:
                continue
            if not remaining[names[token]]:
                raise PromptError(f"The prompt has more {names[token]} tokens than {names[token]}s.")
            parts += [text[start:position], remaining[names[token]].pop(0)]
            start = position + 1
        if left := {name: len(of_medium) for name, of_medium in remaining.items() if of_medium}:
            raise PromptError(f"The prompt has no token for these media: {left}.")
        return torch.cat([*parts, text[start:]])
