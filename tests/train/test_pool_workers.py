"""Processes that work for another one end with it."""

import signal
import subprocess
import sys

import pytest

START = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from vila_train.pool_workers import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        pool.submit(os.getpid).result()
        print("started", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_process_that_is_killed(number: int):
    """Their standard output is a pipe that ends with the last of them."""
    with subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "started\n"
        started.send_signal(number)
        started.communicate(timeout=30)
        assert started.returncode == -number
