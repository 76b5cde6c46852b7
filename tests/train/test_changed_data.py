"""Runs whose data change in place, while the number of samples stays."""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
from tests.train.loop_runs import Recorder, micro_config, send_at

from vila_core.errors import ConfigError
from vila_train.config import TrainConfig
from vila_train.loop import train


def write_data(folder: Path, numbers: Any = range(12)) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"question": f"red {number}", "answer": f"blue {number}"}) for number in numbers]
    (folder / "mine.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "other.jsonl").write_text(json.dumps({"question": "left", "answer": "right"}) + "\n")
    (folder / "sets.yaml").write_text("datasets:\n  mine: {path: mine.jsonl}\n  other: {path: other.jsonl}\n")


def config_of(base: Path, folder: Path) -> TrainConfig:
    data = {"data.mixture": "other+mine", "data.registries": [str(folder / "data/sets.yaml")]}
    return micro_config(base, max_steps=4, **data)


@pytest.fixture(scope="module")
def stopped(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run on them, which has done two of four steps."""
    folder = tmp_path_factory.mktemp("stopped")
    write_data(folder / "data")
    with pytest.raises(KeyboardInterrupt):
        train(config_of(micro_checkpoint, folder), folder / "run", [Recorder(send_at(2, 15))], device="cpu")
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it, whose run names the copied data."""
    folder = tmp_path / "copied"
    shutil.copytree(stopped, folder, copy_function=shutil.copyfile)
    settings = folder / "run/run.yaml"
    settings.write_text(settings.read_text().replace(str(stopped), str(folder)))
    return folder


def resume(base: Path, folder: Path, *, accept_changes: bool = False) -> list[int]:
    recorder = Recorder()
    train(config_of(base, folder), folder / "run", [recorder], device="cpu", accept_changes=accept_changes)
    return [*recorder.losses]


def test_copied_data_are_the_same(micro_checkpoint: Path, folder: Path):
    assert resume(micro_checkpoint, folder) == [3, 4]


@pytest.mark.parametrize("numbers", [range(11, -1, -1), [*range(11), 99]], ids=["shuffled", "edited"])
@pytest.mark.parametrize("lost", [(), ("plan.json",)], ids=["plan", "plan of the checkpoint"])
def test_changed_data_are_refused_and_accepted_if_asked(
    micro_checkpoint: Path, folder: Path, numbers: Any, lost: tuple[str, ...]
):
    write_data(folder / "data", numbers)
    for name in lost:
        (folder / "run" / name).unlink()
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    message = r"samples of 'mine' are not those that .*--accept-changes.*--out"
    with pytest.raises(ConfigError, match=message):
        resume(micro_checkpoint, folder)
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before
    assert resume(micro_checkpoint, folder, accept_changes=True) == [3, 4]
    shutil.rmtree(folder / "run/model")
    assert resume(micro_checkpoint, folder) == [], "they are the run's data now"


def test_a_run_of_an_earlier_version_continues(micro_checkpoint: Path, folder: Path):
    """Its plan has no fingerprints, and the checksums of its checkpoints are those of such a plan."""
    plan, (state,) = folder / "run/plan.json", folder.glob("run/checkpoints/*/state.json")
    values = json.loads(state.read_text())
    del values["plan"]["datasets"], values["checksum"]
    plan.write_text(json.dumps(values["plan"]))
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    state.write_text(json.dumps({**values, "checksum": zlib.crc32(text.encode())}))
    write_data(folder / "data", range(11, -1, -1))
    assert resume(micro_checkpoint, folder) == [3, 4]
    assert "fingerprint" in plan.read_text()
