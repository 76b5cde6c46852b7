"""A pool of decoding processes. One that crashes, hangs or takes too much memory fails its own job only."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import IO, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from vila_core.media import VideoFrames
from vila_serve.media.limits import DecodeLimits
from vila_serve.media.messages import Decoded, Failed, Job
from vila_serve.media.process import (
    CancelledJobError,
    DecodingProcess,
    NotStartedError,
    ProcessFailedError,
    TooSlowError,
)
from vila_serve.shared_files import read_file, write_file

log = logging.getLogger(__name__)

CANCEL_SECONDS = 1.0
"""How long a job whose client left may go on before its process is killed: most end sooner, and starting one costs."""

Pictures = list[NDArray[np.uint8]]
Result = TypeVar("Result")


class DecodingFailedError(Exception):
    """A medium could not be decoded. The message is for the log.

    Attributes:
        failed: what the process said; None if it said nothing.
        is_too_slow: whether it was killed because it took too long.
    """

    def __init__(self, detail: str, failed: Failed | None = None, *, is_too_slow: bool = False):
        super().__init__(detail)
        self.failed = failed
        self.is_too_slow = is_too_slow


class DecodePool:
    """Decodes in other processes; each is watched by a thread of this one.

    Args:
        limits: on the processes.
    """

    def __init__(self, limits: DecodeLimits):
        self._limits = limits
        self._threads = ThreadPoolExecutor(limits.workers, "vila-decode")
        self._idle: SimpleQueue[DecodingProcess | None] = SimpleQueue()
        for _ in range(limits.workers):
            self._idle.put(None)
        self._is_closed = False

    def start(self) -> None:
        """Start all processes, so that no request has to wait for that."""
        for _ in range(self._limits.workers):
            self._put_back(self._idle.get())

    def close(self) -> None:
        """End all processes and their jobs."""
        self._is_closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._idle.empty():
            if (process := self._idle.get()) is not None:
                process.kill()

    async def decode(self, job: Job, content: bytes | IO[bytes]) -> tuple[Decoded, Pictures]:
        """Decode a medium. If this is cancelled, the work stops.

        Returns:
            What was decoded, and its pictures, each [H, W, 3].

        Raises:
            DecodingFailedError: there are no pictures.
            RuntimeError: no process can be started.
        """

        def work(is_cancelled: Callable[[], bool]) -> tuple[Decoded, Pictures]:
            with os.fdopen(write_file([content]), "rb") if isinstance(content, bytes) else content as file:
                return self._decode(job, file, _after(is_cancelled, CANCEL_SECONDS))

        return await run_cancellable(self._threads, work)

    def _decode(self, job: Job, content: IO[bytes], is_cancelled: Callable[[], bool]) -> tuple[Decoded, Pictures]:
        process = self._idle.get()
        try:
            process = process if self._is_usable(process) else DecodingProcess(self._limits.memory_bytes)
            outcome, file = process.decode(job, content.fileno(), lambda: is_cancelled() or self._is_closed)
            if isinstance(outcome, Failed):
                raise DecodingFailedError(f"{outcome.problem}: {outcome.detail}", outcome)
            assert file is not None  # as `DecodingProcess.decode` says
            return outcome, _read_pictures(outcome, file)
        except ProcessFailedError as error:
            if process is not None:
                process.kill()
            if isinstance(error, NotStartedError):
                raise RuntimeError(f"A process that decodes media does not start: {error}.") from None
            if not isinstance(error, CancelledJobError):
                log.error("The process that decoded a medium is replaced: %s.", error)
            raise DecodingFailedError(str(error), is_too_slow=isinstance(error, TooSlowError)) from None
        finally:
            self._put_back(process)

    def _is_usable(self, process: DecodingProcess | None) -> TypeGuard[DecodingProcess]:
        return process is not None and process.is_alive and process.jobs < self._limits.jobs_per_worker

    def _put_back(self, process: DecodingProcess | None) -> None:
        """Make a process available, or a new one if it has ended or done many jobs."""
        if self._is_usable(process):
            self._idle.put(process)
            return
        if process is not None:
            process.kill()
        following = None
        try:
            if not self._is_closed:
                following = DecodingProcess(self._limits.memory_bytes)
        except OSError as error:  # no memory or processes left at this moment: the next job tries again
            log.error("A process that decodes media cannot be started: %s.", error)
        self._idle.put(following)


def _read_pictures(decoded: Decoded, file: int) -> Pictures:
    """Return the pictures in a file, which they keep in memory; closes it.

    Raises:
        ProcessFailedError: the file is not what `decoded` says.
    """
    try:
        content = read_file(file)
    except (OSError, ValueError) as error:
        raise ProcessFailedError(f"its pixels cannot be read: {error}") from None
    finally:
        os.close(file)
    counts = [width * height * 3 for width, height in decoded.sizes]
    frames = len(decoded.order)
    is_consistent = (
        sum(counts) == len(content)
        and frames == len(decoded.indices)
        and (decoded.timestamps is None or len(decoded.timestamps) == frames)
        and all(index < len(counts) for index in decoded.order)
    )
    if not is_consistent or not frames:
        raise ProcessFailedError("its pixels do not fit its reply")
    pixels = np.frombuffer(content, np.uint8)
    starts = np.cumsum([0, *counts])
    return [
        pixels[start : start + count].reshape(height, width, 3)
        for (width, height), start, count in zip(decoded.sizes, starts, counts, strict=False)
    ]


def as_frames(decoded: Decoded, pictures: Pictures) -> VideoFrames:
    """Return the decoded frames of a video as `Video.load` does."""
    import PIL.Image

    images = [PIL.Image.fromarray(picture) for picture in pictures]
    timestamps = None if decoded.timestamps is None else list(decoded.timestamps)
    return VideoFrames([images[index] for index in decoded.order], list(decoded.indices), timestamps, decoded.duration)


async def run_cancellable(threads: ThreadPoolExecutor, work: Callable[[Callable[[], bool]], Result]) -> Result:
    """Run `work` in a thread; what it gets tells it whether this coroutine was cancelled meanwhile."""
    cancelled = Event()
    try:
        return await asyncio.wrap_future(threads.submit(work, cancelled.is_set))
    except asyncio.CancelledError:
        cancelled.set()
        raise


def _after(condition: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """Return a condition that holds once `condition` has held for so many seconds."""
    since: list[float] = []

    def holds() -> bool:
        if not since and condition():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= seconds

    return holds
