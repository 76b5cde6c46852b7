"""The batched forward of training, over vila_core's own modules.

B samples, M pictures of each, K tokens a picture, P patches, T tokens with media in place, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vila_core.model import VilaModel
from vila_train.labels import IGNORE_INDEX


@dataclass(frozen=True)
class Batch:
    """Samples of one layout: equally many pictures and positions.

    Attributes:
        pixels: uint8 `[B, M, 3, S, S]`.
        ids, labels: int64 `[B, T]`, as in `vila_train.tiny.data.Encoded`.
        places: int64 `[B, M·K]`, the position of each media token.
    """

    pixels: Tensor
    ids: Tensor
    places: Tensor
    labels: Tensor


def normalise(pixels: Tensor) -> Tensor:
    """Bytes to what the tower reads: `(x / 255 - 0.5) / 0.5`, float32."""
    return pixels.float() / 127.5 - 1.0


def hidden_states(network: VilaModel, batches: Sequence[Batch]) -> list[Tensor]:
    """Return the last hidden states of each batch, `[B, T, D]`. All pictures of all batches pass the tower together."""
    pixels = normalise(torch.cat([batch.pixels.flatten(0, 1) for batch in batches]))  # [sum of B·M, 3, S, S]
    return decode(network, batches, network.mm_projector(network.vision_tower(pixels)))


def decode(network: VilaModel, batches: Sequence[Batch], tokens: Tensor) -> list[Tensor]:
    """Put the pictures' `tokens` `[sum of B·M, K, D]` in their places and run the language model on each batch."""
    found: list[Tensor] = []
    for batch, of_batch in zip(
        batches, tokens.split([len(batch.pixels.flatten(0, 1)) for batch in batches]), strict=True
    ):
        media = of_batch.reshape(len(batch.ids), -1, of_batch.shape[-1])  # [B, M·K, D]
        text = network.llm.embed(batch.ids)  # [B, T, D]
        # A scatter without collisions: its gradient is a gather, where that of a gather would add up atomically.
        places = batch.places[..., None].expand(-1, -1, text.shape[-1])  # [B, M·K, D]
        found.append(network.llm(text.scatter(1, places, media.to(text.dtype))))
    return found


def answer_loss(network: VilaModel, batches: Sequence[Batch]) -> Tensor:
    """Return the mean cross-entropy over all label tokens of all batches, so each answer token counts the same."""
    total = torch.zeros((), device=batches[0].ids.device)
    for batch, hidden in zip(batches, hidden_states(network, batches), strict=True):
        logits = network.llm.logits(hidden[:, :-1]).float()  # [B, T - 1, V]
        total = total + F.cross_entropy(
            logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
    count = sum((batch.labels[:, 1:] != IGNORE_INDEX).sum() for batch in batches)
    return total / count


@torch.no_grad()
def exact_matches(network: VilaModel, batch: Batch) -> Tensor:
    """Return whether each answer is right to the last token, bool `[B]`.

    Every token of the answer is predicted from the true ones before it. All are right exactly when greedy decoding
    gives the same answer, so this is exact match at the cost of one forward pass.
    """
    (hidden,) = hidden_states(network, [batch])
    predicted = network.llm.logits(hidden[:, :-1]).argmax(-1)
    labels = batch.labels[:, 1:]
    return ((predicted == labels) | (labels == IGNORE_INDEX)).all(1)
