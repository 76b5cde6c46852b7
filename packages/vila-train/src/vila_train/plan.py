"""How large a step is and how many there are: worked out from the first samples when a run starts, then kept."""

import math
from collections.abc import Sequence

from vila_core.config import Config
from vila_train.config import TrainConfig
from vila_train.data.bad_samples import Skipped, none_usable
from vila_train.errors import TrainingError
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
        samples_per_row: on average, as far as known when the run started.
    """

    rows_per_step: int
    lanes: int
    total_steps: int
    samples_per_row: float


def make_plan(config: TrainConfig, order: Order, encode: SampleEncoder, world_size: int) -> Plan:
    """Return the plan of a new run.

    Raises:
        TrainingError: the mixture is empty, or none of its first samples can be used.
    """
    data, samples = config.data, len(order)
    if not samples:
        raise TrainingError(f"The mixture '{data.mixture}' has no samples.")
    is_known = data.rows_per_step is not None and config.max_steps is not None
    per_row = 1.0 if not data.packing or is_known else measure(order, encode, row_length(config))
    if data.rows_per_step is not None:
        rows = data.rows_per_step
    elif data.packing:
        rows = _round_rows(data.samples_per_step / per_row, world_size)
    else:  # exactly as many as asked for, or as few more as the ranks can divide
        rows = -(-data.samples_per_step // world_size) * world_size
    steps = config.max_steps or max(1, math.ceil(config.epochs * samples / (per_row * rows)))
    lanes = data.lanes or default_lanes(rows, samples, data.lookahead, world_size)
    return Plan(rows_per_step=rows, lanes=lanes, total_steps=steps, samples_per_row=per_row)


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
