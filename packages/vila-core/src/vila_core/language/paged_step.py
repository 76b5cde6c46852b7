"""The decode step of a batch whose rows come and go: ids in, next ids out, over a paged cache.

R rows, B rows of a step, V vocabulary, D width

Rows and their settings are tensors on the model's device. A step reads them and writes the new ids where the next step
finds them, so that steps follow one another without waiting for the host: call `launch` again before `tokens()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from vila_core.language.fused_step import step_refusal
from vila_core.ops.reference import UNUSABLE, choose_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vila_core.language import LanguageModel
    from vila_core.language.decoder import Decoder
    from vila_core.language.paged_cache import PagedCache

GPU_PAGE_SIZE = 64
"""The GPU kernels take pages of multiples of this."""


@dataclass(frozen=True)
class RowSampling:
    """How to choose a row's tokens; see `GenerationConfig`."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class StepKind:
    """What at least one of the rows needs; the others are not affected."""

    draws: bool = False
    top_k: bool = False
    top_p: bool = False
    penalizes: bool = False
    masks: bool = False

    @classmethod
    def of(cls, rows: Iterable[RowSampling], *, masks: bool = False) -> StepKind:
        """Return the kind for rows with these settings; `masks`: some of them is restricted by `StepRows.allow`."""
        rows = tuple(rows)
        drawing = [row for row in rows if row.temperature > 0]
        return cls(
            draws=bool(drawing),
            top_k=any(row.top_k > 0 for row in drawing),
            top_p=any(row.top_p < 1 for row in drawing),
            penalizes=any(row.repetition_penalty != 1 for row in rows),
            masks=masks,
        )


