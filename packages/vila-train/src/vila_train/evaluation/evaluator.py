"""Evaluation inside a run: tasks of vila-eval and of plugins, and the loss on held-out data."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from vila_core.errors import ConfigError, VilaError, warn
from vila_core.model import VilaModel
from vila_core.plugins.hookspecs import EvaluationTask
from vila_core.plugins.loader import load_plugins
from vila_core.runtime import Vila
from vila_train.config import EvaluationConfig, TrainConfig
from vila_train.data.bad_samples import Skipped
from vila_train.data.mixture import Mixture, open_mixture
from vila_train.errors import TrainingError
from vila_train.evaluation.live import evaluation_mode, gathered_weights, live_model
from vila_train.loss import Counts
from vila_train.models import OpenedModel
from vila_train.packing.lanes import SampleEncoder, first_samples
from vila_train.packing.rows import PackedRow, packed_losses

LOSS = "loss"
"""The measure of `evaluation.mixture`."""


@dataclass(frozen=True)
class HeldOut:
    """Samples on which the loss is computed, one by one.

    Attributes:
        mixture: its first `count` samples are used, in an order that does not change.
        encode: makes a training sample of a conversation.
    """

    mixture: Mixture
    count: int
    encode: SampleEncoder

    def losses(self, network: VilaModel, device: torch.device) -> dict[str, float]:
        """Return the mean loss as "loss"; if there are pictures to draw, it is the sum of "loss/text" and "loss/codes".

        Raises:
            TrainingError: there is no labelled token.
        """
        text, codes, counts = 0.0, 0.0, Counts()
        skipped: list[Skipped] = []  # the same ones each time, so that losses compare
        with torch.no_grad(), evaluation_mode(network):
            for found in first_samples(self.mixture, self.encode, self.count):
                if isinstance(found, Skipped):
                    skipped.append(found)
                    continue
                row = PackedRow.of([found[1]], device)
                sums = packed_losses(network, row)
                text, codes, counts = text + float(sums.text), codes + float(sums.codes), counts + row.counts
        if skipped:
            warn(
                f"{len(skipped):,} of {self.count:,} samples of evaluation.mixture cannot be used. The first: "
                f"{skipped[0].message}"
            )
        if not counts.tokens:
            raise TrainingError("The samples of evaluation.mixture have no labelled token that could be used.")
        text /= counts.tokens
        if not counts.positions:
            return {LOSS: text}
        codes /= counts.positions
        return {LOSS: text + codes, f"{LOSS}/text": text, f"{LOSS}/codes": codes}


@dataclass(frozen=True)
class Evaluator:
    """Evaluations of a run, with their data open.

    Attributes:
        config: when and what.
        tasks: by name, what scores a model.
        held_out: for the loss; None: none.
    """

    config: EvaluationConfig
    tasks: Mapping[str, Callable[[Vila], Mapping[str, float]]]
    held_out: HeldOut | None

    @classmethod
    def open(cls, config: TrainConfig, encode: SampleEncoder) -> "Evaluator":
        """Open the data of all evaluations, so that what is missing is reported before training.

        Raises:
            ConfigError: a task is unknown, or cannot be scored inside training.
            VilaError: its data is missing.
            DatasetError: the mixture cannot be opened.
        """
        chosen = config.evaluation
        held_out = None
        if chosen.mixture is not None:
            mixture = open_mixture(config.data.model_copy(update={"mixture": chosen.mixture}), config.seed)
            count = len(mixture) if chosen.limit is None else min(chosen.limit, len(mixture))
            held_out = HeldOut(mixture, count, encode)
        return cls(chosen, {name: _open_task(name, chosen) for name in chosen.tasks}, held_out)

    def is_due(self, step: int, total: int) -> bool:
        """Return whether to evaluate after `step` of `total` steps."""
        if not self.tasks and self.held_out is None:
            return False
        return step == total or (self.config.every is not None and step % self.config.every == 0)

    def scores(self, opened: OpenedModel, root: nn.Module, device: torch.device, *, here: bool) -> dict[str, float]:
        """Evaluate, and return all measures, such as "pope/accuracy" and "loss". Every rank has to call this.

        An evaluation that fails is reported and left out, one that is not finite is reported, and training continues.

        Args:
            opened: the model in training.
            root: the module that FSDP wraps.
            device: of the network.
            here: whether this rank evaluates; the others only bring their shares of the weights.
        """
        scores: dict[str, float] = {}
        with gathered_weights(root):
            if here:
                if self.held_out is not None:
                    held_out = self.held_out
                    scores |= _attempt(LOSS, lambda: held_out.losses(opened.network, device))
                for name, score in self.tasks.items():
                    scores |= _attempt(name, lambda score=score, name=name: _named(name, _ask(opened, score)))
        if odd := [f"{name} ({score})" for name, score in scores.items() if not math.isfinite(score)]:
            warn(f"Evaluations are not finite: {', '.join(odd)}. Training continues.")
        return scores


def _open_task(name: str, config: EvaluationConfig) -> Callable[[Vila], Mapping[str, float]]:
    task = load_plugins().tasks.get(name)
    if not isinstance(task, EvaluationTask):
        raise ConfigError(
            f"The task '{name}' cannot be evaluated inside training: it has no method `evaluator`. Use vila-eval "
            "afterwards, or update the plugin that brings it."
        )
    cache, data = (None if path is None else path.expanduser() for path in (config.cache, config.data))
    try:
        return task.evaluator(cast("Path", cache), limit=config.limit, mirror=data, offline=config.offline)
    except VilaError as error:
        raise ConfigError(
            f"The evaluation '{name}' cannot be opened: {error} In a run, the setting evaluation.data stands for "
            "--data of vila-eval, and evaluation.offline for --offline."
        ) from error


def _ask(opened: OpenedModel, score: Callable[[Vila], Mapping[str, float]]) -> Mapping[str, float]:
    with live_model(opened) as model:
        return score(model)


def _named(task: str, measures: Mapping[str, float]) -> dict[str, float]:
    return {f"{task}/{name}": float(value) for name, value in measures.items()}


def _attempt(name: str, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    try:
        return evaluate()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - also of a plugin; a run of days does not end for it
        reason = str(error) if isinstance(error, VilaError) else f"{type(error).__name__}: {error}"
        warn(f"The evaluation '{name}' failed, and training continues: {reason}")
        return {}
