"""What a run checks and opens before its first step. A dry run does the same, so that it finds the same faults."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from vila_core.errors import VilaError, warn
from vila_train.base_model import fingerprint_base, require_same_base
from vila_train.callbacks import Callback
from vila_train.caption_dropout import CaptionDropout
from vila_train.checkpoint_state import Progress
from vila_train.checkpoints import Checkpoints
from vila_train.config import TrainConfig
from vila_train.data.mixture import Mixture, PartState
from vila_train.evaluation.evaluator import Evaluator
from vila_train.loop.setup import make_encoder, open_order, require_time_tokens, takes_weights_from_first
from vila_train.models import OpenedModel, open_model, require_context
from vila_train.packing.lanes import Order, SampleEncoder
from vila_train.parallel.mesh import mesh_shape, require_divisible
from vila_train.parallel.world import World
from vila_train.plan import Plan, row_length
from vila_train.run_folder import RunFolder, choose_plan, require_own_folder
from vila_train.tracking.opening import open_callbacks

Wrap = Callable[[SampleEncoder], SampleEncoder]


@dataclass(frozen=True)
class Prepared:
    """What a run has before weights are adapted and moved to their devices.

    Attributes:
        opened: the model.
        order: its samples.
        encode: makes training samples.
        evaluator: its evaluations.
        checkpoints: of the run.
        found: the newest intact one and its state; None before the first.
        base: fingerprints of the files of the model that training starts from.
        plan: the number and size of steps.
        row_length: tokens of a row.
    """

    opened: OpenedModel
    order: Order
    encode: SampleEncoder
    evaluator: Evaluator
    checkpoints: Checkpoints
    found: tuple[Path, Progress] | None
    base: Mapping[str, str]
    plan: Plan
    row_length: int


def check_run(config: TrainConfig, folder: RunFolder, world: World, *, accept_changes: bool = False) -> list[Callback]:
    """Check what needs neither weights nor data, and return the callbacks of the run. Nothing is written.

    Raises:
        ConfigError: the folder holds another run, the number of ranks does not fit, a callback is unknown, or samples
            may be longer than the context of the model.
        MissingDependencyError: the package of a tracker is not installed.
        TrainingError: samples may be longer than a row.
        VilaError: the model cannot be opened.
    """
    mesh_shape(world.size, config.compute)
    require_own_folder(folder, config, accept_changes=accept_changes)
    if folder.is_complete:
        return []
    row_length(config)
    _warn_of_unused_rates(config)
    callbacks = open_callbacks(config)
    require_context(config)
    return callbacks


def _warn_of_unused_rates(config: TrainConfig) -> None:
    """Warn of learning rates of parts that are not trained."""
    trained = {*config.tune, *(() if config.adapter is None else config.adapter.parts)}
    if unused := [part for part in config.optimizer.part_learning_rates if part not in trained]:
        warn(f"optimizer.part_learning_rates has a rate for {', '.join(unused)}, which `tune` does not name.")


def require_machine(config: TrainConfig, device: torch.device) -> None:
    """Raise `TrainingError` or `MissingDependencyError` if this machine cannot compute as `config` says."""
    if config.compute.fp8:
        from vila_train.compute.fp8 import require_fp8

        require_fp8(device)
    if config.adapter is not None and config.adapter.method == "qlora":
        from vila_train.adapters.four_bits import require_bitsandbytes

        require_bitsandbytes()


def prepare_run(
    config: TrainConfig,
    folder: RunFolder,
    world: World,
    order: Order | None = None,
    *,
    accept_changes: bool = False,
    weights: bool = True,
    wrap: Wrap = lambda encode: encode,
) -> Prepared:
    """Open the model, the data and the evaluations, and find the newest checkpoint and the plan. On all ranks.

    Args:
        config: the stage.
        folder: of the run; it may not exist.
        world: this rank.
        order: the samples; None: those of the mixture.
        accept_changes: the data and the base model may differ from those that the run started with.
        weights: read them; otherwise the network is on the meta device.
        wrap: applied to what makes training samples.

    Raises:
        VilaError: one of them does not open, or does not fit another.
    """
    checkpoints = Checkpoints(folder.checkpoints, config.saving.keep, world)
    found = checkpoints.newest()
    base = world.first(lambda: _fingerprint_base(config, found, accept_changes=accept_changes))
    opened = _open_model(config, world, weights=weights)
    require_time_tokens(opened, config)
    order = open_order(config) if order is None else order
    datasets = world.first(partial(_states, order))
    if opened.network.generation is not None:
        order = CaptionDropout(order, config.data.caption_dropout, config.seed)
    encode = wrap(make_encoder(opened, config))
    evaluator = Evaluator.open(config, encode)
    saved = None if found is None else found[1].plan
    plan = world.first(
        lambda: choose_plan(
            folder, config, order, encode, world.size, datasets, saved=saved, accept_changes=accept_changes
        )
    )
    require_divisible(world.size, plan.rows_per_step, plan.lanes)
    return Prepared(opened, order, encode, evaluator, checkpoints, found, base, plan, row_length(config))


def _states(order: Order) -> tuple[PartState, ...] | None:
    """Return the present state of the datasets in `order`; None if it is the caller's own and not a mixture."""
    return order.states() if isinstance(order, Mixture) else None


def _fingerprint_base(
    config: TrainConfig, found: tuple[Path, Progress] | None, *, accept_changes: bool
) -> dict[str, str]:
    """Return the fingerprints of the base model. Raises `ConfigError` unless it is that of the checkpoint `found`."""
    base = fingerprint_base(config.model)
    if found is not None and found[1].base is not None and not accept_changes:
        resume = "resume with the present ones (--accept-changes)"
        require_same_base(config.model, found[1].base, base, resume, "choose another folder with --out")
    return base


def _open_model(config: TrainConfig, world: World, *, weights: bool) -> OpenedModel:
    """Return the model, with weights on rank 0 only if it can hand them out: each copy fills the memory of the host."""
    opened: OpenedModel | None = None
    problem: VilaError | None = None
    here = weights and (world.is_first or not takes_weights_from_first(config, world))
    try:
        opened = open_model(config.model, config.seed, weights=here)
    except VilaError as error:
        problem = error
    problem = next((one for one in world.gather(problem) if one is not None), None)
    if problem is not None:
        raise problem
    assert opened is not None
    return opened
