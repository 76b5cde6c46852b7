"""Workers as processes on this machine."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from vila_core.child_process import end_with_parent
from vila_core.errors import VilaError
from vila_core.exit_codes import describe_exit
from vila_core.signal_handlers import signal_handler
from vila_eval.errors import WorkerError, describe_exception
from vila_eval.running.failures import failure_file, read_failures, remove_failures
from vila_eval.running.workers import Work, work


class Processes:
    """Starts one process per worker."""

    def __init__(self, works: Sequence[Work]):
        self.root = works[0].root
        remove_failures(self.root)
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        pipes = [context.Pipe(duplex=False) for _ in works]
        self._reasons = [receiver for receiver, _ in pipes]
        self._processes = [
            context.Process(target=_run_process, args=(one, sender), name=f"vila-eval worker {one.rank.rank}")
            for one, (_, sender) in zip(works, pipes, strict=True)
        ]
        # The terminal sends Ctrl-C to the workers too, but this process ends them.
        with signal_handler(signal.SIGINT, signal.SIG_IGN):
            for process in self._processes:
                process.start()
        for _, sender in pipes:
            sender.close()  # the children hold their own ends

    @property
    def pids(self) -> list[int | None]:
        return [process.pid for process in self._processes]

    def check(self) -> bool:
        for rank, process in enumerate(self._processes):
            if process.exitcode:
                raise WorkerError(f"Worker {rank} {describe_exit(process.exitcode)}. {self._reason(rank)}")
        return all(process.exitcode == 0 for process in self._processes)

    def _reason(self, rank: int) -> str:
        """Return why a worker ended: what it sent, or wrote; the file is missing if the disk is full."""
        with suppress(EOFError, OSError):
            if self._reasons[rank].poll():
                return str(self._reasons[rank].recv())
        unknown = "It left no reason: was it killed, or out of memory?"
        return read_failures(self.root).get(failure_file(rank), unknown)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        remove_failures(self.root)


def _run_process(assigned: Work, reason: Connection) -> None:
    """Run a worker in a child process, which ends when its parent does, however the parent ends."""
    end_with_parent()
    try:
        work(assigned)
    except Exception as error:
        reason.send(describe_exception(error))
        if isinstance(error, VilaError):
            sys.exit(2)
        raise
