"""One decoding process, as the server sees it."""

import os
import select
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

from pydantic import ValidationError

from vila_core.exit_codes import describe_exit
from vila_serve.media.messages import Decoded, Failed, Job, Reply, receive, send
from vila_serve.programs import start_program

START_SECONDS = 60.0
"""How long a process may take to import its libraries."""
_POLL_SECONDS = 0.1
_MESSAGE_SECONDS = 10.0
"""How long the rest of a message may take once its start has arrived."""
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "TZ")


class ProcessFailedError(Exception):
    """The process ended or was ended before it replied; the message says why, for the log."""


class NotStartedError(ProcessFailedError):
    """It ended before its first job: the fault is not the medium's."""


class TooSlowError(ProcessFailedError):
    """It took longer than the job allows."""


class CancelledJobError(ProcessFailedError):
    """Nobody waits for the reply any more."""


class DecodingProcess:
    """A process that decodes one job at a time. It starts at once, and imports its libraries in the background."""

    def __init__(self, memory_bytes: int):
        self._process, self._channel = start_program(
            "vila_serve.media.worker", str(memory_bytes), environment=_environment(), is_silent=True
        )
        self._is_ready = False
        self.jobs = 0
        """How many it has begun."""

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def wait_until_ready(self, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        """Wait until the libraries are imported. Raises `ProcessFailedError`."""
        if self._is_ready:
            return
        try:
            self._receive(START_SECONDS, is_cancelled)
        except CancelledJobError:
            raise
        except ProcessFailedError as error:
            raise NotStartedError(str(error)) from None
        self._is_ready = True

    def decode(
        self, job: Job, content: int, is_cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[Decoded | Failed, int | None]:
        """Return the reply to a job, and the descriptor of the file with the pixels, which the caller closes.

        Args:
            job: what to decode.
            content: descriptor of the file with the content.
            is_cancelled: whether nobody waits for the reply any more.

        Raises:
            ProcessFailedError: there is no reply in time. The process is of no more use then.
        """
        self.jobs += 1
        self.wait_until_ready(is_cancelled)
        try:
            self._channel.settimeout(_MESSAGE_SECONDS)
            send(self._channel, job, content)
        except OSError:
            raise self._ended() from None
        reply, file = self._receive(job.seconds, is_cancelled)
        outcome = reply.decoded or reply.failed
        if outcome is None or (reply.decoded is not None) != (file is not None):
            if file is not None:
                os.close(file)
            raise ProcessFailedError("its reply is incomplete")
        return outcome, file

    def kill(self) -> None:
        """End the process."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._channel.close()
        self._process.wait()

    def _receive(self, seconds: float, is_cancelled: Callable[[], bool]) -> tuple[Reply, int | None]:
        self._wait_for_reply(seconds, is_cancelled)
        try:
            self._channel.settimeout(_MESSAGE_SECONDS)
            text, file = receive(self._channel)
        except (EOFError, ConnectionError):
            raise self._ended() from None
        except (OSError, ValueError) as error:
            raise ProcessFailedError(f"its reply cannot be read: {error}") from None
        try:
            return Reply.model_validate_json(text), file
        except ValidationError as error:
            if file is not None:
                os.close(file)
            raise ProcessFailedError(f"its reply is not valid: {error.error_count()} problems") from None

    def _wait_for_reply(self, seconds: float, is_cancelled: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        while not poll.poll(1000 * min(_POLL_SECONDS, seconds)):
            if is_cancelled():
                raise CancelledJobError("it was cancelled")
            if time.monotonic() > end:
                raise TooSlowError(f"no reply within {seconds:g} s")

    def _ended(self) -> ProcessFailedError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.returncode
        if code is None:
            return ProcessFailedError("it closed its connection")
        return ProcessFailedError(f"it {describe_exit(code)}")


def _environment() -> dict[str, str]:
    """Return the environment of the processes: without keys and tokens."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    return {**kept, **threads, "PYTHONDONTWRITEBYTECODE": "1"}
