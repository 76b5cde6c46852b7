"""A progress bar while the weights load."""

import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager

from vila_core.display.html import in_notebook

with warnings.catch_warnings():
    # In a notebook without ipywidgets it falls back to text, but says so, here or when transformers imports it.
    warnings.filterwarnings("ignore", message="IProgress not found")
    from tqdm.auto import tqdm

DELAY = 2.0
"""Seconds before the bar appears, so that small models load silently."""


@contextmanager
def loading_bar(total: int, progress: bool | Callable[[int, int], None]) -> Generator[Callable[[int], None]]:
    """Yield a function to call with the bytes of each tensor that was read.

    Args:
        total: bytes of all weights.
        progress: False shows nothing; True shows a bar on a terminal or in a notebook; a function is called with
            (bytes read so far, total).
    """
    if callable(progress):
        done = 0

        def report(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress(done, total)

        yield report
    elif not progress or not (in_notebook() or sys.stderr.isatty()):
        yield lambda nbytes: None
    else:
        with tqdm(total=total, desc="Loading weights", unit="B", unit_scale=True, delay=DELAY, leave=False) as bar:

            def update(nbytes: int) -> None:
                bar.update(nbytes)

            yield update
