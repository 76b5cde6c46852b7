"""The runner protocol: reads chunks of prompts, and adds one token per step to the answers.

`PagedRunner` runs a decoder of this package over a paged KV cache. `SeparateRunner` runs any other language model, with
a cache of its own for each request, which is neither shared nor read in chunks.

n requests, T tokens of a chunk, D width, V vocabulary
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from vila_core.engine.completion import TokenLogprobs
from vila_core.engine.drawing_step import PendingDrawings
from vila_core.engine.pages import PagePool
from vila_core.language.paged_step import PendingTokens

if TYPE_CHECKING:
    from vila_core.engine.request import Request


class Runner(Protocol):
    """Computes for an engine.

    Attributes:
        device: of the model.
        dtype: of the model.
        pool: the pages of its KV cache.
        reads_in_chunks: whether a prompt may be read in parts, and its pages be shared.
        overlaps: whether a step may be launched before the tokens of the last one are known.
        checks_drafts: whether `step` takes drafts.
    """

    device: torch.device
    dtype: torch.dtype
    pool: PagePool
    reads_in_chunks: bool
    overlaps: bool
    checks_drafts: bool

    def pages_for(self, tokens: int) -> int:
        """Return how many pages a request of so many tokens needs."""
        ...

    def copy_page(self, source: int, target: int) -> None:
        """Copy the keys and values of a page to another one."""
        ...

    def read(self, requests: "Sequence[Request]", embeds: Sequence[Tensor]) -> Tensor:
        """Read the next tokens `[T_i, D]` of each request; return the hidden states of the last ones, `[n, D]`.

        Several requests are read together only from their beginnings.
        """
        ...

    def start(self, requests: "Sequence[Request]", hidden: Tensor) -> "PendingStep":
        """Give rows to requests that have been read, and choose their first tokens from `hidden [n, D]`."""
        ...

    def start_drawing(self, requests: "Sequence[Request]", hidden: Tensor) -> "PendingStep":
        """Give rows to requests that draw, and to their companions, and choose the first codes.

        Args:
            requests: without companions.
            hidden: `[n, D]`, of each request and then of its companion.
        """
        ...

    def step(self, drafts: "Mapping[Request, Sequence[int]]") -> "PendingStep":
        """Read the last token of every request that has a row, and choose the next; let those that draw draw.

        Args:
            drafts: what the next tokens of some requests may be. Such a request gets as many tokens as the draft is
                right about, and one more. The last token of every request must be known.
        """
        ...

    def leave(self, request: "Request") -> None:
        """Forget a request, whether it has a row or not."""
        ...


@dataclass(frozen=True)
class PendingStep:
    """The tokens of a step, which the device may still be computing.

    Attributes:
        requests: in the order of their rows; one that gets several tokens comes as often.
        chosen: their tokens.
        dtype: of the model.
        logprobs: log-probabilities of all tokens; None if nobody asked.
        drawn: what other requests draw in the same step.
    """

    requests: "Sequence[Request]"
    chosen: PendingTokens
    dtype: torch.dtype
    logprobs: "Logprobs | None" = None
    drawn: "PendingDrawings | None" = None

    def tokens(self) -> "Iterator[tuple[Request, int, TokenLogprobs | None]]":
        """Yield each request with its token (-1 if the logits cannot be used) and, if it asked, its log-probability."""
        chosen = self.chosen.tokens()
        for row, (request, token_id) in enumerate(zip(self.requests, chosen, strict=False)):
            wanted = self.logprobs if request.config.logprobs and token_id >= 0 else None
            yield request, token_id, wanted and wanted.of(row, token_id, request.config.top_logprobs)


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of a step.

    Attributes:
        all: `[n, V]`.
    """

    all: Tensor

    def of(self, row: int, token_id: int, count: int) -> TokenLogprobs:
        """Return those of the chosen token and of the `count` likeliest."""
        line = self.all[row]
        values, ids = line.topk(min(count, len(line)))
        return TokenLogprobs(token_id, float(line[token_id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
