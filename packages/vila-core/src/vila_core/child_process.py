"""Processes that work for this one: they end with it, and keep to limits on time and memory."""

import multiprocessing
import os
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

MAX_GROWTH = 4 * 2**30
"""Limit on the address space that the function may add, in bytes. Threads reserve much more than they use."""
_CHUNK = 1 << 20
_GRACE_SECONDS = 1.0
"""How much later than its parent a child ends itself."""
_RESULT, _FAILURE, _END = b"r", b"f", b"."
"""What a child writes: one of the first two, the result or message, the last."""


class ChildFailedError(Exception):
    """The function raised; the message is that of its exception."""


class ChildEndedError(Exception):
    """The process ended, or was ended, without a result: too little time or memory, or a crash."""


def run_in_child(function: Callable[[], bytes], seconds: float) -> bytes:
    """Return the result of `function`, which must not use a GPU, computed in a forked process.

    It may hang or crash. The process ends in time even if this one is killed.

    Raises:
        ChildFailedError: the function raised.
        ChildEndedError: it did not finish.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # From Python 3.12 on, a warning says that locks of other threads stay locked: the function takes none of ours.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(function, writer, seconds)
    os.close(writer)
    try:
        outcome = _read(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    kind, result = outcome[:1], outcome[1:-1]
    if outcome[-1:] != _END:
        raise ChildEndedError
    if kind == _FAILURE:
        raise ChildFailedError(result.decode())
    return result


def end_with_parent() -> None:
    """End this process of `multiprocessing` when its parent ends, even if that was killed: a pool waits forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by multiprocessing"

    def follow() -> None:
        parent.join()
        os._exit(1)  # this process may be computing, so nothing gentler ends it soon

    threading.Thread(target=follow, daemon=True).start()


def _answer(function: Callable[[], bytes], writer: int, seconds: float) -> NoReturn:
    """Write the result or the message to `writer` and end the process, without Python's exit handlers."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, in the middle of a library too
        signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE_SECONDS)
        limit_memory(MAX_GROWTH)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            outcome = _RESULT + function()
        except Exception as error:  # noqa: BLE001 - reported by the parent
            outcome = _FAILURE + str(error).encode(errors="replace")
        with os.fdopen(writer, "wb") as file:
            file.write(outcome + _END)
    finally:
        os._exit(0)


def limit_memory(growth: int) -> None:
    """Let this process add at most `growth` bytes to its address space, where the system can limit that."""
    import resource  # not on Windows

    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = used + growth
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _read(reader: int, deadline: float) -> bytes:
    """Return all that is written to a pipe; nothing if that takes longer than until `deadline`."""
    chunks: list[bytes] = []
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([reader], [], [], left)
        if not ready:
            break
        chunk = os.read(reader, _CHUNK)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
    return b""
