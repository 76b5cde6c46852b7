"""How a program ends, whatever its function does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.programs import run_program

from vila_core.cli.entry_point import start

START = f"import sys; from {start.__module__} import start; start('program:main')"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "program.py"


def run(program: Path, body: str, output: int) -> tuple[int, str]:
    """Run a program with this body of its function; return its exit code and what it wrote to standard error."""
    program.write_text(f"import signal, sys\ndef main():\n    {body}\n", encoding="utf-8")
    path = os.pathsep.join([str(program.parent), *filter(None, sys.path)])
    ended = run_program(
        [sys.executable, "-c", START], env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": ""}, stdout=output
    )
    return ended.returncode, ended.stderr


STOPPED = (130, "Stopped.\n")
PRESS = "signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize(
    ("body", "end"),
    [
        ("pass", (0, "")),
        ("sys.exit(3)", (3, "")),
        ("sys.exit('No.')", (1, "No.\n")),
        (PRESS, STOPPED),
        (f"exec('import signal\\n{PRESS}')", STOPPED),  # Python alone would then end by SIGINT
        (f"import atexit; atexit.register(lambda: {PRESS}); {PRESS}", (-2, STOPPED[1])),  # pressed twice
    ],
)
def test_exit_codes(program: Path, body: str, end: tuple[int, str]) -> None:
    assert run(program, body, subprocess.DEVNULL) == end


SWALLOWS = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except BaseException:
    pass
"""


def test_an_import_cannot_swallow_ctrl_c(program: Path) -> None:
    """Libraries in C++ do, or abort: an import of torch did one of both in 6 of 100 tries."""
    program.with_name("swallows.py").write_text(SWALLOWS, encoding="utf-8")
    assert run(program, "import swallows; print('went on', file=sys.stderr)", subprocess.DEVNULL) == (130, "Stopped.\n")


def test_ctrl_c_that_the_shell_ignores_stays_ignored(program: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in `nohup` and the background jobs of a script
    try:
        assert run(program, PRESS, subprocess.DEVNULL) == (0, "")
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("body", ["print('a')", "print('a', flush=True)", "print('a'); sys.exit(0)"])
def test_a_closed_pipe_is_no_traceback(program: Path, body: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(program, body, writer) == (1, "")
    finally:
        os.close(writer)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("body", ["print('a')", "print('a'); sys.exit(0)"])
def test_a_full_disk_is_one_line(program: Path, body: str) -> None:
    with open("/dev/full", "wb") as full:
        assert run(program, body, full.fileno()) == (
            2,
            "Error: Standard output cannot be written: No space left on device.\n",
        )


def test_other_errors_keep_their_traceback(program: Path) -> None:
    code, said = run(program, "raise OSError('of a socket')", subprocess.DEVNULL)
    assert code == 1
    assert said.startswith("Traceback")
    assert said.endswith("OSError: of a socket\n")
