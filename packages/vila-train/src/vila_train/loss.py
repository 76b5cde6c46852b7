"""The training losses: cross-entropy over the labelled tokens, with soft targets for time tokens, and over the codes of
pictures that are to be drawn.

Losses are sums. Each mean is taken over the targets of the whole global batch, so that accumulation, packing and the
number of ranks do not change it. What is minimized is the sum of both means.

Dimensions: T tokens, V vocabulary, L labelled tokens, K time tokens, D width; P positions that are to be drawn, C codes
of a position, N codes of the codebook.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from vila_core.generation.heads import GenerationHead

LOGITS_AT_ONCE = 2**26
"""Logits that exist at the same time: 256 MB in fp32."""


@dataclass(frozen=True)
class Counts:
    """Numbers of targets that the losses sum over.

    Attributes:
        tokens: labelled ones.
        positions: of pictures that are to be drawn. Each has the same number of codes.
    """

    tokens: int = 0
    positions: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tokens + other.tokens, self.positions + other.positions)


class Losses(NamedTuple):
    """The two losses: sums over the targets of a row, or means. Scalars in fp32 (or fp64).

    Attributes:
        text: over labelled tokens.
        codes: over positions that are to be drawn; of each, the mean over its codes.
    """

    text: Tensor
    codes: Tensor

    def over(self, counts: Counts) -> "Losses":
        """Return sums as shares of the means over `counts`. Without targets, a loss is 0."""
        return Losses(self.text / max(counts.tokens, 1), self.codes / max(counts.positions, 1))

    @property
    def total(self) -> Tensor:
        """What is minimized, of means."""
        return self.text + self.codes


@dataclass(frozen=True)
class TimeTokens:
    """Time tokens and the width of their targets (LITA, arXiv 2403.19046).

    Attributes:
        ids: their ids in order of time, int64 `[K]`.
        std: standard deviation of a target, in time tokens.
    """

    ids: Tensor
    std: float = 1.0


def cross_entropy_sum(logits: Tensor, labels: Tensor, time_tokens: TimeTokens | None = None) -> Tensor:
    """Return the summed loss of logits `[L, V]` and labels `[L]`, an fp32 (or fp64) scalar.

    The target of time token t is proportional to exp(-(t - t')² / 2 std²) over all time tokens t'.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if time_tokens is None:
        return F.cross_entropy(logits, labels, reduction="sum")
    is_time = torch.isin(labels, time_tokens.ids)
    hard = F.cross_entropy(logits[~is_time], labels[~is_time], reduction="sum")
    distance = labels[is_time, None] - time_tokens.ids  # [L_time, K]
    target = torch.softmax(-(distance.to(logits.dtype) ** 2) / (2 * time_tokens.std**2), dim=-1)
    return hard - (target * logits[is_time].log_softmax(dim=-1)[:, time_tokens.ids]).sum()


def chunked_cross_entropy(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    labels: Tensor,
    time_tokens: TimeTokens | None = None,
    *,
    vocab_size: int,
) -> Tensor:
    """Return `cross_entropy_sum` of `head(hidden)` without ever holding all logits.

    Args:
        head: hidden states `[n, D]` to logits `[n, V]`.
        hidden: `[L, D]`.
        labels: int64 `[L]`.
        time_tokens: for soft targets.
        vocab_size: V, which decides the size of a chunk.
    """

    def loss_of(gradient: Tensor, its_labels: Tensor) -> Tensor:
        return cross_entropy_sum(head(gradient), its_labels, time_tokens)

    return _chunked_sum(loss_of, hidden, labels, max(LOGITS_AT_ONCE // vocab_size, 1))


def code_loss(head: "GenerationHead", hidden: Tensor, codes: Tensor) -> Tensor:
    """Return the loss of the head's scores, summed over positions and averaged over the codes of each.

    Args:
        head: scores codes.
        hidden: `[P, D]`, the hidden state before each position.
        codes: the true ones, int64 `[P, C]`.
    """

    def loss_of(gradient: Tensor, its_codes: Tensor) -> Tensor:
        logits = head.logits(gradient, its_codes)  # [n, C, N]
        return cross_entropy_sum(logits.flatten(0, 1), its_codes.flatten()) / head.codes_per_position

    return _chunked_sum(loss_of, hidden, codes, positions_at_once(head))


def positions_at_once(head: "GenerationHead") -> int:
    """Return for how many positions logits exist at the same time."""
    return max(LOGITS_AT_ONCE // (head.codes_per_position * head.codebook_size), 1)


def _chunked_sum(loss_of: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Return the sum of `loss_of` chunks of `hidden` and `targets`.

    Gradients are computed chunk by chunk together with the loss, so that no chunk's logits are kept or computed twice.
    """
    if not torch.is_grad_enabled():
        parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        return sum((loss_of(x, y) for x, y in parts), _zero(hidden))
    parameters = _leaves(loss_of(hidden[:1].detach(), targets[:1])) if len(hidden) else []
    return _ChunkedLoss.apply(loss_of, chunk, targets, hidden, *parameters)  # pyright: ignore[reportReturnType]


def _leaves(output: Tensor) -> list[Tensor]:
    """Return the trainable tensors that `output` was computed from, in a fixed order."""
    found: dict[Tensor, None] = {}
    seen: set[Any] = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # it accumulates the gradient of a leaf
            found[node.variable] = None
        waiting += [parent for parent, _ in node.next_functions]
    return list(found)


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients in `forward`; `backward` scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        chunk: int,
        labels: Tensor,
        hidden: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        total = _zero(hidden)
        grad_hidden = torch.empty_like(hidden)
        sums = [torch.zeros_like(parameter, dtype=total.dtype) for parameter in parameters]
        for start in range(0, len(hidden), chunk):
            stop = start + chunk
            with torch.enable_grad():
                x = hidden[start:stop].detach().requires_grad_()
                loss = loss_of(x, labels[start:stop])
            grad_x, *grad_parameters = torch.autograd.grad(loss, [x, *parameters])
            total += loss.detach()
            grad_hidden[start:stop] = grad_x
            for accumulated, gradient in zip(sums, grad_parameters, strict=True):
                accumulated += gradient
        ctx.gradients = [
            grad_hidden,
            *(accumulated.to(p.dtype) for accumulated, p in zip(sums, parameters, strict=True)),
        ]
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (scale,) = outputs
        return None, None, None, *(gradient.mul_(scale.to(gradient.dtype)) for gradient in ctx.gradients)


def _zero(hidden: Tensor) -> Tensor:
    """Return the 0 of a sum of losses: fp32, or fp64 for fp64."""
    return hidden.new_zeros((), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
