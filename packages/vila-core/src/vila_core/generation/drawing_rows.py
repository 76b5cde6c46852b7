"""The rows of a decode step that draw: what each reads next, and how its codes are chosen.

R rows, B rows of a step, H width of the language model, D codes of a position, K codebook size

Guidance needs two rows for a picture: one reads the prompt, its companion a prompt that says nothing (or what the
picture should not show). With the logits c and u of the two, the row of the prompt chooses from u + guidance · (c - u)
(Ho and Salimans 2022), and both go on with the code that it chose.

Codes are chosen as tokens are (`ops.choose_tokens`): the draw is argmax(p / q) with q ~ Exp(1), from the numbers that
the row's seed and a counter of its codes give. So a picture depends neither on its batch nor on when it joined.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vila_core.language.paged_rows import RowSampling, StepKind, StepRows
from vila_core.ops.reference import MAX_CODES, UNUSABLE

if TYPE_CHECKING:
    from vila_core.generation.heads import GenerationHead


@dataclass(frozen=True)
class DrawingSampling:
    """How the codes of a row are chosen.

    Attributes:
        guidance: 1 needs no companion.
        temperature: 0 takes the likeliest codes.
        top_k: 0 keeps all codes; more than K keeps all, too.
        top_p: 1 keeps all codes.
        seed: of this picture, see `seed_of_picture`.
    """

    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    @property
    def of_row(self) -> RowSampling:
        """The part that tokens have, too."""
        return RowSampling(self.temperature, self.top_k, self.top_p, self.seed)


def seed_of_picture(seed: int, number: int) -> int:
    """Return the seed of picture `number` of a request, 62 bits. Neighboring numbers have unrelated seeds."""
    digest = blake2b(f"picture {number} of seed {seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


class DrawingRows:
    """The state of up to R rows. A step of B rows draws in the first B.

    Args:
        head: chooses and embeds codes.
        max_rows: R.
        width: H.
        device: of the model.
        dtype: of the model.
        choose_tokens: `ops.reference.choose_tokens`, or the kernels' of `ops.sampling`.
        choose_codes: the kernel of `ops.codes`, which applies guidance too and chooses the same codes; None: codes are
            chosen as tokens are.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        head: GenerationHead,
        max_rows: int,
        width: int,
        device: torch.device,
        dtype: torch.dtype,
        choose_tokens: Callable[..., Tensor],
        choose_codes: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ):
        self._head = head
        self._choose_tokens = choose_tokens
        self._choose_codes = choose_codes if head.codebook_size <= MAX_CODES else None
        self._sampling = StepRows.allocate(max_rows, 1, head.codebook_size, device)
        self._guidance = torch.ones(max_rows, dtype=torch.float32, device=device)
        self._companions = torch.arange(max_rows, device=device)  # whose logits are u; the row itself without guidance
        self._leaders = torch.arange(max_rows, device=device)  # whose codes a row takes
        self.embeds = torch.zeros(max_rows, width, dtype=dtype, device=device)
        """What the rows read next, `[R, H]`."""

    def start(self, row: int, sampling: DrawingSampling, position: int, companion: int | None) -> None:
        """Let `row` draw from `position` of a picture on, guided by the row `companion`, which it leads."""
        self._sampling.start(row, position * self._head.codes_per_position, [0], sampling.of_row)
        self._guidance[row].fill_(sampling.guidance)
        if companion is not None:
            self._sampling.stop(companion)
            self._guidance[companion].fill_(1)
        self.link(row, companion)

    def link(self, row: int, companion: int | None) -> None:
        """Say where a row and its companion are."""
        self._leaders[row].fill_(row)
        self._companions[row].fill_(row if companion is None else companion)
        if companion is not None:
            self._leaders[companion].fill_(row)
            self._companions[companion].fill_(companion)

    def move(self, source: int, target: int) -> None:
        """Make row `target` what row `source` is; `link` it then."""
        self._sampling.move(source, target)
        self._guidance[target] = self._guidance[source]
        self.embeds[target] = self.embeds[source]
        self.link(source, None)  # every row refers to rows of any step that it is in

    def stop(self, row: int) -> None:
        """Take `row` out of use."""
        self._sampling.stop(row)
        self.link(row, None)

    @contextmanager
    def unused(self) -> Generator[None]:
        """Let `draw` change nothing for a while."""
        embeds = self.embeds.clone()
        with self._sampling.unused():
            yield
        self.embeds.copy_(embeds)

    def draw(self, hidden: Tensor, kind: StepKind, first: int = 0) -> Tensor:
        """Choose the next codes of rows from their hidden states, and put there what the rows read next.

        The host waits for nothing, so a CUDA graph can capture it. Rows without a picture draw something that nobody
        reads.

        Args:
            hidden: `[B, H]`, of the rows from `first` on.
            kind: what at least one of the rows needs.
            first: leaders and companions of these rows are among them.

        Returns:
            int64 `[B, D]`; `UNUSABLE` where logits are not finite, and in rows that lead no picture.
        """
        place = slice(first, first + len(hidden))
        sampling = self._sampling.part(first, place.stop)
        companions, leaders = self._companions[place], self._leaders[place]
        if first:
            companions, leaders = companions - first, leaders - first
        guidance = self._guidance[place]
        chosen: list[Tensor] = []

        def pick(depth: int, logits: Tensor) -> Tensor:
            if self._choose_codes is not None:
                codes, usable_codes = self._choose_codes(
                    logits, companions, leaders, guidance, sampling.temperature, sampling.top_k, sampling.top_p,
                    sampling.seeds, sampling.positions, depth + 1, kind.draws, kind.top_k, kind.top_p,
                )  # fmt: skip
                chosen.append(usable_codes)
                return codes
            conditional = logits.float()
            unconditional = conditional.index_select(0, companions)
            guided = unconditional + guidance[:, None] * (conditional - unconditional)
            chosen.append(sampling.choose(self._choose_tokens, guided, kind, ahead=1))
            return sampling.ids.index_select(0, leaders)

        codes = self._head.choose(hidden, pick)
        if self._choose_codes is not None:  # which does not advance the rows
            sampling.positions.add_(sampling.positions >= 0, alpha=len(chosen))
        self.embeds[place] = self._head.embed(codes).to(self.embeds.dtype)
        usable = (torch.stack(chosen) >= 0).all(dim=0)
        return torch.where(usable[:, None], codes, UNUSABLE)
