"""Exact-match accuracy per task, with its 95 % interval."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.intervals import wilson_interval
from vila_core.model import VilaModel
from vila_train.tiny.forward import Batch, exact_matches, hidden_states
from vila_train.tiny.loop import autocast
from vila_train.tiny.pools import Pool


@dataclass(frozen=True)
class Score:
    """`right` answers out of `total`."""

    right: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson_interval(self.accuracy, self.total)


def _hidden_states(network: VilaModel, batch: Batch) -> Tensor:
    (hidden,) = hidden_states(network, [batch])
    return hidden


@torch.no_grad()
def score(
    network: VilaModel,
    pools: Mapping[str, Pool],
    batch_size: int = 128,
    states: Callable[[VilaModel, Batch], Tensor] = _hidden_states,
) -> dict[str, Score]:
    """Return the score of each pool, from one forward pass per batch (see `exact_matches`).

    Args:
        network: the model.
        pools: questions and answers by task.
        batch_size: samples per batch.
        states: returns the last hidden states of a batch, `[B, T, D]`.
    """
    device = next(network.parameters()).device
    scores: dict[str, Score] = {}
    # The shapes differ from those of training and are not worth compiling.
    with autocast(device), torch.compiler.set_stance("force_eager"):
        for task, pool in pools.items():
            right = sum(
                exact_matches(network, batch, states(network, batch)).sum() for batch in pool.in_order(batch_size)
            )
            scores[task] = Score(int(right), len(pool))
    return scores


def table(scores: Mapping[str, Score]) -> str:
    """Return the scores as a Markdown table. The last row is the total."""
    rows = ["| task | exact match | 95 % interval | n |", "| --- | ---: | ---: | ---: |"]
    whole = Score(sum(s.right for s in scores.values()), sum(s.total for s in scores.values()))
    for task, one in [*scores.items(), ("**all**", whole)]:
        low, high = one.interval
        rows.append(f"| {task} | {100 * one.accuracy:.1f} % | {100 * low:.1f}–{100 * high:.1f} | {one.total} |")
    return "\n".join(rows)
