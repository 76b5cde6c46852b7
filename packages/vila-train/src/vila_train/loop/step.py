"""One optimizer step, from packed rows on the device to updated weights. No data is loaded here.

R rows of this rank
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vila_core.model import VilaModel
from vila_train.loss import Counts, Losses, TimeTokens
from vila_train.packing import PackedRow
from vila_train.packing.rows import packed_losses
from vila_train.parallel.fsdp import accumulates_locally, next_row
from vila_train.parallel.world import sum_over_ranks


class Trainee(nn.Module):
    """The network and its loss: what FSDP wraps, so that all weights are there when `forward` needs them.

    Args:
        network: the model.
        time_tokens: for soft targets.
        always_sees: send a blank picture through tower, projector and head for rows that have none to see or to draw.
            Sharded weights need it, because all ranks must gather the same layers, and it makes steps independent of
            how rows are divided.
    """

    def __init__(self, network: VilaModel, time_tokens: TimeTokens | None = None, *, always_sees: bool = True):
        super().__init__()
        self.network = network
        self._time_tokens = time_tokens
        self._always_sees = always_sees

    def forward(self, row: PackedRow) -> Losses:
        """Return the summed losses over the targets of a row."""
        return packed_losses(self.network, row, self._time_tokens, uses_all=self._always_sees)


@dataclass(frozen=True)
class StepResult:
    """What a step computed, on the device: nothing waits for it until somebody reads it.

    Attributes:
        losses: means over the targets of all ranks.
        gradient_norm: before clipping, `[]`.
        row_losses: of this rank's rows, their shares of the sum of both means, `[R]`.
    """

    losses: Losses
    gradient_norm: Tensor
    row_losses: Tensor

    @property
    def loss(self) -> Tensor:
        """What the step minimizes, `[]`."""
        return self.losses.total


def train_step(
    trainee: Trainee,
    rows: Sequence[PackedRow],
    optimizer: torch.optim.Optimizer,
    *,
    clip_norm: float = 0.0,
    seed: str = "",
    numbers: Sequence[int] | None = None,
    counts: Counts | None = None,
    keep_gathered: bool = False,
) -> StepResult:
    """Add up the gradients of all rows of all ranks, clip them, and update the weights.

    Args:
        trainee: in shards, if there is a process group of several ranks.
        rows: of this rank, on the device. All ranks have equally many.
        optimizer: its learning rates are set.
        clip_norm: limit on the norm of all gradients; 0: none.
        seed: the dropout of each row depends on it and on the row's number only.
        numbers: of `rows` among those of all ranks; None: from 0.
        counts: of the targets of all ranks, if they are known.
        keep_gathered: sharded weights stay gathered from the first row to the last.
    """
    device = rows[0].labels.device
    optimizer.zero_grad(set_to_none=True)
    if counts is None:
        counts = _count(rows, device)
    trained = [weight for group in optimizer.param_groups for weight in cast("list[Tensor]", group["params"])]
    at_end = accumulates_locally(trained, device)
    losses: list[Losses] = []
    for index, (row, number) in enumerate(zip(rows, numbers or range(len(rows)), strict=True)):
        is_last = index == len(rows) - 1
        next_row(trainee, is_last=is_last, exchange=is_last or not at_end, keep_gathered=keep_gathered)
        torch.manual_seed(zlib.crc32(f"{seed}/{number}".encode()))
        shares = cast("Losses", trainee(row)).over(counts)
        shares.total.backward()
        losses.append(Losses(shares.text.detach(), shares.codes.detach()))
    norm = clip_gradients(trained, clip_norm)
    optimizer.step()
    of_rows = [torch.stack(of_kind) for of_kind in zip(*losses, strict=True)]  # [R] each
    means = Losses(*(sum_over_ranks(of_kind.sum()) for of_kind in of_rows))
    return StepResult(means, norm, Losses(*of_rows).total)


def _count(rows: Sequence[PackedRow], device: torch.device) -> Counts:
    """Return the counts of the targets of all ranks."""
    own = sum((row.counts for row in rows), Counts())
    tokens, positions = sum_over_ranks(torch.tensor([own.tokens, own.positions], device=device)).tolist()
    return Counts(tokens, positions)


def clip_gradients(trained: Sequence[Tensor], limit: float) -> Tensor:
    """Scale the gradients of weights so that their norm over all weights and ranks is at most `limit`; 0: leave them.

    Return the norm before, `[]`.
    """
    norm = nn.utils.get_total_norm([weight.grad for weight in trained if weight.grad is not None])
    if limit:
        nn.utils.clip_grads_with_norm_(trained, limit, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
