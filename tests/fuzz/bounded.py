"""Run hostile inputs in a child process, and require an answer or a one-line `VilaError` within bounds.

    assert_bounded({"empty file": lambda: Image(b"").load(), ...})

All cases run in one child, one after another. A case that hangs or kills the child fails alone: a new child continues
with the next one. Children are forked by a server (see `fork_server.py`). The cases are pickled by value for it,
lambdas and closures too, so what a test patches or caches in its own process is not seen by its cases.
"""

import contextlib
import os
import pickle
import resource
import signal
import time
import traceback
import unicodedata
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TypeAlias

import cloudpickle
from tests.fork_server import fork_server

from vila_core.errors import VilaError

SECONDS = 30.0
"""Wall-clock time that one case may take."""
MEGABYTES = 1024
"""Growth of resident memory that one case may cause."""
_START_SECONDS = 120.0
"""Wall-clock time for a child to import the test's module and unpickle the cases."""
_ADDRESS_SPACE = 8 * 2**30
"""Growth of the address space at which allocations fail, so that a bomb cannot take down the machine."""
_READY = b"ready"

Case: TypeAlias = Callable[[], object]


def assert_bounded(cases: Mapping[str, Case], *, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> None:
    """Fail with one line per case that raises anything but a one-line `VilaError`, or exceeds its bounds."""
    failures = find_failures(cases, seconds=seconds, megabytes=megabytes)
    shown = "\n".join(f"{name}: {fault}" for name, fault in list(failures.items())[:40])
    assert not failures, f"{len(failures)} of {len(cases)} inputs are not handled:\n{shown}"


def find_failures(cases: Mapping[str, Case], *, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> dict[str, str]:
    """Return the fault of each case that fails, by the name of the case."""
    names = list(cases)
    pickled: bytes = cloudpickle.dumps(list(cases.values()))
    failures: dict[str, str] = {}
    position = 0
    while position < len(names):
        reports = _run_child(pickled, position, len(names) - position, seconds, megabytes)
        failures |= {names[position + index]: fault for index, fault in enumerate(reports) if fault}
        position += len(reports)
    return failures


def _run_child(pickled: bytes, first: int, count: int, seconds: float, megabytes: int) -> list[str]:
    """Run cases in a child until all are done or one of them ends the child. "" stands for a passed case."""
    context = fork_server()
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_run_cases, args=(pickled, first, writer, megabytes), daemon=True)
    child.start()
    writer.close()
    reports: list[str] = []
    with reader:
        if not (reader.poll(_START_SECONDS) and reader.recv_bytes() == _READY):
            raise RuntimeError("The child does not begin with the cases.")
        while len(reports) < count:
            if not reader.poll(seconds):
                reports.append(f"hangs (more than {seconds:g} s)")
                break
            try:
                reports.append(reader.recv_bytes().decode())
            except EOFError:
                child.join(10)
                reports.append(f"ends the process with {_exit_name(child.exitcode)}")
                break
    _kill(child)
    return reports


def _kill(child: ForkServerProcess) -> None:
    """End the child and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid or 0, signal.SIGKILL)
    child.join()


def _exit_name(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _run_cases(pickled: bytes, first: int, writer: Connection, megabytes: int) -> None:
    """Report each case through the pipe, then end the child."""
    os.setsid()  # a group of its own, to be killed with all that the cases start
    cases: list[Case] = pickle.loads(pickled)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if (virtual := _memory("VmSize")) and (soft == resource.RLIM_INFINITY or soft > virtual + _ADDRESS_SPACE):
        resource.setrlimit(resource.RLIMIT_AS, (virtual + _ADDRESS_SPACE, hard))
    writer.send_bytes(_READY)
    for case in cases[first:]:
        writer.send_bytes(_fault_of(case, megabytes)[:2000].encode(errors="backslashreplace"))
    os._exit(0)


def _fault_of(case: Case, megabytes: int) -> str:
    _reset_peak()
    before, started = _memory("VmRSS"), time.monotonic()
    fault = ""
    try:
        case()
    except VilaError as error:
        fault = _fault_of_message(str(error))
    except BaseException as error:  # noqa: BLE001 (every other outcome is a fault)
        where = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__}: {str(error)[:300]!r} at {Path(where.filename).name}:{where.lineno}"
    grown = (_memory("VmHWM") - before) // 2**20
    if grown > megabytes:
        fault = f"takes {grown} MB in {time.monotonic() - started:.1f} s. {fault}"
    return fault


def _fault_of_message(message: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in message):
        return f"message has line breaks, control characters or surrogates: {message[:300]!r}"
    if not message.strip() or len(message) > 1000:
        return f"message has {len(message)} characters: {message[:300]!r}"
    return ""


def _memory(field: str) -> int:
    """A field of /proc/self/status in bytes; 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
