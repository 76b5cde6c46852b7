"""A full or read-only disk and names that lead elsewhere: one-line errors, and nothing is left half-written."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.eval.test_runner import Echo, run, task, words

from vila_core.errors import ConfigError
from vila_eval.options import ModelOptions, Planned
from vila_eval.records import append_only
from vila_eval.records.storage import remove_unfinished, write_whole
from vila_eval.running.answering import LazyModel
from vila_eval.running.identity import check_task_folder, model_name


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Echo:
    echo = Echo()
    monkeypatch.setattr(LazyModel, "get", lambda self: echo)
    return echo


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_ends_the_task_in_one_line_and_a_later_run_resumes(
    code: int, tmp_path: Path, model: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(append_only.os, "fsync", fail)
        (outcome,) = run(tmp_path, task(words(5)))
    assert outcome.error is not None
    assert "\n" not in outcome.error
    assert os.strerror(code) in outcome.error or "the disk is full" in outcome.error
    folder = tmp_path / "vila-tiny/words"
    left = folder / ".samples.jsonl.a1b2c3.part"
    left.write_text("left by a killed run")
    os.utime(left, (1, 1))
    (outcome,) = run(tmp_path, task(words(5)))
    assert outcome.error is None
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_file_that_another_run_is_writing_is_not_removed(tmp_path: Path) -> None:
    import fcntl

    unfinished = tmp_path / ".metrics.json.x.part"
    unfinished.touch()
    remove_unfinished(tmp_path)
    assert unfinished.exists(), "its writer may be about to lock it"
    with unfinished.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(unfinished, (1, 1))
        remove_unfinished(tmp_path)
        assert unfinished.exists()
    remove_unfinished(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_is_locked_until_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def clean_up_first(self: Path, target: Path) -> Path:
        os.utime(self, (1, 1))
        remove_unfinished(tmp_path)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", clean_up_first)
    write_whole(tmp_path / "metrics.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


NAMES = ["../../x", "/abs", "", " ", ".", "..", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[31m", "x" * 300, "\ud800", "C:x"]


@pytest.mark.parametrize("name", NAMES)
def test_names_never_lead_out_of_the_output_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="--model-name"):
        model_name(ModelOptions(name=name))
    if name != "a/b":  # task names may have folders
        with pytest.raises(ConfigError):
            check_task_folder(Planned(task(words(1)), name))


def test_a_finished_run_says_so(tmp_path: Path, model: Echo) -> None:
    assert not run(tmp_path, task(words(2)))[0].was_complete
    assert run(tmp_path, task(words(2)))[0].was_complete


def test_sigterm_says_where_the_answers_are(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vila_eval"]
    arguments = ["--tasks", "vila/word,vila/chart", "--limit", "400", "-b", "2", "-o", str(tmp_path)]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("vila-tiny/vila/*/answers-*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 143
    assert f"The answers so far are kept in '{tmp_path}/vila-tiny'" in errors
    assert "Traceback" not in errors
