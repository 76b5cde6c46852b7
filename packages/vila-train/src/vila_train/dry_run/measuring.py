"""Reads and encodes the first samples of a run, and estimates what its steps need. No weights are read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vila_core.device_choice import choose_device
from vila_core.errors import VilaError, warn
from vila_core.model import VilaModel
from vila_train.compute import ModelFlops
from vila_train.config import TrainConfig
from vila_train.data.bad_samples import Skipped, none_usable
from vila_train.data.conversations import Conversation
from vila_train.data.mixture import Mixture, open_mixture
from vila_train.estimates.memory import MemoryEstimate, RowLoad, Suggestion, estimate_memory, suggest
from vila_train.loop.preparation import check_run, prepare_run, require_machine
from vila_train.loop.setup import adapt
from vila_train.models import OpenedModel
from vila_train.packing import PackedRow, pack
from vila_train.packing.lanes import Order, SampleEncoder, first_samples
from vila_train.parallel.world import World, world_size
from vila_train.plan import Plan, samples_per_row
from vila_train.run_folder import RunFolder
from vila_train.samples import TrainingSample

SAMPLES = 128
"""How many samples are encoded."""
MESSAGES = 5
"""Skipped samples whose messages are kept."""


@dataclass(frozen=True)
class Encoded:
    """A sample of the run and its conversation."""

    conversation: Conversation
    sample: TrainingSample


@dataclass(frozen=True)
class Measured:
    """The results of a dry run.

    Attributes:
        config: of the run.
        opened: its model, without weights.
        mixture: its data.
        encoded: samples in the order of the run.
        rows: their packing, as indices into `encoded`.
        skipped: samples that cannot be used, by reason.
        messages: of some of them.
        plan: rows per step, and steps.
        samples_per_row: on average.
        world_size: ranks.
        load: of the largest row.
        memory: on each GPU.
        suggestions: settings that need less memory.
        flops: of the whole run, as far as these samples tell.
        trained, parameters: weights.
    """

    config: TrainConfig
    opened: OpenedModel
    mixture: Mixture
    encoded: Sequence[Encoded]
    rows: Sequence[Sequence[int]]
    skipped: Counter[str]
    messages: Sequence[str]
    plan: Plan
    samples_per_row: float
    world_size: int
    load: RowLoad
    memory: MemoryEstimate
    suggestions: Sequence[Suggestion]
    flops: float
    trained: int
    parameters: int


def measure(config: TrainConfig, folder: RunFolder, *, accept_changes: bool = False) -> Measured:
    """Return what a run with `config` in `folder` would do. Warns if this machine could not do it.

    Raises:
        VilaError: the run would fail before its first step, or none of the first samples can be used.
    """
    world = Unaccompanied(0, world_size(), torch.device("cpu"))
    ranks = world.size
    check_run(config, folder, world, accept_changes=accept_changes)
    _warn_of_machine(config)
    mixture = open_mixture(config.data, config.seed)
    prepared = prepare_run(
        config, folder, world, mixture, accept_changes=accept_changes, weights=False, wrap=Remembering
    )
    opened, plan, capacity = prepared.opened, prepared.plan, prepared.row_length
    encoded, skipped, messages = _encode(prepared.order, prepared.encode)
    lengths = [len(one.sample) for one in encoded]
    rows = pack(lengths, capacity) if config.data.packing else [[index] for index in range(len(lengths))]
    per_row = samples_per_row(lengths, capacity) if config.data.packing else 1.0
    samples = plan.total_steps * plan.rows_per_step * per_row
    if config.max_steps is None:
        samples = min(config.epochs * len(mixture), samples)
    network = opened.network
    parameters = sum(p.numel() for p in network.parameters())
    trained = _as_trained(network, config)
    if prepared.found is not None:
        prepared.checkpoints.require_weights(prepared.found[0], network)
    load = _largest(encoded, rows, -(-plan.rows_per_step // ranks), capacity)
    adapter = config.adapter
    return Measured(
        config=config,
        opened=opened,
        mixture=mixture,
        encoded=encoded,
        rows=rows,
        skipped=skipped,
        messages=messages,
        plan=plan,
        samples_per_row=per_row,
        world_size=ranks,
        load=load,
        memory=estimate_memory(network, config.compute, load, world_size=ranks, adapter=adapter),
        suggestions=suggest(network, config, load, world_size=ranks),
        flops=_flops(network, encoded, samples),
        trained=trained,
        parameters=parameters,
    )


def _encode(order: Order, encode: SampleEncoder) -> tuple[list[Encoded], Counter[str], list[str]]:
    encoded: list[Encoded] = []
    skipped: Counter[str] = Counter()
    messages: list[str] = []
    for found in first_samples(order, encode, min(len(order), SAMPLES)):
        if isinstance(found, Skipped):
            skipped[found.reason] += 1
            if len(messages) < MESSAGES:
                messages.append(found.message)
        else:
            encoded.append(Encoded(*found))
    if not encoded:
        raise none_usable(sum(skipped.values()), messages[0])
    return encoded, skipped, messages


class Unaccompanied(World):
    """The first rank of a run whose other ranks were not started."""

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def share(self, value: Any) -> Any:
        return value


class Remembering:
    """Encodes each sample once: the plan of a run depends on the samples that a dry run shows.

    Args:
        encode: makes training samples.
    """

    def __init__(self, encode: SampleEncoder):
        self._encode = encode
        self._known: dict[str, TrainingSample] = {}

    def __call__(self, conversation: Conversation) -> TrainingSample:
        name = conversation.name
        if name not in self._known:
            self._known[name] = self._encode(conversation)
        return self._known[name]


def _warn_of_machine(config: TrainConfig) -> None:
    """Warn if this machine, where a dry run may be done for another one, cannot compute as `config` says."""
    try:
        require_machine(config, choose_device("auto"))
    except VilaError as error:
        warn(f"On this machine, the run would stop: {error}")


def _as_trained(network: VilaModel, config: TrainConfig) -> int:
    """Freeze and adapt the network without weights. Return the number of weights that are trained."""
    adapter = config.adapter
    if adapter is not None and adapter.method == "qlora":  # 4 bits need a GPU
        adapter = adapter.model_copy(update={"method": "lora"})
    with torch.device("meta"):
        adapt(network, config.model_copy(update={"adapter": adapter}))
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _largest(encoded: Sequence[Encoded], rows: Sequence[Sequence[int]], per_rank: int, capacity: int) -> RowLoad:
    """Return the most that a rank computes at once: a full row, and as many tiles and labels as any row has."""
    samples = [[encoded[index].sample for index in row] for row in rows]
    tokens = max(sum(len(sample) for sample in row) for row in samples)
    return RowLoad(
        tokens=min(capacity, tokens) if len(rows) == 1 else capacity,
        tiles=max(sum(_tiles(sample) for sample in row) for row in samples),
        labels=max(sum(sample.num_labels for sample in row) for row in samples),
        rows=per_rank,
        positions=max(sum(sample.counts.positions for sample in row) for row in samples),
    )


def _tiles(sample: TrainingSample) -> int:
    return sum(len(medium.tiles) for medium in sample.prompt.media)


def _flops(network: VilaModel, encoded: Sequence[Encoded], samples: float) -> float:
    """Return the floating-point operations for so many samples like `encoded`."""
    counted = ModelFlops.of(network)
    of_samples = sum(counted.of_row(PackedRow.of([one.sample], torch.device("cpu"))) for one in encoded)
    return of_samples / len(encoded) * samples
