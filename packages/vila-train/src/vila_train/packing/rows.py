"""Packed rows: several samples one after another, each with its own positions and attention.

Dimensions: S samples of a row, T tokens of all of them with media in place, L labelled tokens, D width; P positions of
pictures that are to be drawn, C codes of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from vila_core.language.decoder import Decoder
from vila_core.language.packed import PackedSequences
from vila_core.model import PromptBatch, VilaModel
from vila_train.labels import IGNORE_INDEX
from vila_train.loss import Counts, Losses, TimeTokens, chunked_cross_entropy, code_loss
from vila_train.packing.pictures import embed_row
from vila_train.samples import TrainingSample


@dataclass(frozen=True)
class PackedRow:
    """Samples as one row of tokens without padding.

    Attributes:
        batch: their ids and media.
        labels: int64 `[T]`; `IGNORE_INDEX` at the first token of each sample, which nothing before it predicts.
        names: of the samples.
        predicting: int64 `[L]`, the positions before the labelled tokens.
        targets: int64 `[L]`, the labelled tokens.
        drawing: int64 `[P]`, the positions before those that are to be drawn; None if none is.
        drawn: of each medium, whether it is to be drawn; empty if none is.
    """

    batch: PromptBatch
    labels: Tensor
    names: Sequence[str]
    predicting: Tensor
    targets: Tensor
    drawing: Tensor | None = None
    drawn: Sequence[bool] = ()

    @classmethod
    def of(cls, samples: Sequence[TrainingSample], device: torch.device) -> "PackedRow":
        """Return `samples` as a row on `device`."""
        batch = PromptBatch.of([sample.prompt for sample in samples], [sample.expanded for sample in samples], device)
        labels = [label for sample in samples for label in (IGNORE_INDEX, *sample.labels[1:])]
        labelled = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
        starts = accumulate(map(len, samples), initial=0)
        drawing = [start + place - 1 for start, one in zip(starts, samples, strict=False) for place in one.positions]
        # Made here and not by the network: the number of labelled tokens would have to come back from the GPU.
        return cls(
            batch,
            torch.tensor(labels, device=device),
            [sample.name for sample in samples],
            torch.tensor([place - 1 for place in labelled], dtype=torch.int64, device=device),
            torch.tensor([labels[place] for place in labelled], dtype=torch.int64, device=device),
            torch.tensor(drawing, dtype=torch.int64, device=device) if drawing else None,
            [is_drawn for one in samples for is_drawn in one.drawn or [False] * len(one.prompt.media)]
            if drawing
            else (),
        )

    @property
    def num_labels(self) -> int:
        """L: how many tokens are predicted."""
        return len(self.targets)

    @property
    def counts(self) -> Counts:
        """How many targets it has."""
        return Counts(self.num_labels, 0 if self.drawing is None else len(self.drawing))

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.labels)


def packed_loss(network: VilaModel, row: PackedRow, time_tokens: TimeTokens | None = None) -> Tensor:
    """Return the summed loss over the labelled tokens of a row.

    Divide it by the number of labelled tokens of the global batch.
    """
    return packed_losses(network, row, time_tokens).text


def packed_losses(
    network: VilaModel, row: PackedRow, time_tokens: TimeTokens | None = None, *, uses_all: bool = False
) -> Losses:
    """Return the summed losses of a row.

    Args:
        network: the model.
        row: on its device.
        time_tokens: for soft targets.
        uses_all: all parts of the network compute, those that the row does not need with a blank picture whose weight
            is zero.
    """
    embeds, codes = embed_row(network, row.batch, row.drawn, uses_all=uses_all)
    hidden = hidden_states(network, embeds, row.batch.lengths)  # [T, D]
    text = chunked_cross_entropy(
        lambda x: network.llm.logits(x)[:, : network.text_vocab_size],
        hidden[row.predicting],
        row.targets,
        time_tokens,
        vocab_size=network.config.language_model.vocab_size,
    )
    head = network.generation_head
    if head is None or codes is None:
        return Losses(text, torch.zeros_like(text))
    if row.drawing is None:  # the codes are a blank picture's
        return Losses(text, 0 * code_loss(head, hidden[:1], codes[:1]))
    return Losses(text, code_loss(head, hidden[row.drawing], codes))


def hidden_states(network: VilaModel, embeds: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the last hidden states of packed sequences: `[T, D]` -> `[T, D]`."""
    llm = network.llm
    if isinstance(llm, Decoder):
        return llm(embeds[None], packed=PackedSequences.of(lengths, embeds.device))[0]
    # Other language models do not know packed rows.
    return torch.cat([llm(of_sample[None])[0] for of_sample in embeds.split(list(lengths))])
