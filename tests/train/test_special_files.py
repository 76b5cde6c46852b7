"""Pipes, devices, sockets and folders in place of the files of a run: refused at once, and never waited for."""

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.train.loop_runs import Mixed, micro_config, run, send_at

from vila_core.errors import ConfigError, OutputError, VilaError
from vila_train.config import DataConfig
from vila_train.data.mixture import open_mixture
from vila_train.dry_run.measuring import measure
from vila_train.errors import DatasetError
from vila_train.loop import train
from vila_train.pruning.scoring import read_scores
from vila_train.run_folder import RunFolder
from vila_train.run_lock import only_run
from vila_train.tracking.log import JsonLog


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Fail instead of waiting for a pipe."""

    def fail(*_: object) -> None:
        pytest.fail("it waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(kind: str, path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as opened:
            short = Path(f"/proc/self/fd/{os.open(path.parent, os.O_RDONLY)}")
            opened.bind(str(short / path.name))


@pytest.fixture(scope="module")
def stopped(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        run(micro_config(micro_checkpoint), out, after=send_at(2, signal.SIGTERM))
    return out


@pytest.mark.parametrize("kind", ["named pipe", "folder", "device", "socket"])
@pytest.mark.parametrize("name", ["run.yaml", "plan.json", "skipped.jsonl", "log.jsonl", "evaluation.jsonl", ".lock"])
def test_a_file_of_a_run_that_is_none(stopped: Path, micro_checkpoint: Path, tmp_path: Path, name: str, kind: str):
    out = Path(shutil.copytree(stopped, tmp_path / "run", ignore=shutil.ignore_patterns(".lock")))
    put(kind, out / name)
    for accept_changes in (False, True):
        with pytest.raises(VilaError, match=rf"{name}' .*is a {kind}"):
            train(micro_config(micro_checkpoint), out, order=Mixed(), device="cpu", accept_changes=accept_changes)
    with pytest.raises(VilaError, match=rf"{name}' .*is a {kind}"):
        measure(micro_config(micro_checkpoint), RunFolder(out))


@pytest.mark.parametrize("name", ["checkpoints", "model"])
def test_a_folder_of_a_run_that_is_none(stopped: Path, micro_checkpoint: Path, tmp_path: Path, name: str):
    out = Path(shutil.copytree(stopped, tmp_path / "run", ignore=shutil.ignore_patterns(".lock")))
    put("named pipe", out / name)
    with pytest.raises(VilaError, match=rf"{name}'? (is not a folder|exists and is not empty)"):
        run(micro_config(micro_checkpoint), out)


def test_pipes_that_come_while_a_run_is_at_work(tmp_path: Path):
    """What is written later does not wait either."""
    for name in ("skipped.jsonl", "evaluation.jsonl", ".lock"):
        os.mkfifo(tmp_path / name)
    log = JsonLog()
    log._folder = tmp_path  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(OutputError, match=r"evaluation.jsonl' cannot be written: it is a named pipe"):
        log.on_evaluation(1, {"loss": 1.0})
    with pytest.raises(OutputError, match=r"lock' cannot be written: it is a named pipe"), only_run(tmp_path):
        pass


def test_scores_that_are_a_pipe(tmp_path: Path):
    os.mkfifo(tmp_path / "mine.small.jsonl")
    with pytest.raises(ConfigError, match=r"mine.small.jsonl' cannot be read: it is a named pipe"):
        [*read_scores(tmp_path / "mine.small.jsonl")]


@pytest.mark.parametrize("kind", ["named pipe", "device", "socket"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.tar", "a.parquet"])
def test_data_that_are_no_file(tmp_path: Path, name: str, kind: str):
    put(kind, tmp_path / name)
    for mixture in (tmp_path / name, tmp_path):
        with pytest.raises(DatasetError, match=rf"{name}' is a {kind}"):
            open_mixture(DataConfig(mixture=str(mixture)), seed=0)


@pytest.mark.parametrize("kind", ["named pipe", "device", "socket", "folder"])
def test_subsets_and_registries_that_are_no_file(tmp_path: Path, kind: str):
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    put(kind, tmp_path / "half.txt")
    with pytest.raises(DatasetError, match=rf"half.txt' is a {kind}"):
        open_mixture(DataConfig(mixture=f"{tmp_path}/a.jsonl@{tmp_path}/half.txt"), seed=0)
    put(kind, tmp_path / "more.yaml")
    with pytest.raises(VilaError, match=rf"more.yaml' is a {kind}"):
        open_mixture(DataConfig(mixture="a", registries=(tmp_path / "more.yaml",)), seed=0)


def test_an_index_beside_the_data_that_is_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The places are found again."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n' * 3)
    os.mkfifo(tmp_path / ".a.jsonl.samples.npy")
    assert len(open_mixture(DataConfig(mixture=f"{tmp_path}/a.jsonl"), seed=0)) == 3


def test_a_saved_dataset_with_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_list([{"question": "a", "answer": "b"}] * 3).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    put("named pipe", file)
    with pytest.raises(DatasetError, match=r"arrow' is a named pipe"):
        open_mixture(DataConfig(mixture=f"{tmp_path}/saved"), seed=0)
