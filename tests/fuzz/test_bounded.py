"""The harness of the fuzz tests finds each kind of fault."""

import os
import signal
import time
from collections.abc import Callable

import pytest
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
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: exit(0), "SystemExit"),
        (lambda: bytearray(b"x" * 2**27), "takes"),
    ],
)
def test_each_fault_is_found_and_the_next_case_still_runs(case: Callable[[], object], fault: str) -> None:
    failures = find_failures({"first": case, "second": lambda: 1 // 0}, seconds=2, megabytes=64)
    assert fault in failures["first"]
    assert "ZeroDivisionError" in failures["second"]
