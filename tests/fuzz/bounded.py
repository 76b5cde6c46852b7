"""Run hostile inputs in a child process, and require an answer or a one-line `VilaError` within bounds.

    assert_bounded({"empty file": lambda: Image(b"").load(), ...})

All cases run in one forked child, one after another. A case that hangs or kills the child fails alone: a new child
continues with the next one.
"""

import contextlib
import os
import pickle
import resource
import select
import signal
import sys
import time
import traceback
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from vila_core.errors import VilaError

SECONDS = 30.0
"""Wall-clock time that one case may take."""
MEGABYTES = 1024
"""Growth of resident memory that one case may cause."""
_ADDRESS_SPACE = 8 * 2**30
"""Growth of the address space at which allocations fail, so that a bomb cannot take down the machine."""

Case: TypeAlias = Callable[[], object]


def assert_bounded(cases: Mapping[str, Case], *, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> None:
    """Fail with one line per case that raises anything but a one-line `VilaError`, or exceeds its bounds."""
    failures = find_failures(cases, seconds=seconds, megabytes=megabytes)
    shown = "\n".join(f"{name}: {fault}" for name, fault in list(failures.items())[:40])
    assert not failures, f"{len(failures)} of {len(cases)} inputs are not handled:\n{shown}"


def find_failures(cases: Mapping[str, Case], *, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> dict[str, str]:
    """Return the fault of each case that fails, by the name of the case."""
    names = list(cases)
    failures: dict[str, str] = {}
    position = 0
    while position < len(names):
        reports = _run_child([(name, cases[name]) for name in names[position:]], seconds, megabytes)
        failures |= {names[position + index]: fault for index, fault in enumerate(reports) if fault}
        position += len(reports)
    return failures


def _run_child(cases: Sequence[tuple[str, Case]], seconds: float, megabytes: int) -> list[str]:
    """Run cases in a forked child until all are done or one of them ends the child. "" stands for a passed case."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run_cases(cases, writer, megabytes)
    os.close(writer)
    reports: list[str] = []
    with os.fdopen(reader, "rb") as results:
        while len(reports) < len(cases):
            ready, _, _ = select.select([results], [], [], seconds)
            if not ready:
                os.kill(child, signal.SIGKILL)
                reports.append(f"hangs (more than {seconds:g} s)")
                break
            try:
                reports.append(pickle.load(results))  # written by our own child
            except EOFError:
                reports.append("ends the process")
                break
    _, status = os.waitpid(child, 0)
    if reports[-1] == "ends the process" and os.WIFSIGNALED(status):
        reports[-1] += f" with {signal.Signals(os.WTERMSIG(status)).name}"
    return reports


def _run_cases(cases: Sequence[tuple[str, Case]], writer: int, megabytes: int) -> NoReturn:
    """Report each case through the pipe, unbuffered, then end the child without running pytest's exit code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if (virtual := _memory("VmSize")) and (soft == resource.RLIM_INFINITY or soft > virtual + _ADDRESS_SPACE):
        resource.setrlimit(resource.RLIMIT_AS, (virtual + _ADDRESS_SPACE, hard))
    for _, case in cases:
        fault = _fault_of(case, megabytes)
        os.write(writer, pickle.dumps(fault[:2000]))
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