@dataclass(frozen=True)
class StepRows:
    """The state of up to R rows. A step of B rows reads the first B, so rows in use should come first.

    Attributes:
        ids: int64 `[R]`: the token that the row reads next.
        positions: int64 `[R]`: its position; negative if the row is not in use.
        table: int32 `[R, pages of a row]`: the row's pages; entries that it does not need yet are any page.
        temperature, top_p, penalty: float32 `[R]`.
        top_k: int32 `[R]`.
        seeds: int64 `[R]`.
        seen: bool `[R, V]`: tokens that the repetition penalty counts.
        allowed: int32 `[R, ⌈V / 32⌉]`: a bit for each token that a grammar allows, the lowest first.
    """

    ids: Tensor
    positions: Tensor
    table: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seeds: Tensor
    penalty: Tensor
    seen: Tensor
    allowed: Tensor

    @classmethod
    @torch.inference_mode(False)
    def allocate(cls, max_rows: int, max_pages: int, vocabulary: int, device: torch.device) -> StepRows:
        """Return rows that are not in use."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(max_rows, *shape, dtype=dtype, device=device)

        return cls(
            ids=zeros(), positions=zeros() - 1, table=zeros(max_pages, dtype=torch.int32),
            temperature=zeros(dtype=torch.float32), top_k=zeros(dtype=torch.int32),
            top_p=zeros(dtype=torch.float32) + 1, seeds=zeros(), penalty=zeros(dtype=torch.float32) + 1,
            seen=zeros(vocabulary, dtype=torch.bool), allowed=zeros(-(-vocabulary // 32), dtype=torch.int32) - 1,
        )  # fmt: skip

    def start(self, row: int, position: int, pages: Sequence[int], sampling: RowSampling) -> None:
        """Use `row` for a sequence whose first `position` tokens are in `pages`."""
        self.set_pages(row, pages)
        self.positions[row] = position
        self.temperature[row] = sampling.temperature
        self.top_k[row] = min(sampling.top_k, self.seen.shape[1])
        self.top_p[row] = sampling.top_p
        self.seeds[row] = sampling.seed
        self.penalty[row] = sampling.repetition_penalty
        self.seen[row] = False
        self.allowed[row] = -1

    def set_pages(self, row: int, pages: Sequence[int], first: int = 0) -> None:
        """Set the pages of `row` from its page number `first` on."""
        given = torch.tensor(pages, dtype=torch.int32, device=self.table.device)
        self.table[row, first : first + len(pages)] = given

    def allow(self, row: int, bitmask: Tensor) -> None:
        """Restrict the next token of `row` to those whose bit in int32 `[⌈V / 32⌉]` is set; -1 allows all."""
        self.allowed[row] = bitmask.to(self.allowed.device)

    def move(self, source: int, target: int) -> None:
        """Make row `target` what row `source` is, and take `source` out of use."""
        for field in fields(self):
            tensor: Tensor = getattr(self, field.name)
            tensor[target] = tensor[source]
        self.stop(source)

    def stop(self, row: int) -> None:
        """Take `row` out of use."""
        self.positions[row] = -1

    def first(self, count: int) -> StepRows:
        """Return the first `count` rows; memory is shared."""
        return StepRows(*(getattr(self, field.name)[:count] for field in fields(self)))

    def pick(self, rows: Tensor) -> StepRows:
        """Return copies of some rows, int64 `[n]`."""
        return StepRows(*(getattr(self, field.name)[rows] for field in fields(self)))

    def choose(self, function: Callable[..., Tensor], logits: Tensor, kind: StepKind, *, ahead: int) -> Tensor:
        """Choose a token for each row from `logits [R, V]`; `function` is a `choose_tokens` of `ops`."""
        return function(
            logits, self.ids, self.positions, self.temperature, self.top_k, self.top_p, self.seeds, self.penalty,
            self.seen, self.allowed, ahead, kind.draws, kind.top_k, kind.top_p, kind.penalizes, kind.masks,
        )  # fmt: skip


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

    def choose(self, rows: Sequence[int], logits: Tensor, kind: StepKind) -> PendingTokens:
        """Choose the first tokens of started `rows` from the logits `[n, V]` of their prompts."""
        ...

    def launch(self, count: int, kind: StepKind) -> PendingTokens:
        """Read the next token of each of the first `count` rows, and choose the one after it."""
        ...

    def hidden(self, embeds: Tensor) -> Tensor:
        """Read embeddings `[B, D]` as the next inputs of the first B rows -> hidden states after the final norm.

        For inputs that are not tokens. Advances the positions of the rows, and chooses nothing.
        """
        ...


@dataclass(frozen=True)
class ReadyTokens:
    """Tokens that have been computed."""

    logits: Tensor
    chosen: Tensor

    def tokens(self) -> list[int]:
        return self.chosen.tolist()


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

    @torch.inference_mode()
    def choose(self, rows: Sequence[int], logits: Tensor, kind: StepKind) -> ReadyTokens:
        return self._choose(torch.tensor(rows, device=logits.device), logits, kind, ahead=0)

    @torch.inference_mode()
    def launch(self, count: int, kind: StepKind) -> ReadyTokens:
        live = (self._rows.positions[:count] >= 0).nonzero()[:, 0]
        found = self._choose(live, self._logits(live), kind, ahead=1) if len(live) else None
        if found is not None and len(live) == count:
            return found
        logits = torch.zeros(count, self._rows.seen.shape[1], device=live.device)
        chosen = live.new_full((count,), UNUSABLE)
        if found is not None:
            logits[live], chosen[live] = found.logits.float(), found.chosen
        return ReadyTokens(logits, chosen)

    @torch.inference_mode()
    def hidden(self, embeds: Tensor) -> Tensor:
        live = (self._rows.positions[: len(embeds)] >= 0).nonzero()[:, 0]
        hidden = torch.zeros_like(embeds)
        hidden[live] = self._hidden(live, embeds[live][:, None])
        self._rows.positions[live] += 1
        return hidden

    def _logits(self, live: Tensor) -> Tensor:
        return self._llm.logits(self._hidden(live, self._llm.embed(self._rows.ids[live][:, None])))

    @abstractmethod
    def _hidden(self, live: Tensor, embeds: Tensor) -> Tensor:
        """`[n, 1, D]` -> `[n, D]`, for rows in use."""

    def _choose(self, rows: Tensor, logits: Tensor, kind: StepKind, *, ahead: int) -> ReadyTokens:
        picked = self._rows.pick(rows)
        chosen = picked.choose(choose_tokens, logits, kind, ahead=ahead)
        self._rows.ids[rows], self._rows.positions[rows] = picked.ids, picked.positions
        if kind.penalizes:
            self._rows.seen[rows] = picked.seen
        return ReadyTokens(logits, chosen)


class TorchPagedStep(TorchStep):
    """The step of a decoder over a paged cache.

    Args:
        decoder: the language model.
        cache: its pages.
        rows: their state.
    """

    def __init__(self, decoder: Decoder, cache: PagedCache, rows: StepRows):
        super().__init__(decoder, rows)
        self._cache = cache

    def _hidden(self, live: Tensor, embeds: Tensor) -> Tensor:
        positions = self._rows.positions[live]
        cache = self._cache.rows(self._rows.table[live]).up_to(int(positions.max()) + 1)
        return self._llm.decode_step(embeds, positions[:, None], cache)[:, -1]


def paged_step(decoder: Decoder, cache: PagedCache, max_rows: int, max_pages: int) -> PagedStep:
    """Return the fastest step for a decoder on its device: captured in CUDA graphs, or in plain PyTorch.

    Args:
        decoder: the language model, in the dtype of the cache.
        cache: its pages.
        max_rows: R.
        max_pages: how many pages a row may have.
    """
    weight = decoder.model.embed_tokens.weight
    rows = StepRows.allocate(max_rows, max_pages, decoder.config.vocab_size, weight.device)
    reason = step_refusal(decoder.config, weight.device, weight.dtype)
    if reason is None and cache.page_size % GPU_PAGE_SIZE == 0:
        from vila_core.language.paged_graphs import GraphPagedStep  # needs Triton

        return GraphPagedStep(decoder, cache, rows)
    return TorchPagedStep(decoder, cache, rows)
