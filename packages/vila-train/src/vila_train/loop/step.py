"""One optimizer step, from packed rows on the device to updated weights. No data is loaded here.

R rows of this rank
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vila_core.model import VilaModel
from vila_core.prompt import PreparedMedium
from vila_core.tiles import Normalization, Tiles
from vila_train.loss import TimeTokens
from vila_train.packing import PackedRow
from vila_train.packing.rows import embedded_loss
from vila_train.parallel.fsdp import accumulates_locally, next_row
from vila_train.parallel.world import sum_over_ranks


class Trainee(nn.Module):
    """The network and its loss: what FSDP wraps, so that all weights are there when `forward` needs them.

    Args:
        network: the model.
        time_tokens: for soft targets.
        always_sees: send a blank tile through tower and projector for rows without media. Sharded weights need it,
            because all ranks must gather the same layers, and it makes steps independent of how rows are divided.
    """

    def __init__(self, network: VilaModel, time_tokens: TimeTokens | None = None, *, always_sees: bool = True):
        super().__init__()
        self.network = network
        self._time_tokens = time_tokens
        self._always_sees = always_sees

    def forward(self, row: PackedRow) -> Tensor:
        """Return the summed loss over the labelled tokens of a row."""
        embeds = self.network.embed(row.batch)  # [T, D]
        if self._always_sees and not row.batch.media:
            # Between embedding and language model, as real tiles: ranks gather layers in one order, in both directions.
            (tokens,) = self.network.encode([self._blank(row.labels.device)])
            embeds = embeds + 0 * tokens.sum().to(embeds.dtype)
        return embedded_loss(self.network, embeds, row, self._time_tokens)

    def _blank(self, device: torch.device) -> PreparedMedium:
        pixels = self.network.config.pixels
        values = torch.zeros(1, 3, pixels.size, pixels.size, dtype=torch.uint8, device=device)
        return PreparedMedium("image", Tiles(values, normalization=Normalization.of(pixels)))


@dataclass(frozen=True)
class StepResult:
    """What a step computed, on the device: nothing waits for it until somebody reads it.

    Attributes:
        loss: mean over the labelled tokens of all ranks, `[]`.
        gradient_norm: before clipping, `[]`.
        row_losses: of this rank's rows, each divided by the labelled tokens of all ranks, `[R]`.
    """

    loss: Tensor
    gradient_norm: Tensor
    row_losses: Tensor


def train_step(
    trainee: Trainee,
    rows: Sequence[PackedRow],
    optimizer: torch.optim.Optimizer,
    *,
    clip_norm: float = 0.0,
    seed: str = "",
    numbers: Sequence[int] | None = None,
    labels: int | None = None,
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
        labels: labelled tokens of all ranks, if they are known.
        keep_gathered: sharded weights stay gathered from the first row to the last.
    """
    device = rows[0].labels.device
    optimizer.zero_grad(set_to_none=True)
    if labels is None:
        count = sum_over_ranks(torch.tensor(float(sum(row.num_labels for row in rows)), device=device))
    else:
        count = float(labels)
    at_end = accumulates_locally(trainee, device)
    losses: list[Tensor] = []
    for index, (row, number) in enumerate(zip(rows, numbers or range(len(rows)), strict=True)):
        is_last = index == len(rows) - 1
        next_row(trainee, is_last=is_last, exchange=is_last or not at_end, keep_gathered=keep_gathered)
        torch.manual_seed(zlib.crc32(f"{seed}/{number}".encode()))
        loss = trainee(row) / count
        loss.backward()
        losses.append(loss.detach())
    norm = clip_gradients(trainee, clip_norm)
    optimizer.step()
    row_losses = torch.stack(losses)
    return StepResult(sum_over_ranks(row_losses.sum()), norm, row_losses)


def clip_gradients(trainee: nn.Module, limit: float) -> Tensor:
    """Scale the gradients so that their norm over all weights and ranks is at most `limit`; 0: leave them.

    Return the norm before, `[]`.
    """
    gradients = [parameter.grad for parameter in trainee.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit:
        nn.utils.clip_grads_with_norm_(trainee.parameters(), limit, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
