"""The pictures of a row: those that are seen go through the vision encoder, those that are drawn through the head.

N pictures, P positions of one, C codes of a position, K_i tokens of a medium, T tokens of the row, D width
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vila_core.generation.heads import TrainableHead
from vila_core.model import PromptBatch, VilaModel
from vila_core.prompt import PreparedMedium
from vila_core.tiles import Normalization, Tiles


def embed_row(
    network: VilaModel, batch: PromptBatch, drawn: Sequence[bool], *, uses_all: bool
) -> tuple[Tensor, Tensor | None]:
    """Return what the language model reads, `[T, D]`, and the codes of the pictures that are drawn, `[N P, C]`.

    Args:
        network: the model.
        batch: the samples of a row.
        drawn: of each medium, whether it is to be drawn; empty if none is.
        uses_all: send a blank picture where the row has none, with a weight of zero. Its codes are returned.
    """
    flags = drawn or [False] * len(batch.media)
    of_head = [medium for medium, is_drawn in zip(batch.media, flags, strict=True) if is_drawn]
    of_encoder = [medium for medium, is_drawn in zip(batch.media, flags, strict=True) if not is_drawn]
    blank = [_blank(network, batch.ids.device)] if uses_all else []
    # Between embedding and language model: ranks gather layers in one order, in both directions.
    drawn_tokens, codes = _draw(network, of_head or blank)
    seen_tokens = network.encode(of_encoder or blank) if of_encoder or blank else []
    unused = [*(() if of_head else drawn_tokens), *(() if of_encoder else seen_tokens)]
    iterators = {True: iter(drawn_tokens), False: iter(seen_tokens)}
    embeds = network.embed(batch, [next(iterators[is_drawn]) for is_drawn in flags])
    for tokens in unused:
        embeds = embeds + 0 * tokens.sum().to(embeds.dtype)
    return embeds, codes


def _draw(network: VilaModel, media: Sequence[PreparedMedium]) -> tuple[list[Tensor], Tensor | None]:
    """Return the tokens of each medium as the head embeds it, `[K_i, D]`, and all codes, `[N P, C]`."""
    head = network.generation_head
    if not media or not isinstance(head, TrainableHead):
        return [], None
    weight = next(network.vision_tower.parameters())
    codes = head.codes(torch.cat([medium.tiles.pixels_on(weight.device, weight.dtype) for medium in media]))
    tokens = head.embed(codes).split([len(medium.tiles) for medium in media])
    return [of_medium.flatten(0, 1) for of_medium in tokens], codes.flatten(0, 1)


def _blank(network: VilaModel, device: torch.device) -> PreparedMedium:
    pixels = network.config.pixels
    values = torch.zeros(1, 3, pixels.size, pixels.size, dtype=torch.uint8, device=device)
    return PreparedMedium("image", Tiles(values, normalization=Normalization.of(pixels)))
