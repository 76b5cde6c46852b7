"""Packed rows: several samples one after another, each with its own positions and attention.

Dimensions: S samples of a row, T tokens of all of them with media in place, L labelled tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.language.decoder import Decoder
from vila_core.language.packed import PackedSequences
from vila_core.model import PromptBatch, VilaModel
from vila_train.labels import IGNORE_INDEX
from vila_train.loss import TimeTokens, chunked_cross_entropy
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
    """

    batch: PromptBatch
    labels: Tensor
    names: Sequence[str]
    predicting: Tensor
    targets: Tensor

    @classmethod
    def of(cls, samples: Sequence[TrainingSample], device: torch.device) -> "PackedRow":
        """Return `samples` as a row on `device`."""
        batch = PromptBatch.of([sample.prompt for sample in samples], [sample.expanded for sample in samples], device)
        labels = [label for sample in samples for label in (IGNORE_INDEX, *sample.labels[1:])]
        labelled = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
        # Made here and not by the network: the number of labelled tokens would have to come back from the GPU.
        return cls(
            batch,
            torch.tensor(labels, device=device),
            [sample.name for sample in samples],
            torch.tensor([place - 1 for place in labelled], dtype=torch.int64, device=device),
            torch.tensor([labels[place] for place in labelled], dtype=torch.int64, device=device),
        )

    @property
    def num_labels(self) -> int:
        """L: how many tokens are predicted."""
        return len(self.targets)

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.labels)


def packed_loss(network: VilaModel, row: PackedRow, time_tokens: TimeTokens | None = None) -> Tensor:
    """Return the summed loss over the labelled tokens of a row.

    Divide it by the number of labelled tokens of the global batch.
    """
    return embedded_loss(network, network.embed(row.batch), row, time_tokens)


def embedded_loss(network: VilaModel, embeds: Tensor, row: PackedRow, time_tokens: TimeTokens | None = None) -> Tensor:
    """Return `packed_loss` of a row that is embedded already, `[T, D]`."""
    hidden = hidden_states(network, embeds, row.batch.lengths)[row.predicting]  # [L, D]
    vocab_size = network.config.language_model.vocab_size
    return chunked_cross_entropy(network.llm.logits, hidden, row.targets, time_tokens, vocab_size=vocab_size)


def hidden_states(network: VilaModel, embeds: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the last hidden states of packed sequences: `[T, D]` -> `[T, D]`."""
    llm = network.llm
    if isinstance(llm, Decoder):
        return llm(embeds[None], packed=PackedSequences.of(lengths, embeds.device))[0]
    # Other language models do not know packed rows.
    return torch.cat([llm(of_sample[None])[0] for of_sample in embeds.split(list(lengths))])
