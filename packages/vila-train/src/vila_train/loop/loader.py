"""Rows for the steps of this rank, loaded ahead by other processes.

Lane l belongs to rank l mod R of R. The rows of all lanes have one order, in turn: lane 0, 1, … L - 1, 0, …; a step
takes the next `rows_per_step` of it. So the rows of each step depend on neither the ranks nor the loading processes,
and the rows of a rank's own lanes in turn are its share.
"""

import contextlib
import signal
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vila_train.config import DataConfig
from vila_train.data.bad_samples import Skipped
from vila_train.data.conversations import Conversation
from vila_train.errors import TrainingError
from vila_train.packing.host_rows import HostRow
from vila_train.packing.lanes import Lane, LaneConfig, LaneState, Order, SampleEncoder
from vila_train.parallel.world import World
from vila_train.samples import Encoder, TrainingSample

LaneStates = Mapping[int, LaneState]


@dataclass(frozen=True)
class FittingEncoder:
    """Makes training samples of at most `data.max_length` tokens."""

    encoder: Encoder
    data: DataConfig

    def __call__(self, conversation: Conversation) -> TrainingSample:
        return self.encoder.fit(conversation, self.data.max_length, self.data.too_long)


@dataclass(frozen=True)
class LoadedRow:
    """A row in main memory, with what a `LaneRow` says of it."""

    lane: int
    row: HostRow
    skipped: Sequence[Skipped]
    state: LaneState

    def pin_memory(self) -> "LoadedRow":
        """Return it with the row in pinned memory. PyTorch's data loader calls this."""
        return replace(self, row=self.row.pin_memory())


@dataclass(frozen=True)
class LoadingFailed:
    """What a loading process hands over instead of rows: an exception would arrive as the text of its traceback."""

    message: str


class LaneRounds(IterableDataset[list[LoadedRow] | LoadingFailed]):
    """Yields one row of each lane that a loading process has, round after round.

    Args:
        order: the samples.
        encode: makes training samples.
        config: of the lanes.
        lanes: numbers of the lanes of this rank, ascending.
        states: where lanes go on; others start at the beginning.
        first: the lane that is next; the first round leaves lower ones out.
    """

    def __init__(
        self,
        order: Order,
        encode: SampleEncoder,
        config: LaneConfig,
        lanes: Sequence[int],
        states: LaneStates,
        first: int,
    ):
        super().__init__()
        self._order, self._encode, self._config = order, encode, config
        self._lanes, self._states, self._first = lanes, states, first

    def __iter__(self) -> Iterator[list[LoadedRow] | LoadingFailed]:
        worker = get_worker_info()
        numbers = self._lanes if worker is None else self._lanes[worker.id :: worker.num_workers]
        try:
            lanes = [Lane(n, self._order, self._encode, self._config, self._states.get(n)) for n in numbers]
            yield [_load(lane) for lane in lanes if lane.number >= self._first]
            while True:
                yield [_load(lane) for lane in lanes]
        except TrainingError as error:
            yield LoadingFailed(str(error))


def _load(lane: Lane) -> LoadedRow:
    row = next(lane)
    return LoadedRow(row.lane, HostRow.of(row.samples), row.skipped, row.state)


class RowLoader:
    """Loads the rows of one rank in order.

    Args:
        rounds: of the lanes of this rank.
        world: this rank.
        rows_per_step: of all ranks.
        workers: loading processes; 0 loads in this one.
        lanes: of this rank; there are no more processes than lanes.
    """

    def __init__(self, rounds: LaneRounds, world: World, rows_per_step: int, workers: int, lanes: int):
        self._share = rows_per_step // world.size
        self._workers = min(workers, lanes)
        self._loader = DataLoader(
            rounds,
            batch_size=None,
            num_workers=self._workers,
            pin_memory=world.device.type == "cuda",
            worker_init_fn=_prepare_worker,
        )
        with _keep_child_handler():
            self._rounds = iter(self._loader)
        self._rows: list[LoadedRow] = []
        self.seconds = 0.0

    def next_step(self) -> list[LoadedRow]:
        """Return the rows of this rank's next step; `seconds` is how long that took.

        Raises:
            TrainingError: a lane cannot go on, or a loading process ended.
        """
        started = time.perf_counter()
        while len(self._rows) < self._share:
            self._rows += self._next_round()
        rows, self._rows = self._rows[: self._share], self._rows[self._share :]
        self.seconds = time.perf_counter() - started
        return rows

    def _next_round(self) -> list[LoadedRow]:
        """Return one row of each lane of this rank."""
        rows: list[LoadedRow] = []
        for _ in range(max(self._workers, 1)):
            with _explain_ended_process():
                loaded = next(self._rounds)
            if isinstance(loaded, LoadingFailed):
                raise TrainingError(loaded.message)
            rows += loaded
        return sorted(rows, key=lambda row: row.lane)

    def close(self) -> None:
        """End the loading processes."""
        del self._rounds, self._loader


@contextlib.contextmanager
def _keep_child_handler() -> Generator[None]:
    """Restore the handler of SIGCHLD, where PyTorch's data loader raises if a loading process ends.

    It would raise anywhere, such as while a checkpoint is written. Waiting for the next rows notices the end too.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    with contextlib.suppress(ValueError):  # not the main thread, where PyTorch sets no handler
        signal.signal(signal.SIGCHLD, handler)


@contextlib.contextmanager
def _explain_ended_process() -> Generator[None]:
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"A loading process ended ({error}). If the machine is out of memory, lower data.workers or data.lookahead."
        ) from error


def _prepare_worker(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the training process ends the others when its step is done."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def own_lanes(world: World, lanes: int) -> list[int]:
    """Return the lanes of this rank."""
    return [*range(world.rank, lanes, world.size)]
