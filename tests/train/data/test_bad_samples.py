"""Which errors a sample is to blame for: training, dry runs, checks and scores count the same ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vila_core.errors import MediaError, MissingDependencyError, PromptError
from vila_train.config import DataConfig
from vila_train.data.bad_samples import as_skipped
from vila_train.data.checking import check_source
from vila_train.data.conversations import Conversation, SampleError
from vila_train.data.sources import RecordSource
from vila_train.dry_run.measuring import measure as measure_run
from vila_train.errors import DatasetError, TrainingError
from vila_train.plan import measure
from vila_train.recipes.sft import fine_tuning
from vila_train.run_folder import RunFolder


@pytest.mark.parametrize(
    "error",
    [
        TrainingError("data.too_long=error"),
        DatasetError("the file is gone"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MissingDependencyError("av", "Video", "vila-core[video]"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_no_sample_is_to_blame_for(error: Exception):
    with pytest.raises(type(error)):
        as_skipped(error, "set/1")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SampleError("x", "too long", "other/2"), "too long"),
        (MediaError("x"), "unreadable medium"),
        (PromptError("x"), "does not fit the template"),
        (KeyError("x"), "unexpected KeyError"),
        (RecursionError("x"), "unexpected RecursionError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_reasons_of_bad_samples(error: Exception, reason: str):
    skipped = as_skipped(error, "set/1")
    assert skipped.reason == reason
    assert skipped.name == ("other/2" if isinstance(error, SampleError) else "set/1")


class Raises:
    """Records of which every second one makes the reader raise."""

    def __init__(self, error: Exception):
        self.error = error

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> dict[str, object]:
        if number % 2:
            raise self.error
        return {}

    def read(self, record: object) -> list[object]:
        return []


@pytest.mark.parametrize("error", [KeyError("messages"), ZeroDivisionError("x"), MediaError("x"), OSError(5, "x")])
def test_a_check_counts_whatever_a_reader_raises(error: Exception):
    records = Raises(error)
    findings = check_source(RecordSource("set", records, records))
    assert (findings.checked, findings.usable) == (4, 2)
    assert all(message.startswith("set/") for message in findings.first)


class Order:
    """Conversations, some of which raise."""

    def __init__(self, error: Exception):
        self.error = error

    def __len__(self) -> int:
        return 4

    def conversation(self, epoch: int, position: int) -> Conversation:
        if position % 2:
            raise self.error
        return Conversation(f"set/{position}", [])


def test_planning_skips_what_training_skips():
    encode: Callable[[Conversation], object] = lambda conversation: [0] * 10  # noqa: E731
    assert measure(Order(AttributeError("x")), encode, 40) == pytest.approx(4)  # the two good ones, again and again
    with pytest.raises(DatasetError):
        measure(Order(DatasetError("gone")), encode, 40)


def test_a_dry_run_names_reasons_as_training_does(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    lines = [
        {"question": "Hi", "answer": "Ho"},
        {"question": "Hi", "answer": "Ho", "image": "a.png"},
        {"question": "Hi", "answer": ""},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    config = fine_tuning("vila-tiny", str(path))
    config = config.model_copy(update={"data": DataConfig(mixture=str(path), max_length=512)})
    skipped = measure_run(config, RunFolder(tmp_path / "run")).skipped
    assert skipped == {"unreadable medium": 1, "empty message": 1}
