"""Forks the processes of tests from a server that has one thread.

A fork of the test's own process may wait forever: threads do not survive a fork, so nobody frees a lock that one of
them held, and OpenMP, libav and tokenizers wait for theirs. What a test patches in its own process is not seen by the
server's children.
"""

import faulthandler
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest import mock

import cloudpickle

SECONDS = 240.0
"""How long processes may take."""
_ROOT = Path(__file__).parents[1]


@functools.cache
def fork_server() -> ForkServerContext:
    """Return what starts processes as `multiprocessing` does. The server has imported `preloaded.py`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with mock.patch.dict(os.environ, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}):
        context.Process(target=_do_nothing).start()
    return context


def _do_nothing() -> None: ...


def run_in_processes(functions: Sequence[Callable[[], object]], seconds: float = SECONDS) -> list[int]:
    """Run each function in a process of its own. Return their exit codes; negative: killed by that signal.

    If one fails, the others are killed 2 seconds later: they wait for it in vain. What they print is printed when all
    have ended. Functions are pickled by value, lambdas and closures too.

    Raises:
        AssertionError: they take longer than `seconds`. The message has what they printed and where they are.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        processes = [
            fork_server().Process(target=_run, args=(cloudpickle.dumps(function), log)) for function in functions
        ]
        for process in processes:
            process.start()
        late = _wait(processes, time.monotonic() + seconds)
        printed = log.read_text(errors="replace") if log.exists() else ""
    assert not late, f"Processes {late} of {len(processes)} take longer than {seconds:g} s:\n{printed}"
    sys.stderr.write(printed)
    return [process.exitcode or 0 for process in processes]


def _run(pickled: bytes, log: Path) -> None:
    with log.open("ab") as file:
        for descriptor in (1, 2):  # standard output and error
            os.dup2(file.fileno(), descriptor)
    faulthandler.register(signal.SIGUSR1)
    multiprocessing.set_start_method(None, force=True)  # the system's, not that of the server
    os.setsid()  # a group of its own, to be killed with all that the function starts
    pickle.loads(pickled)()


def _wait(processes: Sequence[ForkServerProcess], deadline: float) -> list[int]:
    """Wait until all processes have ended, and return the numbers of those that had to be killed at the deadline."""
    late: list[int] = []
    for number, process in enumerate(processes):
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            late.append(number)
            _signal(process, signal.SIGUSR1)
            process.join(2)  # while it prints where it is
            _kill(process)
        if process.exitcode:
            for other in processes:
                other.join(2)
                _kill(other)
    return late


def _kill(process: ForkServerProcess) -> None:
    """End a process and what it started."""
    if process.exitcode is None:
        _signal(process, signal.SIGKILL)
        process.join(10)


def _signal(process: ForkServerProcess, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, number)
