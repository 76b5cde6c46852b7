"""Renders the drawn world to files in parallel, for the stages to load."""

import os
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

from vila_core.child_process import end_with_parent
from vila_core.new_file import make_folder, new_file, remove_leftovers
from vila_train.tiny.data import Encoder, Shard, drawn_samples, make_shard
from vila_train.tiny.world.combinations import Split

SAMPLES_PER_SHARD = 256


class Rendering:
    """Renders samples in the background; `shards` waits for the ones it needs."""

    def __init__(self, pool: ProcessPoolExecutor, folder: Path):
        self.pool = pool
        self.folder = folder
        self._pending: dict[tuple[Split, str], list[Future[Path]]] = {}

    def start(self, split: Split, sizes: Mapping[str, int]) -> None:
        """Queue `sizes[source]` samples of each source for rendering."""
        for source, size in sizes.items():
            bounds = range(0, size, SAMPLES_PER_SHARD)
            self._pending[split, source] = [
                self.pool.submit(_render, self.folder, split, source, start, min(start + SAMPLES_PER_SHARD, size))
                for start in bounds
            ]

    def shards(self, split: Split, source: str) -> Iterator[Shard]:
        """Yield the shards of `source` in order, and delete their files."""
        for future in self._pending.pop((split, source)):
            path = future.result()
            yield Shard.load(path)
            path.unlink()

    def delete_files(self) -> None:
        """Delete the files that no one took."""
        for future in chain.from_iterable(self._pending.values()):
            if not future.cancelled() and future.exception() is None:
                future.result().unlink(missing_ok=True)


@contextmanager
def rendering(
    folder: Path, make_encoder: Callable[[], Encoder], image_size: int, workers: int | None = None
) -> Generator[Rendering]:
    """Render samples into `folder`.

    Args:
        folder: for the files; created if it does not exist.
        make_encoder: returns the model's encoder; called in each process.
        image_size: of the model.
        workers: number of processes; None: one per CPU core, minus one.
    """
    make_folder(folder)
    remove_leftovers(folder)
    workers = workers or max(1, (os.cpu_count() or 2) - 1)
    # Spawn, because a process that has used CUDA or threads cannot be forked safely.
    with ProcessPoolExecutor(workers, get_context("spawn"), _prepare, (make_encoder, image_size)) as pool:
        drawn = Rendering(pool, folder)
        try:
            yield drawn
        finally:
            pool.shutdown(cancel_futures=True)
            drawn.delete_files()


_model: list[tuple[Encoder, int]] = []
"""Holds the encoder and the size of its images in a worker process."""


def _prepare(make_encoder: Callable[[], Encoder], image_size: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    end_with_parent()
    _model.append((make_encoder(), image_size))


def _render(folder: Path, split: Split, source: str, start: int, stop: int) -> Path:
    path = folder / f"{split}-{source}-{start}.npy"
    shard = make_shard(drawn_samples(split, source, start, stop), *_model[0])
    with new_file(path) as temporary:
        shard.save(temporary)
    return path
