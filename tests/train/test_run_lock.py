"""A run's folder belongs to one process at a time."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.train.loop_runs import Mixed, micro_config

from vila_core.errors import ConfigError
from vila_train.loop import train
from vila_train.run_lock import only_run

HOLD = """
import os, sys, time
from pathlib import Path
from vila_train.run_lock import only_run

with only_run(Path(sys.argv[1])):
    loader = os.fork()
    if loader:
        print(loader, flush=True)
    time.sleep(60)
"""


@contextmanager
def another_run(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield a process that holds the folder, and the id of a process that it forked."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        loader = int(holder.stdout.readline())
        try:
            yield holder, loader
        finally:
            os.kill(loader, signal.SIGKILL)
            holder.kill()


def test_a_second_run_in_the_same_folder_is_refused(micro_checkpoint: Path, tmp_path: Path):
    config = micro_config(micro_checkpoint, max_steps=1)
    out = tmp_path / "run"
    out.mkdir()
    with another_run(out), pytest.raises(ConfigError, match="Another run is at work in"):
        train(config, out, order=Mixed(), device="cpu")


def test_a_killed_run_holds_nothing_while_its_loaders_end(tmp_path: Path):
    with another_run(tmp_path) as (holder, _):
        holder.kill()
        holder.wait()
        with only_run(tmp_path):
            pass
