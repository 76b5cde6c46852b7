"""Reading several tokens of each row at once, to check drafts of what comes next.

n tokens of all rows, B rows, T tokens of the longest, D width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vila_core.language.divided import DividedPages, NativeDecoder
    from vila_core.language.paged_cache import PagedCache
    from vila_core.language.paged_rows import StepRows


@dataclass(frozen=True)
class TokensAhead:
    """The tokens that rows 0 … B - 1 read at once: for each its next token, then its draft.

    Attributes:
        ids: those of each row.
        starts: the position of the first token of each row.
        allowed: int32 `[n, ⌈V / 32⌉]`: which tokens a grammar allows after each; None if no row has a grammar.
    """

    ids: Sequence[Sequence[int]]
    starts: Sequence[int]
    allowed: Tensor | None = None

    def rows(self, device: torch.device) -> Tensor:
        """Return the row of each token, int64 `[n]`."""
        return torch.tensor([row for row, ids in enumerate(self.ids) for _ in ids], device=device)

    def positions(self, device: torch.device) -> Tensor:
        """Return the position of each token, int64 `[n]`."""
        pairs = zip(self.starts, self.ids, strict=True)
        return torch.tensor([start + i for start, ids in pairs for i in range(len(ids))], device=device)

    def flat_ids(self, device: torch.device) -> Tensor:
        """Return the ids, int64 `[n]`."""
        return torch.tensor([token_id for ids in self.ids for token_id in ids], device=device)

    def pick(self, state: StepRows, *, penalizes: bool) -> StepRows:
        """Return a copy of its row for each token, as the row would be before it chooses the token after."""
        device = state.ids.device
        picked = state.pick(self.rows(device))
        picked.positions.copy_(self.positions(device))
        if self.allowed is not None:
            picked.allowed.copy_(self.allowed)
        if penalizes:  # each token of a draft counts for those that follow it
            for first, ids in zip(self.offsets, self.ids, strict=True):
                for i, token_id in enumerate(ids[1:], start=1):
                    picked.counts[first + i : first + len(ids), token_id] += 1
        return picked

    @property
    def offsets(self) -> list[int]:
        """Where the tokens of each row begin among all."""
        return [0, *accumulate(len(ids) for ids in self.ids)][:-1]

    @property
    def mostly_padding(self) -> bool:
        """Whether a batch of rows padded to the longest would be more than half padding."""
        counts = [len(ids) for ids in self.ids]
        return len(counts) * max(counts) > 2 * sum(counts)

    def agreed(self, chosen: Sequence[int]) -> list[range]:
        """Return which of the tokens `chosen` after each are the next ones of each row: as many as the draft foresaw,
        and one more."""
        found: list[range] = []
        for first, ids in zip(self.offsets, self.ids, strict=True):
            right = 0
            while right + 1 < len(ids) and chosen[first + right] == ids[right + 1]:
                right += 1
            found.append(range(first, first + right + 1))
        return found


@dataclass(frozen=True)
class PaddedTokens:
    """`TokensAhead` as a batch. Instead of padding, the last token of a row is read again: it writes what it wrote.

    Attributes:
        ids, positions: int64 `[B, T]`.
        place: int64 `[n]`: where each token is in the flattened batch.
    """

    ids: Tensor
    positions: Tensor
    place: Tensor

    @classmethod
    def of(cls, ahead: TokensAhead, device: torch.device) -> Self:
        longest = max(len(ids) for ids in ahead.ids)
        steps = torch.arange(longest, device=device)
        last = torch.tensor([len(ids) - 1 for ids in ahead.ids], device=device)
        index = torch.minimum(steps, last[:, None])  # [B, T]
        padded = nn.utils.rnn.pad_sequence([torch.tensor(ids, device=device) for ids in ahead.ids], batch_first=True)
        positions = torch.tensor(ahead.starts, device=device)[:, None] + index
        return cls(padded.gather(1, index), positions, (steps <= last[:, None]).flatten().nonzero()[:, 0])


def read_as_chunks(
    decoder: NativeDecoder, cache: PagedCache | DividedPages, table: Tensor, ahead: TokensAhead
) -> Tensor:
    """Read tokens of rows with pages `table [B, pages of a row]` in one forward pass -> hidden states `[n, D]`."""
    padded = PaddedTokens.of(ahead, table.device)
    limit = max(start + len(ids) for start, ids in zip(ahead.starts, ahead.ids, strict=True))
    hidden = decoder(decoder.embed(padded.ids), positions=padded.positions, cache=cache.rows(table).up_to(limit))
    return hidden.flatten(0, 1)[padded.place]
