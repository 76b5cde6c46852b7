"""The engine in a process of its own, as the server sees it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vila_core.errors import VilaError
from vila_core.exit_codes import describe_exit
from vila_serve.answering.answering import Answering
from vila_serve.answering.channel import BlockingChannel, LargeMessageError, Packed, Unpacker, pack, receive
from vila_serve.answering.messages import FromEngine, ModelFacts, ToEngine
from vila_serve.programs import start_program

if TYPE_CHECKING:
    from vila_core import Vila

Progress = Callable[[int, int], None]
SWITCH_SECONDS = 0.0005
"""After so long, a thread that computes lets another one run. Python's 5 ms are as long as a step of the engine, whose
thread would wait that long for one that prepares a prompt."""
STOP_SECONDS = 5.0
"""How long the process may take to end before it is killed."""


class EngineProcessError(VilaError):
    """The engine's process has ended by itself."""


@dataclass(frozen=True)
class Task:
    """What the process does.

    Attributes:
        load: loads the model, and reports the bytes that are done and all bytes. It can be pickled.
        max_context: as in `EngineSide`.
        plugin_files: plugins to load first.
        set_up: called once the model is loaded, such as to write a log.
        warm_up: called after that, before the first request.
        switch_seconds: see `SWITCH_SECONDS`.
    """

    load: "Callable[[Progress], Vila]"
    max_context: int | None = None
    plugin_files: Sequence[Path] = ()
    set_up: "Callable[[], None] | None" = None
    warm_up: "Callable[[Vila], None] | None" = None
    switch_seconds: float = SWITCH_SECONDS


@dataclass(frozen=True)
class Loading:
    """How much of the model is loaded, in bytes."""

    done: int
    total: int


@dataclass(frozen=True)
class WarmingUp:
    """The model is loaded, and is being warmed up."""


@dataclass(frozen=True)
class Warned:
    """A warning, with its place in the code."""

    message: str
    category: type[Warning]
    filename: str
    line: int


@dataclass(frozen=True)
class Ready:
    """The model can be asked."""

    facts: ModelFacts


@dataclass(frozen=True)
class Failed:
    """The model cannot be loaded."""

    error: BaseException


class EngineProcess:
    """The process of an engine. It begins to load the model at once.

    Use it in a `with` block, which ends the process. The process also ends when this one does, however it ends.
    """

    def __init__(self, task: Task):
        self._process, self._channel = start_program("vila_serve.answering.worker", environment=os.environ)
        self._task = task
        self._is_stopping = False

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_ready(
        self, progress: Progress | None = None, warming_up: Callable[[], None] | None = None
    ) -> Answering:
        """Wait until the model is loaded and warmed up; return what answers with it.

        Args:
            progress: called with the bytes that are loaded and all bytes.
            warming_up: called when the model is loaded, if it is warmed up then.

        Raises:
            EngineProcessError: the process ended.
            CheckpointError, ConfigError: as loading does.
        """
        channel = BlockingChannel(self._channel)
        with suppress(BrokenPipeError, ConnectionResetError):
            channel.send(self._task)
        for message in channel.receive():
            match message:
                case Loading() if progress is not None:
                    progress(message.done, message.total)
                case WarmingUp() if warming_up is not None:
                    warming_up()
                case Warned():
                    warnings.showwarning(message.message, message.category, message.filename, message.line)  # pyright: ignore[reportArgumentType]
                case Failed():
                    raise message.error
                case Ready():
                    return Answering(message.facts, ProcessLink(self, self._channel))
                case _:
                    pass
        raise EngineProcessError(f"{self.describe_end()} while it loaded the model.{self._advice()}")

    def describe_end(self) -> str:
        """Return how the process ended, as the beginning of a sentence."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        code = self._process.returncode
        if code is None:
            return "The engine's process closed its connection"
        return f"The engine's process {describe_exit(code)}"

    def _advice(self) -> str:
        if self._process.returncode != -signal.SIGKILL:
            return ""
        return " Linux does so when main memory runs out: use a smaller or quantized model."

    def reason(self) -> str:
        """Return why an engine that answered has ended."""
        memory = ", as Linux does when main memory runs out" if self._process.poll() == -signal.SIGKILL else ""
        return f"{self.describe_end()}{memory}. Its requests are not answered."

    def close(self) -> None:
        """End the process."""
        self._channel.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def engine_process(task: Task, progress: Progress | None = None) -> Generator[Answering]:
    """Start an engine's process, and end it after the block. Raises as `EngineProcess.wait_until_ready` does."""
    with EngineProcess(task) as process:
        yield process.wait_until_ready(progress)


