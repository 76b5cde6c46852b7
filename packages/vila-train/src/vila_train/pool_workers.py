"""What the processes of a pool need besides their work."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this process when the one that started it ends, even if that was killed: a pool waits for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by multiprocessing"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
