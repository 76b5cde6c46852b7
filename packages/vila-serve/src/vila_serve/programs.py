"""Processes that run a module of this package and talk to the server over a socket pair."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping


def start_program(
    module: str, *arguments: str, environment: Mapping[str, str], is_silent: bool = False
) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """Start `python -m module DESCRIPTOR arguments`; return the process and the server's end of its socket.

    The process is new, not a fork: CUDA does not work in a fork, and a fork of a process with threads may wait for a
    lock that is never released.

    Args:
        module: reads the descriptor of its socket from its first argument.
        arguments: further arguments.
        environment: environment variables. `PYTHONPATH` is set, so that the process imports what this one does.
        is_silent: discard its output.

    Raises:
        OSError: the process cannot be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        number = theirs.fileno()
        output = subprocess.DEVNULL if is_silent else None
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(number), *arguments],
            pass_fds=[number],
            env={**environment, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in the server's terminal is the server's business
        )
    return process, ours