class ProcessLink:
    """Passes messages between the event loop and the engine's process, without threads or waiting."""

    def __init__(self, process: EngineProcess, channel: socket.socket):
        self.process = process
        self._channel = channel
        self._unpacker = Unpacker()
        self._outgoing: deque[tuple[memoryview, Packed]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._receive: Callable[[FromEngine], None] | None = None
        self._ended: Callable[[str], None] | None = None
        self._exit: int | None = None

    def start(self, receive: Callable[[FromEngine], None], ended: Callable[[str], None]) -> None:
        """See `Link`."""
        self._loop = asyncio.get_running_loop()
        self._receive, self._ended = receive, ended
        self._channel.setblocking(False)
        self._loop.add_reader(self._channel, self._read)
        if sys.platform == "linux":  # a process that the engine has forked may keep the socket open
            with suppress(ProcessLookupError):
                self._exit = os.pidfd_open(self.process.pid)
                self._loop.add_reader(self._exit, self._lose)

    async def send(self, message: ToEngine) -> None:
        """See `Link`. What takes long, such as copying large pictures into shared memory, is done in a thread."""
        try:
            packed = pack(message, only_small=True)
        except LargeMessageError:
            packed = await asyncio.to_thread(pack, message)
        self._write(packed)

    def send_now(self, message: ToEngine) -> None:
        """See `Link`."""
        self._write(pack(message))

    async def stop(self) -> None:
        """See `Link`."""
        self._disconnect()
        await asyncio.to_thread(self.process.close)

    def _disconnect(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._channel)
            self._loop.remove_writer(self._channel)
            if self._exit is not None:
                self._loop.remove_reader(self._exit)
                os.close(self._exit)
            self._loop = self._exit = None
        self._outgoing.clear()

    def _read(self) -> None:
        assert self._receive is not None
        try:
            data, files = receive(self._channel)
        except BlockingIOError:
            return
        except OSError:
            data, files = b"", []
        if not data:
            self._lose()
            return
        for message in self._unpacker.messages(data, files):
            self._receive(message)

    def _lose(self) -> None:
        """Take note that the process has ended by itself."""
        self._disconnect()
        if self._ended is not None:
            self._ended(self.process.reason())

    def _write(self, packed: Packed) -> None:
        if self._loop is None:
            return
        self._outgoing.append((memoryview(packed.frame), packed))
        if len(self._outgoing) == 1:
            self._flush()

    def _flush(self) -> None:
        """Send what the socket takes now, and the rest when it takes more."""
        assert self._loop is not None
        try:
            while self._outgoing:
                frame, packed = self._outgoing[0]
                is_new = len(frame) == len(packed.frame)
                if packed.file is not None and is_new:
                    sent = socket.send_fds(self._channel, [frame], [packed.file])
                else:
                    sent = self._channel.send(frame)
                if sent == len(frame):
                    self._outgoing.popleft()
                else:
                    self._outgoing[0] = frame[sent:], packed
        except BlockingIOError:
            self._loop.add_writer(self._channel, self._flush)
            return
        except OSError:  # the process is gone, as reading will find out
            self._outgoing.clear()
        self._loop.remove_writer(self._channel)
