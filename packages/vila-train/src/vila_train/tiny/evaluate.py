"""Exact match by task, with its standard error."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vila_core.model import VilaModel
from vila_train.tiny.forward import exact_matches
from vila_train.tiny.loop import autocast
from vila_train.tiny.pools import Pool


@dataclass(frozen=True)
class Score:
    """`right` of `total` answers."""

    right: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.right / self.total

    @property
    def standard_error(self) -> float:
        """Of the accuracy, by the binomial distribution."""
        return (self.accuracy * (1 - self.accuracy) / self.total) ** 0.5


def score(network: VilaModel, pools: Mapping[str, Pool], batch_size: int = 128) -> dict[str, Score]:
    """Return the score of each pool, from the true answers in one pass (see `exact_matches`)."""
    device = next(network.parameters()).device
    scores: dict[str, Score] = {}
    with (
        autocast(device),
        torch.compiler.set_stance("force_eager"),
    ):  # other shapes than training's: not worth compiling
        for task, pool in pools.items():
            right = sum(exact_matches(network, batch).sum() for batch in pool.in_order(batch_size))
            scores[task] = Score(int(right), len(pool))
    return scores


def table(scores: Mapping[str, Score]) -> str:
    """Return the scores as a Markdown table; the last row is all tasks together."""
    rows = ["| task | exact match | standard error | n |", "| --- | ---: | ---: | ---: |"]
    whole = Score(sum(s.right for s in scores.values()), sum(s.total for s in scores.values()))
    for task, one in [*scores.items(), ("**all**", whole)]:
        rows.append(f"| {task} | {100 * one.accuracy:.1f} % | {100 * one.standard_error:.1f} | {one.total} |")
    return "\n".join(rows)
