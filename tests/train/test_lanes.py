"""Lanes: full rows, the same rows after a resume, and samples that cannot be used."""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice
from typing import Any

import pytest

from vila_core.chat import Message
from vila_core.errors import MediaError, MediaLimitError, PromptError
from vila_train.data.conversations import Conversation, SampleError
from vila_train.errors import DatasetError, TrainingError
from vila_train.packing.lanes import BAD_SAMPLES, Lane, LaneConfig, LaneState, choose, expected_padding


def fullest(lengths: Sequence[int], capacity: int) -> int:
    """Return by trying all sets how full a row with the first sample can be."""
    rest = lengths[1:]
    totals = [lengths[0] + sum(some) for n in range(len(rest) + 1) for some in combinations(rest, n)]
    return max(total for total in totals if total <= capacity)


@pytest.mark.parametrize("seed", range(20))
def test_a_row_is_as_full_as_it_can_be(seed: int):
    draw = random.Random(seed)
    capacity = draw.randint(1, 60)
    lengths = [draw.randint(1, capacity) for _ in range(draw.randint(1, 10))]
    chosen = choose(lengths, capacity)
    assert chosen[0] == 0, "the sample that waits longest"
    assert chosen == sorted(set(chosen))
    assert sum(lengths[index] for index in chosen) == fullest(lengths, capacity)


@pytest.mark.parametrize(
    ("lengths", "capacity", "expected"),
    [
        ([5], 5, [0]),
        ([5], 9, [0]),
        ([5, 5, 5], 10, [0, 1]),  # the earlier of two equals
        ([5, 4, 4, 1], 10, [0, 1, 3]),
        ([1, 9, 9], 9, [0]),
        ([3, 10, 7], 10, [0, 2]),
        ([1, 1, 1, 1], 4, [0, 1, 2, 3]),
    ],
)
def test_choices(lengths: list[int], capacity: int, expected: list[int]):
    assert choose(lengths, capacity) == expected


@lru_cache
def shuffled(epoch: int, count: int) -> list[int]:
    return random.Random(epoch).sample(range(count), count)


class Numbers:
    """Samples that are only a length: an order of `lengths`, shuffled in each epoch."""

    def __init__(self, lengths: Sequence[int], failures: Callable[[int], Exception | None] = lambda index: None):
        self.lengths, self.failures = lengths, failures
        self.read = Counter[int]()

    def __len__(self) -> int:
        return len(self.lengths)

    def conversation(self, epoch: int, position: int) -> Conversation:
        index = shuffled(epoch, len(self))[position]
        self.read[index] += 1
        if (failure := self.failures(index)) is not None:
            raise failure
        return Conversation(f"numbers/{index}", [Message("user", str(self.lengths[index]))])


def encode(conversation: Conversation) -> Any:
    return Sample(conversation.name, int(str(conversation.messages[0].content)))


@dataclass(frozen=True)
class Sample:
    name: str
    length: int

    @property
    def num_bytes(self) -> int:
        return 2352 * self.length  # a tile of 448 pixels with 256 tokens

    def __len__(self) -> int:
        return self.length


def lane(order: Numbers, number: int = 0, state: LaneState | None = None, **settings: Any) -> Lane:
    defaults = {"lanes": 1, "row_length": 100, "lookahead": 8}
    return Lane(number, order, encode, LaneConfig(**{**defaults, **settings}), state)


def names(rows: Any) -> list[list[str]]:
    return [[sample.name for sample in row.samples] for row in rows]


def ragged(count: int, seed: int, longest: int) -> list[int]:
    draw = random.Random(seed)
    return [min(int(draw.lognormvariate(6, 1)) + 20, longest) for _ in range(count)]


