"""How large a step is, and how many there are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.train.loop_runs import micro_config

from vila_core.chat import Message
from vila_train.data.conversations import Conversation, SampleError
from vila_train.errors import TrainingError
from vila_train.parallel.mesh import require_divisible
from vila_train.plan import default_lanes, make_plan, row_length, samples_per_row


@dataclass(frozen=True)
class Sized:
    """Samples of 32 tokens, of which the first are damaged."""

    count: int
    damaged: int = 0

    def __len__(self) -> int:
        return self.count

    def conversation(self, epoch: int, position: int) -> Conversation:
        if position < self.damaged:
            raise SampleError("broken")
        return Conversation(f"{position}", [Message("user", "x" * 32)])


def encode(conversation: Conversation) -> Any:
    return str(conversation.messages[0].content)


def plan(order: Sized, world_size: int = 1, **changes: Any) -> tuple[int, int, int]:
    settings = {"data.rows_per_step": None, "data.lanes": None, "max_steps": None, **changes}
    made = make_plan(micro_config(Path("none"), **settings), order, encode, world_size)
    require_divisible(world_size, made.rows_per_step, made.lanes)
    return made.rows_per_step, made.lanes, made.total_steps


@pytest.mark.parametrize(
    ("samples", "changes", "rows", "steps"),
    [
        (1000, {"data.samples_per_step": 128}, 32, 8),  # four samples to a row of 128 tokens
        (1000, {"data.samples_per_step": 128, "epochs": 2.5}, 32, 20),
        (1000, {"data.samples_per_step": 128, "max_steps": 3}, 32, 3),
        (1000, {"data.samples_per_step": 1}, 1, 250),
        (1000, {"data.samples_per_step": 36}, 8, 32),  # 9 rows: not many ranks divide that
        (1000, {"data.rows_per_step": 9}, 9, 28),
        (1000, {"data.packing": False, "data.samples_per_step": 100}, 100, 10),
        (3, {"data.samples_per_step": 128}, 32, 1),
    ],
)
def test_rows_hold_the_samples_of_a_step(samples: int, changes: dict[str, Any], rows: int, steps: int):
    found = plan(Sized(samples), **changes)
    assert (found[0], found[2]) == (rows, steps)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8, 16, 24])
@pytest.mark.parametrize("samples_per_step", [1, 17, 128, 2048])
def test_a_plan_fits_the_ranks(world_size: int, samples_per_step: int):
    rows, lanes, _ = plan(Sized(100_000), world_size, **{"data.samples_per_step": samples_per_step})
    assert rows % world_size == lanes % world_size == 0
    assert abs(rows - samples_per_step / 4) <= max(samples_per_step / 32, world_size)


@pytest.mark.parametrize(
    ("rows", "samples", "world", "expected"),
    [
        (4, 100, 1, 4),
        (4, 10**6, 1, 32),
        (12, 10**6, 4, 48),
        (128, 10**6, 8, 64),
        (200, 10**6, 8, 40),
        (67, 10**6, 1, 1),
    ],
)
def test_lanes(rows: int, samples: int, world: int, expected: int):
    assert default_lanes(rows, samples, 32, world) == expected


def test_damaged_samples_are_not_measured():
    assert plan(Sized(1000, damaged=100), **{"data.samples_per_step": 128})[0] == 32
    with pytest.raises(TrainingError, match="None of the first 128 samples can be used: broken"):
        plan(Sized(1000, damaged=128))


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([100], 1), ([50] * 10, 2), ([60] * 10, 1), ([10] * 95, 10), ([10], 10), ([60], 1), ([5] * 7, 20)],
)
def test_samples_per_row(lengths: list[int], expected: float):
    assert samples_per_row(lengths, 100) == pytest.approx(expected)


def test_rows_hold_the_longest_sample():
    with pytest.raises(TrainingError, match=r"data\.row_length is 100, but samples may have data\.max_length = 128"):
        row_length(micro_config(Path("none"), **{"data.row_length": 100}))
