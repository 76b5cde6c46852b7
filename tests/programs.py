"""Runs programs of tests with a limit on their time."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SECONDS = 600.0
"""How long a program may take."""


def run_program(
    command: Sequence[str | Path],
    *,
    seconds: float = SECONDS,
    check: bool = False,
    input: str | None = None,
    **settings: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a program as `subprocess.run` does, and return its output as text.

    Args:
        command: the program and its arguments.
        seconds: how long it may take.
        check: whether it must succeed.
        input: what it reads from its standard input; None: what this process would read.
        settings: of `subprocess.Popen`, such as `env`.

    Raises:
        AssertionError: it takes too long, and is killed with all that it started; or it fails though it must succeed.
            The message has its output.
    """
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    if input is not None:
        settings["stdin"] = subprocess.PIPE
    with subprocess.Popen(command, text=True, start_new_session=True, **settings) as process:
        try:
            output, errors = process.communicate(input, timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # what it started may keep its output open
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            output, errors = process.communicate(timeout=10)
            raise AssertionError(f"No end within {seconds:g} s: {command}\n{output or ''}{errors or ''}") from None
    code = process.returncode
    assert code == 0 or not check, f"Exit code {code}: {command}\n{output or ''}{errors or ''}"
    return subprocess.CompletedProcess(command, code, output, errors)
