"""The decode step of a batch whose rows come and go: ids in, next ids out, over a paged cache.

R rows, B rows of a step, V vocabulary, D width

Rows and their settings are tensors on the model's device. A step reads them and writes the new ids where the next step
finds them, so that steps follow one another without waiting for the host: call `launch` again before `tokens()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from vila_core.language.divided import DividedDecoder, DividedPages, NativeDecoder, embedding, parts_of
from vila_core.language.fused_step import step_refusal
from vila_core.language.paged_rows import ReadyTokens, StepKind, StepRows
from vila_core.language.read_ahead import TokensAhead, read_as_chunks
from vila_core.ops.reference import UNUSABLE, choose_tokens

if TYPE_CHECKING:
    from vila_core.language import LanguageModel
    from vila_core.language.paged_cache import PagedCache

GPU_PAGE_SIZE = 64
"""The GPU kernels take pages of multiples of this."""


class PendingTokens(Protocol):
    """The tokens of one step, which the device may still be computing."""

    @property
    def logits(self) -> Tensor:
        """`[n, V]`, as the model computed them; valid until the next step is launched."""
        ...

    def tokens(self) -> list[int]:
        """Wait for the step; return a token for each row, -1 where the logits cannot be used or the row is not."""
        ...


class PagedStep(Protocol):
    """Decodes rows of a paged cache."""

    @property
    def rows(self) -> StepRows: ...

    @property
    def choose_tokens(self) -> Callable[..., Tensor]:
        """The `choose_tokens` of `ops` that it uses."""
        ...

    @property
    def choose_codes(self) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """The `choose_codes` of `ops` that it uses; None if codes are chosen as tokens are."""
        ...

    def choose(self, rows: Sequence[int], logits: Tensor, kind: StepKind) -> PendingTokens:
        """Choose the first tokens of started `rows` from the logits `[n, V]` of their prompts."""
        ...

    def launch(self, count: int, kind: StepKind) -> PendingTokens:
        """Read the next token of each of the first `count` rows, and choose the one after it."""
        ...

    def read_ahead(self, ahead: TokensAhead, kind: StepKind) -> ReadyTokens:
        """Read several tokens of each of the first rows, and choose the one after each of them.

        The rows stay as they are; `StepRows.advance` advances them.
        """
        ...

    def hidden(self, embeds: Tensor) -> Tensor:
        """Read embeddings `[B, D]` as the next inputs of the first B rows -> hidden states after the final norm.

        For inputs that are not tokens. Advances the positions of the rows, and chooses nothing.
        """
        ...

    def draw(self, drawer: Drawer, count: int, kind: StepKind) -> PendingCodes:
        """Read the embeddings of the first `count` rows, which all draw, and let them draw."""
        ...

    def draw_after(self, drawer: Drawer, hidden: Tensor, kind: StepKind) -> PendingCodes:
        """Let the first B rows draw from their hidden states `[B, D]`."""
        ...


class Drawer(Protocol):
    """Chooses from hidden states what is not a token, such as the codes of an image, and what is read after it.

    Attributes:
        embeds: `[R, D]`, never moves: what the first rows read next.
    """

    embeds: Tensor

    def draw(self, hidden: Tensor, kind: StepKind, first: int = 0) -> Tensor:
        """Choose from `hidden [B, D]` of the rows from `first` on; return what was chosen, int64 `[B, …]`.

        Writes what these rows read next to `embeds`. Waits for nothing.
        """
        ...

    def unused(self) -> AbstractContextManager[None]:
        """Let `draw` change nothing for a while."""
        ...


class PendingCodes(Protocol):
    """What the rows of a step drew, which the device may still be computing."""

    def tokens(self) -> list[Any]:
        """Wait for the step; return a list of codes for each row."""
        ...


class TorchStep(ABC):
    """A `PagedStep` in plain PyTorch, on any device, for any language model.

    Args:
        llm: the language model.
        rows: their state.
    """

    def __init__(self, llm: LanguageModel, rows: StepRows):
        self._llm = llm
        self._rows = rows

    @property
    def rows(self) -> StepRows:
        return self._rows

    @property
    def choose_tokens(self) -> Callable[..., Tensor]:
        return choose_tokens

    @property
    def choose_codes(self) -> None:
        return None

    @torch.inference_mode()
    def choose(self, rows: Sequence[int], logits: Tensor, kind: StepKind) -> ReadyTokens:
        return self._choose(torch.tensor(rows, device=logits.device), logits, kind, ahead=0)

    @torch.inference_mode()
    def launch(self, count: int, kind: StepKind) -> ReadyTokens:
        live = (self._rows.positions[:count] >= 0).nonzero()[:, 0]
        found = self._choose(live, self._logits(live), kind, ahead=1) if len(live) else None
        if found is not None and len(live) == count:
            return found
        logits = torch.zeros(count, self._rows.vocabulary, device=live.device)
        chosen = live.new_full((count,), UNUSABLE)
        if found is not None:
            logits[live], chosen[live] = found.logits.float(), found.chosen
        return ReadyTokens(logits, chosen)

    @torch.inference_mode()
    def hidden(self, embeds: Tensor) -> Tensor:
        live = (self._rows.positions[: len(embeds)] >= 0).nonzero()[:, 0]
        hidden = torch.zeros_like(embeds)
        hidden[live] = self._hidden(live, self._rows.positions[live], embeds[live][:, None])
        self._rows.positions[live] += 1
        return hidden

    @torch.inference_mode()
    def draw(self, drawer: Drawer, count: int, kind: StepKind) -> ReadyTokens:
        return self.draw_after(drawer, self.hidden(drawer.embeds[:count]), kind)

    @torch.inference_mode()
    def draw_after(self, drawer: Drawer, hidden: Tensor, kind: StepKind) -> ReadyTokens:
        return ReadyTokens(hidden, drawer.draw(hidden, kind))

    @torch.inference_mode()
    def read_ahead(self, ahead: TokensAhead, kind: StepKind) -> ReadyTokens:
        logits = self._llm.logits(self._hidden_ahead(ahead))
        picked = ahead.pick(self._rows, penalizes=kind.penalizes)
        return ReadyTokens(logits, picked.choose(choose_tokens, logits, kind, ahead=1))

    def _hidden_ahead(self, ahead: TokensAhead) -> Tensor:
        """Read several tokens of each row -> `[n, D]`, every token as if it were a row."""
        device = self._rows.ids.device
        embeds = self._llm.embed(ahead.flat_ids(device)[:, None])
        return self._hidden(ahead.rows(device), ahead.positions(device), embeds)

    def _logits(self, live: Tensor) -> Tensor:
        embeds = self._llm.embed(self._rows.ids[live][:, None])
        return self._llm.logits(self._hidden(live, self._rows.positions[live], embeds))

    @abstractmethod
    def _hidden(self, rows: Tensor, positions: Tensor, embeds: Tensor) -> Tensor:
        """Read a token of rows in use at `positions [n]`: `[n, 1, D]` -> `[n, D]`."""

    def _choose(self, rows: Tensor, logits: Tensor, kind: StepKind, *, ahead: int) -> ReadyTokens:
        picked = self._rows.pick(rows)
        chosen = picked.choose(choose_tokens, logits, kind, ahead=ahead)
        self._rows.ids[rows], self._rows.positions[rows] = picked.ids, picked.positions
        if kind.penalizes:
            self._rows.counts[rows] = picked.counts
        return ReadyTokens(logits, chosen)


class TorchPagedStep(TorchStep):
    """The step of a decoder over a paged cache.

    Args:
        decoder: the language model.
        cache: its pages.
        rows: their state.
    """

    def __init__(self, decoder: NativeDecoder, cache: PagedCache | DividedPages, rows: StepRows):
        super().__init__(decoder, rows)
        self._decoder = decoder
        self._cache = cache

    def _hidden_ahead(self, ahead: TokensAhead) -> Tensor:
        # Chunks read the cache once for each row. A decoder with a step of its own would choose other tokens.
        if self._decoder.has_own_step or ahead.mostly_padding:
            return super()._hidden_ahead(ahead)
        return read_as_chunks(self._decoder, self._cache, self._rows.table[: len(ahead.ids)], ahead)

    def _hidden(self, rows: Tensor, positions: Tensor, embeds: Tensor) -> Tensor:
        # A row may come several times: every layer writes all keys and values before it reads any.
        cache = self._cache.rows(self._rows.table[rows]).up_to(int(positions.max()) + 1)
        return self._llm.decode_step(embeds, positions[:, None], cache)[:, -1]


def paged_step(decoder: NativeDecoder, cache: PagedCache | DividedPages, max_rows: int, max_pages: int) -> PagedStep:
    """Return the fastest step for a decoder on its devices: captured in CUDA graphs, or in plain PyTorch.

    Args:
        decoder: the language model, in the dtype of the cache.
        cache: its pages.
        max_rows: R.
        max_pages: how many pages a row may have.
    """
    weight = embedding(decoder)
    rows = StepRows.allocate(max_rows, max_pages, decoder.config.vocab_size, weight.device)
    reasons = [step_refusal(part.config, part.device, part.dtype) for part in parts_of(decoder)]
    if any(reasons) or cache.page_size % GPU_PAGE_SIZE:
        return TorchPagedStep(decoder, cache, rows)
    if isinstance(decoder, DividedDecoder):
        from vila_core.language.divided_graphs import DividedGraphStep  # needs Triton

        assert isinstance(cache, DividedPages)
        return DividedGraphStep(decoder, cache, rows)
    from vila_core.language.paged_graphs import GraphPagedStep

    assert not isinstance(cache, DividedPages)
    return GraphPagedStep(decoder, cache, rows)
