"""How large a step is, and how many there are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.train.loop_runs import micro_config

from vila_core.chat import Message
from vila_core.errors import ConfigError
from vila_train.data.conversations import Conversation, SampleError
from vila_train.errors import TrainingError
from vila_train.parallel.mesh import require_divisible
from vila_train.plan import Plan, default_lanes, make_plan, resume_plan, row_length, samples_per_row


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


def resumed(samples: int = 1000, accept_changes: bool = False, **changes: Any) -> int:
    """Return the steps of a run that started with 1000 samples for 8 steps, and resumes with other settings."""
    settings = {"data.rows_per_step": None, "data.lanes": None, "max_steps": None}
    started = make_plan(micro_config(Path("none"), **settings), Sized(1000), encode, 1)
    config = micro_config(Path("none"), **(settings | changes))
    plan = resume_plan(started, config, Sized(samples), encode, accept_changes=accept_changes)
    assert (plan.rows_per_step, plan.lanes) == (started.rows_per_step, started.lanes)
    return plan.total_steps


def test_a_resumed_run_has_the_steps_that_are_asked_for():
    assert resumed() == 8
    assert resumed(epochs=2) == 16
    assert resumed(max_steps=3) == 3
    assert resumed(**{"data.rows_per_step": 32, "data.lanes": 32}) == 8


def test_steps_are_measured_if_the_run_did_not_need_that_before():
    config = micro_config(Path("none"), max_steps=3)
    plan = make_plan(config, Sized(1000), encode, 1)
    assert plan.samples_per_row is None
    longer = micro_config(Path("none"), max_steps=None)
    assert resume_plan(plan, longer, Sized(1000), encode).total_steps == 63  # four rows of four samples


@pytest.mark.parametrize("name", ["data.rows_per_step", "data.lanes"])
def test_rows_and_lanes_of_a_run_stay(name: str):
    with pytest.raises(ConfigError, match=rf"{name} is 64, but the run started with 32.*Leave it at 32"):
        resumed(accept_changes=True, **{name: 64})


def test_a_run_does_not_silently_go_on_with_other_data():
    with pytest.raises(ConfigError, match=r"has 2,000 samples per epoch, but it had 1,000.*--accept-changes"):
        resumed(2000)
    assert resumed(2000, accept_changes=True) == 16


@pytest.mark.parametrize("name", ["rows_per_step", "lanes"])
def test_a_plan_in_a_file_has_bounds(name: str):
    """Each lane takes memory before the first step."""
    values = {"rows_per_step": 4, "lanes": 4, "total_steps": 1, "samples_per_row": 1.0}
    assert Plan.model_validate(values).lanes == 4
    with pytest.raises(ValidationError, match=name):
        Plan.model_validate(values | {name: 10**12})
