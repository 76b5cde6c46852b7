"""Signal handlers for the time of a block."""

import os
import signal
import threading

from vila_core.signal_handlers import signal_handler


def test_a_handler_lasts_as_long_as_its_block() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    seen: list[int] = []
    with signal_handler(signal.SIGUSR1, lambda number, frame: seen.append(number)):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert seen == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_other_threads_run_the_block_without_the_handler() -> None:
    found: list[object] = []

    def run() -> None:
        with signal_handler(signal.SIGUSR1, signal.SIG_IGN):
            found.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGUSR1)]
