"""Processes that work for another one end with it."""

import signal
import subprocess
import sys

import pytest

POOL = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from vila_core.child_process import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        pool.submit(os.getpid).result()
        print("started", flush=True)
        time.sleep(60)
"""

FUNCTION = """
import time
from vila_core.child_process import run_in_child

def hang():
    print("started", flush=True)
    time.sleep(600)

run_in_child(hang, 3)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("program", [POOL, FUNCTION], ids=["pool", "function"])
def test_what_works_for_a_process_ends_with_it(program: str, number: int):
    """Their standard output is a pipe that ends with the last of them."""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "started\n"
        started.send_signal(number)
        started.communicate(timeout=30)
        assert started.returncode == -number
