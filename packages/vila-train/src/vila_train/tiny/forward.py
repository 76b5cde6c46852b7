"""The batched forward pass and loss of training, on the modules of vila_core.

Dimensions: B samples, M pictures per sample, K tokens per picture, T tokens including media, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.model import PromptBatch, VilaModel
from vila_core.prompt import PreparedMedium
from vila_core.tiles import Tiles, normalize
from vila_train.labels import IGNORE_INDEX
from vila_train.loss import cross_entropy_sum


@dataclass(frozen=True)
class Batch:
    """Samples with the same number of pictures, padded to the same length.

    Attributes:
        pixels: uint8 `[B, M, 3, S, S]`. While the language model of vila-tiny-u is trained, codes int16 `[B, M, P, D]`.
        ids, labels: int64 `[B, T]`, as in `vila_train.tiny.data.Encoded`.
        places: int64 `[B, M·K]`, the positions of the media tokens.
    """

    pixels: Tensor
    ids: Tensor
    places: Tensor
    labels: Tensor


def hidden_states(network: VilaModel, batches: Sequence[Batch]) -> list[Tensor]:
    """Return the last hidden states of each batch, `[B, T, D]`. The tower encodes all pictures in one call."""
    sizes = [batch.ids.numel() for batch in batches]
    embeds = network.embed(_as_prompts(network, batches)).split(sizes)  # [B·T, D] each
    return [network.llm(of_batch.view(*batch.ids.shape, -1)) for of_batch, batch in zip(embeds, batches, strict=True)]


def _as_prompts(network: VilaModel, batches: Sequence[Batch]) -> PromptBatch:
    """Return all samples as one batch of prompts, without host synchronization, so that a CUDA graph can capture it."""
    pixels = torch.cat([batch.pixels.flatten(0, 1) for batch in batches])  # [sum of B·M, 3, S, S]
    places: list[Tensor] = []
    start = 0
    for batch in batches:
        rows = start + torch.arange(len(batch.ids), device=batch.ids.device) * batch.ids.shape[1]  # [B]
        places.append((rows[:, None] + batch.places).flatten())
        start += batch.ids.numel()
    return PromptBatch(
        ids=torch.cat([batch.ids.flatten() for batch in batches]),
        places=torch.cat(places),
        media=[PreparedMedium("video", Tiles(normalize(pixels, network.config.pixels)))],
        lengths=[batch.ids.shape[1] for batch in batches for _ in range(len(batch.ids))],
    )


def answer_loss(network: VilaModel, batches: Sequence[Batch]) -> Tensor:
    """Return the mean cross-entropy over the answer tokens of all batches: every answer token has the same weight."""
    return token_loss(network, batches, hidden_states(network, batches))


def token_loss(network: VilaModel, batches: Sequence[Batch], states: Sequence[Tensor]) -> Tensor:
    """Return `answer_loss` from the last hidden states of each batch, `[B, T, D]`."""
    total = torch.zeros((), device=batches[0].ids.device)
    for batch, hidden in zip(batches, states, strict=True):
        logits = network.llm.logits(hidden[:, :-1])  # [B, T - 1, V]
        total = total + cross_entropy_sum(logits.flatten(0, 1), batch.labels[:, 1:].flatten())
    count = sum((batch.labels[:, 1:] != IGNORE_INDEX).sum() for batch in batches)
    return total / count


@torch.no_grad()
def exact_matches(network: VilaModel, batch: Batch, hidden: Tensor) -> Tensor:
    """Return whether each answer is entirely right, bool `[B]`. `hidden` are the last hidden states, `[B, T, D]`.

    Each answer token is predicted from the correct tokens before it. All predictions are right exactly if greedy
    decoding gives the same answer, so this is exact match at the cost of one forward pass.
    """
    predicted = network.llm.logits(hidden[:, :-1]).argmax(-1)
    labels = batch.labels[:, 1:]
    return ((predicted == labels) | (labels == IGNORE_INDEX)).all(1)
