"""Lanes: independent, resumable streams of rows, which are divided among ranks and loading processes.

Lane l of L reads the samples at positions l, l + L, l + 2L, … of the endless order of samples, epoch after epoch. It
keeps a few encoded samples and fills rows from them. Each row carries the state of its lane after it, so whoever has
consumed a row can continue from there, however many rows are loaded ahead.

T tokens that a row holds, N samples that wait
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vila_core.config import Config
from vila_train.data.bad_samples import Skipped, as_skipped
from vila_train.data.conversations import Conversation
from vila_train.errors import TrainingError
from vila_train.number_types import NonNegativeInt
from vila_train.samples import TrainingSample

ROWS_WAITING = 2, 16
"""A lane stops reading ahead when its waiting samples fill the second number of rows; or the first, if their pictures
take `BYTES_WAITING`."""
BYTES_WAITING = 2**28
BAD_SAMPLES = 100
"""So many unusable samples in succession stop a run, or all of an epoch if there are more."""


class Order(Protocol):
    """The samples of each epoch, in a random order that is the same on every call (a `Mixture`)."""

    def __len__(self) -> int: ...

    def conversation(self, epoch: int, position: int) -> Conversation: ...


class SampleEncoder(Protocol):
    """Makes a training sample of a conversation."""

    def __call__(self, conversation: Conversation) -> TrainingSample:
        """Raises `SampleError`, `MediaError` or `PromptError` if the conversation cannot be used."""
        ...


def first_samples(
    order: Order, encode: SampleEncoder, count: int
) -> Iterator[tuple[Conversation, TrainingSample] | Skipped]:
    """Yield the first `count` samples of the order with their conversations; for those that cannot be used, why."""
    for place in range(count):
        try:
            conversation = order.conversation(0, place)
            sample = encode(conversation)
        except Exception as error:  # noqa: BLE001 - `as_skipped` raises what is not the sample's fault
            yield as_skipped(error, f"sample {place:,}")
            continue
        yield conversation, sample


class LaneState(Config):
    """The state of a lane: enough to produce the rows that follow.

    Attributes:
        position: the next one to read.
        waiting: positions of the samples that were read and are in no row yet, in the order of reading.
    """

    position: NonNegativeInt
    waiting: tuple[NonNegativeInt, ...] = ()


@dataclass(frozen=True)
class LaneRow:
    """A row of samples, and where its lane stands after it.

    Attributes:
        lane: its number.
        samples: at least one.
        skipped: samples that the lane could not use since its row before.
        state: of the lane after this row.
    """

    lane: int
    samples: Sequence[TrainingSample]
    skipped: Sequence[Skipped]
    state: LaneState


@dataclass(frozen=True)
class LaneConfig:
    """Settings of lanes.

    Attributes:
        lanes: L.
        row_length: T.
        lookahead: how many samples a lane chooses from.
        packing: several samples to a row.
    """

    lanes: int
    row_length: int
    lookahead: int
    packing: bool = True


class Lane:
    """Iterates over the rows of one lane, endlessly.

    Args:
        number: of the lane, below `config.lanes`.
        order: the samples.
        encode: makes training samples, of at most `config.row_length` tokens.
        config: of all lanes.
        state: continue from there; None starts at the beginning.

    Raises:
        TrainingError: too many samples in succession cannot be used, or a sample is longer than a row.
    """

    def __init__(
        self, number: int, order: Order, encode: SampleEncoder, config: LaneConfig, state: LaneState | None = None
    ):
        assert 0 <= number < config.lanes, "lanes are numbered from 0"
        self.number = number
        self._order, self._encode, self._config = order, encode, config
        self._position = number if state is None else state.position
        self._waiting: list[tuple[int, TrainingSample]] = []
        self._skipped: list[Skipped] = []
        self._bad = 0
        for position in () if state is None else state.waiting:
            self._read(position)

    def __iter__(self) -> Iterator[LaneRow]:
        return self

    def __next__(self) -> LaneRow:
        """Return the next row."""
        self._read_ahead()
        lengths = [len(sample) for _, sample in self._waiting]
        chosen = choose(lengths, self._config.row_length) if self._config.packing else [0]
        samples = [self._waiting[index][1] for index in chosen]
        self._waiting = [one for index, one in enumerate(self._waiting) if index not in set(chosen)]
        skipped, self._skipped = self._skipped, []
        state = LaneState(position=self._position, waiting=tuple(position for position, _ in self._waiting))
        return LaneRow(self.number, samples, skipped, state)

    def _read_ahead(self) -> None:
        """Read until enough samples wait."""
        wanted = self._config.lookahead if self._config.packing else 1
        while len(self._waiting) < wanted and not self._is_full():
            position, self._position = self._position, self._position + self._config.lanes
            self._read(position)

    def _is_full(self) -> bool:
        """Return whether more waiting samples would take too much memory for fuller rows."""
        least, most = (rows * self._config.row_length for rows in ROWS_WAITING)
        tokens = sum(len(sample) for _, sample in self._waiting)
        return tokens >= most or (tokens >= least and sum(s.num_bytes for _, s in self._waiting) >= BYTES_WAITING)

    def _read(self, position: int) -> None:
        epoch, place = divmod(position, len(self._order))
        name = f"sample {place:,} of epoch {epoch + 1}"
        try:
            conversation = self._order.conversation(epoch, place)
            name = conversation.name
            sample = self._encode(conversation)
        except Exception as error:  # noqa: BLE001 - `as_skipped` raises what is not the sample's fault
            self._skip(as_skipped(error, name))
            return
        if len(sample) > self._config.row_length:
            raise TrainingError(
                f"Sample {name} has {len(sample):,} tokens, but a row holds {self._config.row_length:,}. "
                "Raise data.row_length, or lower data.max_length."
            )
        self._bad = 0
        self._waiting.append((position, sample))

    def _skip(self, skipped: Skipped) -> None:
        self._skipped.append(skipped)
        self._bad += 1
        limit = max(-(-len(self._order) // self._config.lanes), BAD_SAMPLES)
        if self._bad >= limit:
            raise TrainingError(
                f"None of {self._bad:,} samples in succession can be used. The last is {skipped.name}: "
                f"{skipped.message} Check the data with `vila-train run … --dry-run`."
            )


def expected_padding(lengths: Sequence[int], row_length: int, lookahead: int) -> float:
    """Return the share of a lane's rows that stays empty, if it reads samples of these lengths again and again.

    Args:
        lengths: of some samples in the order of the run, each at most `row_length`.
        row_length: T.
        lookahead: as in `LaneConfig`.
    """
    waiting: list[int] = []
    read = used = rows = 0
    while read < max(4 * len(lengths), 4 * lookahead):
        while len(waiting) < lookahead and sum(waiting) < ROWS_WAITING[1] * row_length:
            waiting.append(lengths[read % len(lengths)])
            read += 1
        chosen = set(choose(waiting, row_length))
        used += sum(waiting[index] for index in chosen)
        rows += 1
        waiting = [length for index, length in enumerate(waiting) if index not in chosen]
    return 1 - used / (rows * row_length)


def choose(lengths: Sequence[int], capacity: int) -> list[int]:
    """Return the indices of a row: the first sample, and those that leave the least room beside it.

    An exact subset sum over bits (bit n of `sums` says whether some samples have n tokens together); among equally full
    rows, one of earlier samples. The first sample is always taken, so none waits forever.

    Args:
        lengths: of the N waiting samples, in tokens.
        capacity: T, at least the first length.
    """
    room = capacity - lengths[0]
    within = (1 << (room + 1)) - 1
    sums = [1]  # after each sample
    for length in lengths[1:]:
        sums.append(sums[-1] | (sums[-1] << length & within))
    rest = sums[-1].bit_length() - 1
    chosen: list[int] = []
    for index in range(len(lengths) - 1, 0, -1):
        if not sums[index - 1] >> rest & 1:  # this total needs the sample
            chosen.append(index)
            rest -= lengths[index]
    return [0, *reversed(chosen)]
