"""The rows of a decode step: which token each reads next, where, from which pages, and how its next one is chosen.

R rows, B rows of a step, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vila_core.uploads import upload

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class RowSampling:
    """How to choose a row's tokens; see `GenerationConfig`. `logit_bias` holds pairs of a token id and a number."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def changes_logits(self) -> bool:
        """Whether there is a penalty or a bias."""
        penalties = self.repetition_penalty != 1, self.presence_penalty != 0, self.frequency_penalty != 0
        return any(penalties) or bool(self.logit_bias)


@dataclass(frozen=True)
class StepKind:
    """The sampling features that at least one row needs; the others are not affected."""

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
            penalizes=any(row.changes_logits for row in rows),
            masks=masks,
        )


@dataclass(frozen=True)
class StepRows:
    """The state of up to R rows. A step of B rows reads the first B, so rows in use should come first.

    Attributes:
        ids: int64 `[R]`: the token that the row reads next.
        positions: int64 `[R]`: its position; negative if the row is not in use.
        table: int32 `[R, pages of a row]`: the row's pages; entries that it does not need yet are any page.
        temperature, top_p: float32 `[R]`.
        top_k: int32 `[R]`.
        seeds: int64 `[R]`.
        penalty, presence, frequency: float32 `[R]`: the repetition, presence and frequency penalties.
        counts: int32 `[R, V]`: how often each token is in the answer so far, if the row has penalties.
        bias: float32 `[R, V]`: what is added to the logits.
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
    presence: Tensor
    frequency: Tensor
    counts: Tensor
    bias: Tensor
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
            presence=zeros(dtype=torch.float32), frequency=zeros(dtype=torch.float32),
            counts=zeros(vocabulary, dtype=torch.int32), bias=zeros(vocabulary, dtype=torch.float32),
            allowed=zeros(-(-vocabulary // 32), dtype=torch.int32) - 1,
        )  # fmt: skip

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.counts.shape[1]

    def start(
        self, row: int, position: int, pages: Sequence[int], sampling: RowSampling, answer: Sequence[int] = ()
    ) -> None:
        """Use `row` for a sequence whose first `position` tokens are in `pages`; penalties count those of `answer`."""
        self.set_pages(row, pages)
        # `fill_` and not assignments, which would copy a number from the host and wait for the GPU.
        self.positions[row].fill_(position)
        self.temperature[row].fill_(sampling.temperature)
        self.top_k[row].fill_(min(sampling.top_k, self.vocabulary))
        self.top_p[row].fill_(sampling.top_p)
        self.seeds[row].fill_(sampling.seed)
        self.penalty[row].fill_(sampling.repetition_penalty)
        self.presence[row].fill_(sampling.presence_penalty)
        self.frequency[row].fill_(sampling.frequency_penalty)
        self.bias[row].zero_()  # other rows of a step may have penalties, and all rows are then computed alike
        if sampling.changes_logits:
            self._start_penalties(row, sampling, answer)
        self.allowed[row].fill_(-1)

    def _start_penalties(self, row: int, sampling: RowSampling, answer: Sequence[int]) -> None:
        device = self.counts.device
        answered = torch.tensor(answer, dtype=torch.int64, device=device)
        self.counts[row] = torch.bincount(answered, minlength=self.vocabulary)
        if sampling.logit_bias:
            ids, biases = zip(*sampling.logit_bias, strict=True)
            self.bias[row, torch.tensor(ids, device=device)] = torch.tensor(biases, device=device)

    def set_pages(self, row: int, pages: Sequence[int], first: int = 0) -> None:
        """Set the pages of `row` from its page number `first` on."""
        self.table[row, first : first + len(pages)] = upload(pages, self.table.device, torch.int32)

    def allow(self, row: int, bitmask: Tensor) -> None:
        """Restrict the next token of `row` to those whose bit in int32 `[⌈V / 32⌉]` is set; -1 allows all."""
        self.allowed[row] = upload(bitmask, self.allowed.device)

    def advance(self, tokens: Sequence[Sequence[int]], *, penalizes: bool) -> None:
        """Advance the first rows by the `tokens` of each, at least one, of which all but the last have been read."""
        device = self.ids.device
        self.ids[: len(tokens)] = torch.tensor([max(ids[-1], 0) for ids in tokens], device=device)
        self.positions[: len(tokens)] += torch.tensor([len(ids) for ids in tokens], device=device)
        if penalizes:
            pairs = [(row, token_id) for row, ids in enumerate(tokens) for token_id in ids if token_id >= 0]
            rows, chosen = torch.tensor(pairs, dtype=torch.int64, device=device).view(-1, 2).unbind(1)
            self.counts.index_put_((rows, chosen), torch.ones_like(rows, dtype=torch.int32), accumulate=True)

    def move(self, source: int, target: int) -> None:
        """Make row `target` what row `source` is, and take `source` out of use."""
        for field in fields(self):
            tensor: Tensor = getattr(self, field.name)
            tensor[target] = tensor[source]
        self.stop(source)

    def stop(self, row: int) -> None:
        """Take `row` out of use."""
        self.positions[row].fill_(-1)

    @contextmanager
    def unused(self) -> Generator[None]:
        """Take all rows out of use for a while: a step then writes nothing to a cache."""
        in_use = self.positions.clone()
        self.positions.fill_(-1)
        try:
            yield
        finally:
            self.positions.copy_(in_use)

    def first(self, count: int) -> StepRows:
        """Return the first `count` rows; memory is shared."""
        return self.part(0, count)

    def part(self, start: int, end: int) -> StepRows:
        """Return rows `start` … `end` - 1; memory is shared."""
        return StepRows(*(getattr(self, field.name)[start:end] for field in fields(self)))

    def pick(self, rows: Tensor) -> StepRows:
        """Return copies of some rows, int64 `[n]`."""
        return StepRows(*(getattr(self, field.name)[rows] for field in fields(self)))

    def choose(self, function: Callable[..., Tensor], logits: Tensor, kind: StepKind, *, ahead: int) -> Tensor:
        """Choose a token for each row from `logits [R, V]`; `function` is a `choose_tokens` of `ops`."""
        return function(
            logits, self.ids, self.positions, self.temperature, self.top_k, self.top_p, self.seeds, self.penalty,
            self.presence, self.frequency, self.counts, self.bias, self.allowed, ahead,
            kind.draws, kind.top_k, kind.top_p, kind.penalizes, kind.masks,
        )  # fmt: skip


@dataclass(frozen=True)
class ReadyTokens:
    """Tokens that have been computed."""

    logits: Tensor
    chosen: Tensor

    def tokens(self) -> list[Any]:
        return self.chosen.tolist()
