"""The program of a process that decodes: reads jobs from a socket until it is closed.

It imports no torch, gets no settings or keys of the server, and has limits on memory and time of its own. It opens no
files and URLs: what it decodes comes with the job.
"""

import io
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import av.logging
import PIL.Image

from vila_core.child_process import limit_memory
from vila_core.errors import DataUriError, MediaError, MediaLimitError, VilaError
from vila_core.media import Image, Video
from vila_serve.media.messages import Decoded, Failed, Job, Reply, receive, send
from vila_serve.shared_files import write_file

GRACE_SECONDS = 5
"""How much later than the server a process ends itself."""


def main() -> None:
    """Answer jobs. The arguments are the descriptor of the socket and the memory that may be added, in bytes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    _import_libraries()
    _set_limits(int(sys.argv[2]))
    with suppress(OSError, EOFError):
        send(channel, Reply())  # ready
        while True:
            text, file = receive(channel)
            job = Job.model_validate_json(text)
            signal.setitimer(signal.ITIMER_REAL, job.seconds + GRACE_SECONDS)
            reply, pixels = _answer(job, file)
            signal.setitimer(signal.ITIMER_REAL, 0)
            send(channel, reply, pixels)
            if pixels is not None:
                os.close(pixels)
            if reply.failed is not None and reply.failed.problem in ("memory", "bug"):
                return  # a new process starts afresh


def _import_libraries() -> None:
    """Use the libraries once: the first job would wait 50 ms or more for what they import then."""
    av.logging.set_level(None)
    file = io.BytesIO()
    PIL.Image.new("RGB", (1, 1)).save(file, "PNG")
    Image(file.getvalue()).load()


def _set_limits(memory_bytes: int) -> None:
    import resource

    for number in (signal.SIGINT, signal.SIGTERM):  # of Ctrl-C; the server closes the socket when it has finished
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, in the middle of a library too
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # if the machine is out of memory, this process ends, not the server
        Path("/proc/self/oom_score_adj").write_text("1000")
    limit_memory(memory_bytes)


def _answer(job: Job, file: int | None) -> tuple[Reply, int | None]:
    """Return the reply to a job, and the descriptor of the file with its pixels. Closes `file`."""
    try:
        content = _read(file)
        decoded, pictures = _decode(job, content)
        return Reply(decoded=decoded), write_file(_pixels(pictures))
    except MediaLimitError as error:
        return _failed("limit", str(error), error.limit)
    except DataUriError as error:
        return _failed("data_uri", str(error))
    except (MediaError, VilaError) as error:
        return _failed("unreadable", str(error))
    except (MemoryError, OSError) as error:
        return _failed("memory", repr(error))
    except Exception:  # noqa: BLE001 - whatever it is, the server logs it
        return _failed("bug", traceback.format_exc())


def _failed(problem: str, detail: str, limit: str | None = None) -> tuple[Reply, None]:
    return Reply(failed=Failed.model_validate({"problem": problem, "detail": detail[:10_000], "limit": limit})), None


def _read(file: int | None) -> bytes:
    if file is None:
        return b""
    with open(file, "rb") as opened:
        opened.seek(0)
        return opened.read()


def _decode(job: Job, content: bytes) -> tuple[Decoded, list[PIL.Image.Image]]:
    source = _data_uri(content) if job.is_data_uri else content
    if job.kind == "image":
        image = Image(source).load(job.limits)
        if job.square is not None:
            image = image.resize((job.square, job.square), PIL.Image.Resampling.BICUBIC)
        return Decoded(sizes=(image.size,), order=(0,), indices=(0,)), [image]
    loaded = Video(source).load(job.frames, job.fps, job.limits)
    pictures = list({id(frame): frame for frame in loaded.frames}.values())
    place = {id(picture): index for index, picture in enumerate(pictures)}
    decoded = Decoded(
        sizes=tuple(picture.size for picture in pictures),
        order=tuple(place[id(frame)] for frame in loaded.frames),
        indices=tuple(loaded.indices),
        timestamps=None if loaded.timestamps is None else tuple(loaded.timestamps),
        duration=loaded.duration,
    )
    return decoded, pictures


def _data_uri(content: bytes) -> str:
    """Return the text of a `data:` URI. A path or URL must never be taken for one."""
    text = content.decode("ascii", "replace")
    if text[:5].lower() != "data:":
        raise DataUriError("The text does not begin with 'data:'.")
    return text


def _pixels(pictures: list[PIL.Image.Image]) -> Iterator[bytes]:
    for picture in pictures:
        yield picture.tobytes()


if __name__ == "__main__":
    main()
