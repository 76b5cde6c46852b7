"""Renders the drawn world to files in parallel, for the stages to load."""

import os
import signal
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

from vila_core.new_file import make_folder, new_file
from vila_core.tokenizer import Tokenizer
from vila_train.tiny.data import Encoder, Shard, drawn_samples, make_shard
from vila_train.tiny.model import IMAGE_SIZE, TOKENS_PER_PICTURE
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
def rendering(folder: Path, tokenizer_folder: Path, workers: int | None = None) -> Generator[Rendering]:
    """Render samples into `folder` with `workers` processes (default: one per CPU core, minus one)."""
    make_folder(folder)
    workers = workers or max(1, (os.cpu_count() or 2) - 1)
    # Spawn, because a process that has used CUDA or threads cannot be forked safely.
    with ProcessPoolExecutor(workers, get_context("spawn"), _prepare, (tokenizer_folder,)) as pool:
        drawn = Rendering(pool, folder)
        try:
            yield drawn
        finally:
            pool.shutdown(cancel_futures=True)
            drawn.delete_files()


_encoder: list[Encoder] = []
"""Holds the encoder in a worker process."""


def make_encoder(tokenizer_folder: Path) -> Encoder:
    """Return the encoder for vila-tiny."""
    from vila_core.plugins.loader import load_plugins

    return Encoder(
        Tokenizer.from_folder(tokenizer_folder), load_plugins().chat_templates.get("qwen2"), TOKENS_PER_PICTURE
    )


def _prepare(tokenizer_folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    _encoder.append(make_encoder(tokenizer_folder))


def _render(folder: Path, split: Split, source: str, start: int, stop: int) -> Path:
    path = folder / f"{split}-{source}-{start}.npy"
    shard = make_shard(drawn_samples(split, source, start, stop), _encoder[0], IMAGE_SIZE)
    with new_file(path) as temporary:
        shard.save(temporary)
    return path