@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("kind", ["lognormal", "captions and long answers", "uniform", "few sizes"])
def test_ragged_lengths_waste_less_than_three_percent(lanes: int, kind: str):
    draw = random.Random(0)
    lengths = {
        "lognormal": ragged(3000, 0, 4096),
        "captions and long answers": [
            draw.randint(1500, 4000) if draw.random() < 0.1 else draw.randint(280, 360) for _ in range(3000)
        ],
        "uniform": [draw.randint(1, 2000) for _ in range(3000)],
        "few sizes": [draw.choice([231, 487, 999, 1511]) for _ in range(3000)],
    }[kind]
    order = Numbers(lengths)
    tokens = rows = 0
    for number in range(lanes):
        for row in islice(lane(order, number, lanes=lanes, row_length=4096, lookahead=32), 200 // lanes):
            tokens += sum(map(len, row.samples))
            rows += 1
    assert 1 - tokens / (4096 * rows) < 0.03


def test_lanes_read_each_sample_of_an_epoch_once():
    order = Numbers([50] * 30)
    seen: list[str] = []
    for number in range(3):
        for row in islice(lane(order, number, lanes=3, lookahead=2), 5):
            seen += [sample.name for sample in row.samples]
    assert sorted(seen) == sorted(f"numbers/{index}" for index in range(30))


def test_epochs_follow_each_other_in_another_order():
    order = Numbers([100] * 10)
    rows = names(islice(lane(order), 20))
    assert sorted(rows[:10]) == sorted(rows[10:])
    assert rows[:10] != rows[10:]


def test_no_sample_waits_longer_than_the_lookahead():
    order = Numbers([100 if index % 10 == 0 else 99 if index % 2 else 1 for index in range(200)])
    stream = lane(order, lookahead=8)
    read: list[int] = []
    for number, row in enumerate(islice(stream, 150)):
        read += [number] * (row.state.position - len(read))
        assert all(number - read[position] < 8 for position in row.state.waiting)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("after", [0, 1, 2, 7, 40])
def test_a_lane_goes_on_from_its_state(after: int, packing: bool):
    order = Numbers(ragged(37, 1, 1000), lambda index: SampleError("broken") if index % 5 == 0 else None)
    settings = {"lanes": 3, "row_length": 1000, "packing": packing}
    rows = [*islice(lane(order, 2, **settings), after + 20)]
    state = rows[after].state
    stored = LaneState.model_validate_json(state.model_dump_json())
    again = [*islice(lane(order, 2, stored, **settings), 19)]
    assert names(again) == names(rows[after + 1 :])
    assert [row.state for row in again] == [row.state for row in rows[after + 1 :]]
    assert json.loads(state.model_dump_json()) == {"position": state.position, "waiting": [*state.waiting]}


def test_without_packing_each_sample_is_a_row():
    rows = names(islice(lane(Numbers([10] * 6), packing=False), 6))
    assert [len(row) for row in rows] == [1] * 6


@pytest.mark.parametrize(("row_length", "length", "expected"), [(100, 10, 160), (100, 100, 16), (100_000, 50_000, 4)])
def test_long_samples_are_not_read_far_ahead(row_length: int, length: int, expected: int):
    order = Numbers([length] * 1000)
    next(lane(order, row_length=row_length, lookahead=500))
    assert sum(order.read.values()) == expected


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (SampleError("no file", "missing medium"), "missing medium"),
        (SampleError("cut off"), "damaged"),
        (SampleError("too long", "too long", "other/7"), "too long"),
        (MediaError("not a picture"), "unreadable medium"),
        (MediaLimitError("too large", "max_pixels"), "unreadable medium"),
        (PromptError("more images than tokens"), "does not fit the template"),
        (KeyError("messages"), "unexpected KeyError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "unexpected UnicodeDecodeError"),
        (OSError(5, "Input/output error"), "unexpected OSError"),
    ],
)
def test_bad_samples_are_named_with_the_next_row(failure: Exception, reason: str):
    order = Numbers([100] * 9, lambda index: failure if index == 4 else None)
    rows = [*islice(lane(order, packing=False), 16)]
    skipped = [one for row in rows for one in row.skipped]
    assert [(one.reason, one.message) for one in skipped] == [(reason, str(failure))] * 2
    assert "numbers/4" not in [name for row in names(rows) for name in row]
    if isinstance(failure, SampleError):
        assert skipped[0].name == (failure.sample or skipped[0].name)


def test_a_skipped_sample_has_a_name():
    order = Numbers([100] * 3, lambda index: SampleError("x") if index == 0 else None)
    skipped = [one for row in islice(lane(order, packing=False), 4) for one in row.skipped]
    assert skipped[0].name.startswith("sample ")
    assert "of epoch 1" in skipped[0].name


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("lanes", [1, 8])
def test_only_bad_samples_are_an_error(size: int, lanes: int):
    order = Numbers([10] * size, lambda index: SampleError("no picture"))
    with pytest.raises(TrainingError, match=r"None of [\d,]+ samples in succession can be used.*no picture"):
        next(lane(order, lanes - 1, lanes=lanes))
    assert sum(order.read.values()) == max(-(-size // lanes), BAD_SAMPLES)


def test_a_few_good_samples_are_enough():
    order = Numbers([10] * 60, lambda index: SampleError("bad") if index else None)
    assert names(islice(lane(order, lookahead=1), 5)) == [["numbers/0"]] * 5


@pytest.mark.parametrize(
    "failure", [DatasetError("the archive is gone"), TrainingError("stop"), MemoryError("no room")]
)
def test_what_concerns_all_samples_is_an_error(failure: Exception):
    order = Numbers([10] * 5, lambda index: failure if index == 2 else None)
    with pytest.raises(type(failure), match=str(failure)):
        next(lane(order))


def test_a_sample_longer_than_a_row_is_an_error():
    with pytest.raises(TrainingError, match=r"has 101 tokens, but a row holds 100"):
        next(lane(Numbers([101])))


@pytest.mark.parametrize(
    ("shortest", "longest", "row_length", "least", "most"),
    [
        (30, 900, 4096, 0.0, 0.001),
        (1, 4096, 4096, 0.03, 0.12),
        (1, 4096, 8192, 0.0, 0.01),
        (2100, 4096, 4096, 0.2, 0.3),  # no two fit
        (2100, 4096, 12288, 0.0, 0.03),
        (4096, 4096, 4096, 0.0, 0.0),
    ],
)
def test_expected_padding_is_that_of_a_lane(shortest: int, longest: int, row_length: int, least: float, most: float):
    draw = random.Random(0)
    lengths = [draw.randint(shortest, longest) for _ in range(200)]
    expected = expected_padding(lengths, row_length, 32)
    assert least <= expected <= most
    order = Numbers(lengths)
    rows = [*islice(lane(order, row_length=row_length, lookahead=32), 100)]
    found = 1 - sum(len(sample) for row in rows for sample in row.samples) / (len(rows) * row_length)
    assert found == pytest.approx(expected, abs=0.03)
