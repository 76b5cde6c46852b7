"""The size and number of steps: computed from the first samples when a run starts, then kept."""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from vila_core.config import Config
from vila_core.errors import ConfigError
from vila_train.config import MAX_ROWS, TrainConfig
from vila_train.data.bad_samples import Skipped, none_usable
from vila_train.data.mixture import PartState
from vila_train.errors import TrainingError
from vila_train.number_types import PositiveFloat, PositiveInt
from vila_train.packing.bins import pack
from vila_train.packing.lanes import Order, SampleEncoder, first_samples

MEASURED_SAMPLES = 128
MANY_LANES = 32
"""Enough lanes for many loading processes."""
MOST_LANES = 64
"""Each lane keeps samples in memory."""
_FULL_ROWS = 8
_MOST_REPEATED = 4096


class Plan(Config):
    """The size of a run.

    Attributes:
        rows_per_step: on all ranks together.
        lanes: independent streams of rows.
        total_steps: optimizer steps.
        samples_per_row: on average, as far as known when the run started; None: no setting depends on it.
        samples: of an epoch when the run started.
        datasets: of the mixture when the run started; None: not known, as in plans of earlier versions.
    """

    rows_per_step: Annotated[PositiveInt, Field(le=2 * MAX_ROWS)]
    lanes: Annotated[PositiveInt, Field(le=2 * MAX_ROWS)]
    total_steps: PositiveInt
    samples_per_row: PositiveFloat | None
    samples: PositiveInt | None = None
    datasets: tuple[PartState, ...] | None = None


