"""The harness of the fuzz tests finds each kind of fault."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.fuzz.bounded import assert_bounded, find_failures

from vila_core.errors import VilaError


class RawError(VilaError):
    """An error whose message is printed as it is, unlike those of `VilaError`."""

    def __str__(self) -> str:
        return str(self.args[0])


def refuse(message: str) -> None:
    raise RawError(message)


def test_answers_and_one_line_errors_pass() -> None:
    assert_bounded({"answer": lambda: 1, "refused": lambda: refuse("The file is empty.")})


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        (lambda: 1 // 0, "ZeroDivisionError"),
        (lambda: refuse("one\ntwo"), "line breaks"),
        (lambda: refuse("\x1b[31m"), "control characters"),
        (lambda: time.sleep(30), "hangs"),
        (lambda: os._exit(3), "exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: exit(0), "SystemExit"),
        (lambda: bytearray(b"x" * 2**27), "takes"),
    ],
)
def test_each_fault_is_found_and_the_next_case_still_runs(case: Callable[[], object], fault: str) -> None:
    failures = find_failures({"first": case, "second": lambda: 1 // 0}, seconds=2, megabytes=64)
    assert fault in failures["first"]
    assert "ZeroDivisionError" in failures["second"]


def test_cases_run_beside_threads_of_the_test() -> None:
    """A forked copy of this process would wait for OpenMP's threads, and for the lock."""
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    matrix = torch.ones(500, 500)
    assert (matrix @ matrix).sum() == 500**3
    try:
        assert_bounded({"threads": lambda: _multiply(matrix), "server": _require_one_thread_in_the_server}, seconds=10)
    finally:
        torch.set_num_threads(threads)


def _multiply(matrix: torch.Tensor) -> None:
    torch.set_num_threads(4)
    assert (matrix @ matrix).sum() == 500**3


def _require_one_thread_in_the_server() -> None:
    assert len(os.listdir(f"/proc/{os.getppid()}/task")) == 1


def test_what_a_hanging_case_started_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "child"

    def start_and_hang() -> None:
        child = subprocess.Popen(["sleep", "100"])
        note.write_text(str(child.pid))
        child.wait()

    assert "hangs" in find_failures({"first": start_and_hang}, seconds=4)["first"]
    state = Path(f"/proc/{note.read_text()}/status")
    assert not state.exists() or "State:\tZ" in state.read_text()
