"""Programs of tests are never waited for without a limit."""

import sys
import time

import pytest
from tests.programs import run_program

LEAVES_A_CHILD = """
import subprocess, sys
print("begun", flush=True)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
"""


def test_output_and_exit_code():
    code = "import sys; print(input()); print('wrong', file=sys.stderr); sys.exit(3)"
    done = run_program([sys.executable, "-c", code], input="text\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "text\n", "wrong\n")
    with pytest.raises(AssertionError, match=r"(?s)Exit code 3: .*text\nwrong"):
        run_program([sys.executable, "-c", code], input="text\n", check=True)


def test_a_program_whose_child_keeps_its_output_open():
    started = time.monotonic()
    with pytest.raises(AssertionError, match=r"(?s)No end within 5 s: .*\nbegun"):
        run_program([sys.executable, "-c", LEAVES_A_CHILD], seconds=5)
    assert time.monotonic() - started < 50