def make_plan(
    config: TrainConfig,
    order: Order,
    encode: SampleEncoder,
    world_size: int,
    datasets: tuple[PartState, ...] | None = None,
) -> Plan:
    """Return the plan of a new run.

    Args:
        config: the settings.
        order: the samples.
        encode: makes training samples.
        world_size: ranks.
        datasets: that the samples are of, if that is known.

    Raises:
        TrainingError: the mixture is empty, or none of its first samples can be used.
    """
    data, samples = config.data, len(order)
    if not samples:
        raise TrainingError(f"The mixture '{data.mixture}' has no samples.")
    per_row = None
    if data.rows_per_step is None or config.max_steps is None:
        per_row = _samples_per_row(config, order, encode)
    if data.rows_per_step is not None:
        rows = data.rows_per_step
    elif data.packing:
        assert per_row is not None
        rows = _round_rows(data.samples_per_step / per_row, world_size)
    else:  # exactly as many as asked for, or as few more as the ranks can divide
        rows = -(-data.samples_per_step // world_size) * world_size
    lanes = data.lanes or default_lanes(rows, samples, data.lookahead, world_size)
    return Plan(
        rows_per_step=rows,
        lanes=lanes,
        total_steps=_total_steps(config, samples, rows, per_row),
        samples_per_row=per_row,
        samples=samples,
        datasets=datasets,
    )


def _samples_per_row(config: TrainConfig, order: Order, encode: SampleEncoder) -> float:
    return measure(order, encode, row_length(config)) if config.data.packing else 1.0


def _total_steps(config: TrainConfig, samples: int, rows: int, per_row: float | None) -> int:
    if config.max_steps is not None:
        return config.max_steps
    assert per_row is not None
    return max(1, math.ceil(config.epochs * samples / (per_row * rows)))


def resume_plan(
    plan: Plan,
    config: TrainConfig,
    order: Order,
    encode: SampleEncoder,
    datasets: tuple[PartState, ...] | None = None,
    *,
    accept_changes: bool = False,
) -> Plan:
    """Return the plan of a run that resumes: rows and lanes stay, and `config` says how many steps there are.

    Args:
        plan: of the run when it started.
        config: the settings now.
        order: the samples now.
        encode: makes training samples.
        datasets: that the samples are of now, if that is known.
        accept_changes: continue with other data.

    Raises:
        ConfigError: `config` asks for other rows or lanes, or the data are not those that the run started with.
    """
    data, samples = config.data, len(order)
    for name, stated, fixed in (
        ("data.rows_per_step", data.rows_per_step, plan.rows_per_step),
        ("data.lanes", data.lanes, plan.lanes),
    ):
        if stated not in (None, fixed):
            raise ConfigError(
                f"{name} is {stated}, but the run started with {fixed}, and its place in the data depends on that. "
                f"Leave it at {fixed}, or choose another folder with --out."
            )
    if plan.samples not in (None, samples) and not accept_changes:
        raise ConfigError(
            f"The mixture '{data.mixture}' has {samples:,} samples per epoch, but it had {plan.samples:,} when the run "
            "started. Its data changed, so its order is another one: some samples would come again, and some never. "
            "Restore the data, resume anyway (--accept-changes), or choose another folder with --out."
        )
    pairs = zip(datasets or (), plan.datasets or (), strict=False)  # equally many samples: a lost part shows
    changed = next((now.name for now, before in pairs if now != before), None)
    if changed is not None and not accept_changes:
        raise ConfigError(
            f"The samples of '{changed}' are not those that the run started with: their content or order changed, so "
            "some might come again, and some never. "
            "Restore the data, resume anyway (--accept-changes), or choose another folder with --out."
        )
    per_row = plan.samples_per_row
    if per_row is None and config.max_steps is None:
        per_row = _samples_per_row(config, order, encode)
    steps = _total_steps(config, samples, plan.rows_per_step, per_row)
    return plan.model_copy(
        update={"total_steps": steps, "samples_per_row": per_row, "samples": samples, "datasets": datasets}
    )


def row_length(config: TrainConfig) -> int:
    """Return how many tokens a row holds. Raises `TrainingError` if a sample may be longer."""
    data = config.data
    length = data.row_length or data.max_length
    if length < data.max_length:
        raise TrainingError(
            f"data.row_length is {length:,}, but samples may have data.max_length = {data.max_length:,} tokens. "
            "Raise the first or lower the second."
        )
    return length


def measure(order: Order, encode: SampleEncoder, capacity: int) -> float:
    """Return how many samples share a row of `capacity` tokens on average, from the first samples of the mixture."""
    count = min(len(order), MEASURED_SAMPLES)
    lengths: list[int] = []
    problem = ""
    for found in first_samples(order, encode, count):
        if isinstance(found, Skipped):
            problem = found.message
        else:
            lengths.append(len(found[1]))
    if not lengths:
        raise none_usable(count, problem)
    return samples_per_row(lengths, capacity)


def samples_per_row(lengths: Sequence[int], capacity: int) -> float:
    """Return how many samples of these lengths share a row on average, if they come again and again.

    The last row of a packing is not full.
    """
    rounds = -(-_FULL_ROWS * capacity // sum(lengths))  # a small data set comes several times in a row
    lengths = [*lengths] * min(rounds, _MOST_REPEATED // len(lengths) + 1)
    rows = len(pack(lengths, capacity))
    full = sum(lengths) / capacity
    return len(lengths) / (full if rows > 1 and rows - full < 1 else rows)


def _round_rows(rows: float, world_size: int) -> int:
    """Return a number of rows near `rows` that many numbers of ranks divide, `world_size` among them."""
    for factor in (8, 4, 2):
        unit = math.lcm(world_size, factor)
        near = max(1, round(rows / unit)) * unit
        if abs(near - rows) <= rows / 8:
            return near
    return max(1, round(rows / world_size)) * world_size


def default_lanes(rows_per_step: int, samples: int, lookahead: int, world_size: int) -> int:
    """Return a number of lanes that `world_size` divides as it divides `rows_per_step`.

    More than `rows_per_step` if the data set is large, so that many processes can load; but not so many that a small
    data set waits in them whole, or that their samples fill the memory.
    """
    lanes = rows_per_step
    while lanes < MANY_LANES and 2 * lanes * lookahead <= samples:
        lanes *= 2
    fewer = [n for n in range(1, MOST_LANES + 1) if lanes % n == 0 and n % world_size == 0]
    return lanes if lanes <= MOST_LANES or not fewer else fewer[-1]
