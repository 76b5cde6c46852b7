"""The batched forward pass and loss of training, on the modules of vila_core.

Dimensions: B samples, M pictures per sample, K tokens per picture, T tokens including media, D width, V vocabulary.
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
    """Samples with the same number of pictures, padded to the same length.

    Attributes:
        pixels: uint8 `[B, M, 3, S, S]`.
        ids, labels: int64 `[B, T]`, as in `vila_train.tiny.data.Encoded`.
        places: int64 `[B, M·K]`, the positions of the media tokens.
    """

    pixels: Tensor
    ids: Tensor
    places: Tensor
    labels: Tensor


def normalise(pixels: Tensor) -> Tensor:
    """Normalize uint8 pixels for the tower: `(x / 255 - 0.5) / 0.5`, float32."""
    return pixels.float() / 127.5 - 1.0


def hidden_states(network: VilaModel, batches: Sequence[Batch]) -> list[Tensor]:
    """Return the last hidden states of each batch, `[B, T, D]`. The tower encodes all pictures in one call."""
    pixels = normalise(torch.cat([batch.pixels.flatten(0, 1) for batch in batches]))  # [sum of B·M, 3, S, S]
    return decode(network, batches, network.mm_projector(network.vision_tower(pixels)))


def decode(network: VilaModel, batches: Sequence[Batch], tokens: Tensor) -> list[Tensor]:
    """Insert the picture `tokens` `[sum of B·M, K, D]` and run the language model on each batch."""
    found: list[Tensor] = []
    for batch, of_batch in zip(
        batches, tokens.split([len(batch.pixels.flatten(0, 1)) for batch in batches]), strict=True
    ):
        media = of_batch.reshape(len(batch.ids), -1, of_batch.shape[-1])  # [B, M·K, D]
        text = network.llm.embed(batch.ids)  # [B, T, D]
        # A scatter, because its gradient is a gather. The gradient of a gather would need atomic additions.
        places = batch.places[..., None].expand(-1, -1, text.shape[-1])  # [B, M·K, D]
        found.append(network.llm(text.scatter(1, places, media.to(text.dtype))))
    return found


def answer_loss(network: VilaModel, batches: Sequence[Batch]) -> Tensor:
    """Return the mean cross-entropy over the answer tokens of all batches: every answer token has the same weight."""
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
    """Return whether each answer is entirely right, bool `[B]`.

    Each answer token is predicted from the correct tokens before it. All predictions are right exactly if greedy
    decoding gives the same answer, so this is exact match at the cost of one forward pass.
    """
    (hidden,) = hidden_states(network, [batch])
    predicted = network.llm.logits(hidden[:, :-1]).argmax(-1)
    labels = batch.labels[:, 1:]
    return ((predicted == labels) | (labels == IGNORE_INDEX)).all(1)
