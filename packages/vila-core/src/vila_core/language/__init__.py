"""Language models behind one interface: the native decoder and the transformers adapter.

B batch, T tokens, D width, V vocabulary
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from vila_core.config import LanguageModelConfig
    from vila_core.language.cache import Cache


class DecodeStep(Protocol):
    """Reads one new token of each row. A compiled or captured decoder is another object of this type."""

    def __call__(self, embeds: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Embeddings `[B, 1, D]` at `positions` `[B, 1]` (`[1, 1]` for equal rows) -> hidden states `[B, 1, D]`."""
        ...


class LanguageModel(Protocol):
    """A `torch.nn.Module` that turns embeddings into hidden states and hidden states into logits."""

    @property
    def config(self) -> LanguageModelConfig: ...

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids `[B, T]` int64 -> embeddings `[B, T, D]`."""
        ...

    def __call__(
        self,
        embeds: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        cache: Cache | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings `[B, T, D]` -> hidden states after the final norm `[B, T, D]`.

        Args:
            embeds: causal sequences, padded at the right.
            positions: int64 `[B, T]`, or `[1, T]` for equal rows, when a cache of `new_cache` is continued; None starts
                a sequence at 0.
            cache: filled with the new tokens.
            lengths: tokens of each row without padding, int64 `[B]`; None means no padding. Hidden states of padding
                are finite and otherwise undefined.
        """
        ...

    def decode_step(self, embeds: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Read one new token of each row, as a `DecodeStep` does."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., D]` -> scores of the next token `[..., V]`, in the weights' dtype."""
        ...

    def new_cache(self, batch_size: int, max_length: int) -> Cache:
        """Return an empty cache of `max_length` slots on the model's device, in its dtype."""
        ...
