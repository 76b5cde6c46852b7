"""Processes of tests: their ends are reported, and none is waited for without a limit."""

import os
import signal
import threading
import time

import pytest
from tests.fork_server import run_in_processes

LOCK = threading.Lock()


def take_lock() -> None:
    with LOCK:
        os._exit(3)


def print_and_hang() -> None:
    print("begun", flush=True)
    time.sleep(600)


def test_exit_codes_and_what_is_printed(capfd: pytest.CaptureFixture[str]):
    told = "printed by a child"
    assert run_in_processes([lambda: print(told), lambda: os._exit(0)]) == [0, 0]
    assert told in capfd.readouterr().err


def test_a_lock_that_a_thread_of_this_process_holds_is_free():
    """A fork of this process would wait for it forever."""
    with LOCK:
        assert run_in_processes([take_lock], seconds=60) == [3]


def test_a_process_that_hangs_is_killed_and_shows_where_it_is():
    with pytest.raises(AssertionError, match=r"(?s)longer than 5 s:.*begun.*in print_and_hang"):
        run_in_processes([print_and_hang], seconds=5)


def test_processes_that_wait_for_one_that_failed_are_killed():
    killed = -signal.SIGKILL
    assert run_in_processes([lambda: os.kill(os.getpid(), signal.SIGKILL), print_and_hang]) == [killed, killed]
