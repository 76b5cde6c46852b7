"""Exit codes in words."""

import signal

import pytest

from vila_core.exit_codes import describe_exit


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with exit code 0"),
        (2, "ended with exit code 2"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (1 - signal.SIGRTMAX, f"was killed by signal {signal.SIGRTMAX - 1}"),  # a signal without a name
    ],
)
def test_how_a_process_ended(code: int, words: str) -> None:
    assert describe_exit(code) == words
