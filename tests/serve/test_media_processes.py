"""Decoding processes that hang, crash, run out of memory or lie fail their own request only."""

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import PIL.Image
import pytest
from tests.programs import run_program
from tests.serve.media_files import encoded, uri, video

from vila_core.errors import MediaError
from vila_core.media.limits import MIB
from vila_serve.media import DecodeLimits, MediaDoor, messages, process, server_limits, worker
from vila_serve.media.messages import Decoded, Job, Reply, receive, send
from vila_serve.media.pool import DecodePool, DecodingFailedError, _read_pictures
from vila_serve.media.process import ProcessFailedError
from vila_serve.shared_files import read_file, write_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SMALL = uri(encoded())
OTHERS: set[int] = set()
"""Decoding processes of the server that other tests share."""


@pytest.fixture(autouse=True)
def _know_other_processes() -> None:
    OTHERS.clear()
    OTHERS.update(workers())


@pytest.fixture
def open_door() -> Iterator[Callable[..., MediaDoor]]:
    doors: list[MediaDoor] = []

    def open_one(**limits: float) -> MediaDoor:
        doors.append(MediaDoor(server_limits(), 8, decoding=DecodeLimits(**{"workers": 1, **limits})))
        doors[-1].start()
        asyncio.run(doors[-1].open_image(SMALL))  # has imported its libraries
        return doors[-1]

    yield open_one
    for door in doors:
        door.close()
    assert not workers()


def workers() -> list[int]:
    """The ids of this process's decoding processes that this test started."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == os.getpid() and b"vila_serve.media.worker" in command and int(folder.name) not in OTHERS:
            found.append(int(folder.name))
    return found


def open_files(process: int) -> list[str]:
    """What the open files of a process are."""
    found: list[str] = []
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            found.append(os.readlink(link))
    return found


async def is_given_a_job(door: MediaDoor) -> None:
    """Wait until the only process has a job."""
    while not door._pool._idle.empty():
        await asyncio.sleep(0.01)


def refusal(door: MediaDoor, url: str = SMALL) -> str:
    with pytest.raises(MediaError) as caught:
        asyncio.run(door.open_image(url))
    return str(caught.value)


def test_a_process_that_died_is_replaced(open_door: Callable[..., MediaDoor]) -> None:
    door = open_door()
    (worker,) = workers()
    os.kill(worker, signal.SIGKILL)
    os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    asyncio.run(door.open_image(SMALL))
    assert worker not in workers()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_fails_one_request(open_door: Callable[..., MediaDoor], how: signal.Signals) -> None:
    door = open_door()
    (worker,) = workers()

    async def crash() -> str:
        os.kill(worker, signal.SIGSTOP)
        task = asyncio.create_task(door.open_image(SMALL))
        following = asyncio.create_task(door.open_image(SMALL))
        await is_given_a_job(door)
        assert not task.done()
        os.kill(worker, how)
        os.kill(worker, signal.SIGCONT)
        with pytest.raises(MediaError) as caught:
            await task
        assert (await following).size == (8, 6)
        return str(caught.value)

    message = asyncio.run(crash())
    assert message.startswith("The image cannot be read")
    assert how.name not in message
    assert len(workers()) == 1
    assert worker not in workers()


def test_a_hang_fails_one_request_in_time(open_door: Callable[..., MediaDoor]) -> None:
    door = open_door()
    (worker,) = workers()
    os.kill(worker, signal.SIGSTOP)
    door._decoding = door._decoding.model_copy(update={"image_seconds": 0.3})
    assert "takes too long to decode" in refusal(door)
    assert worker not in workers()


def test_a_process_ends_itself_if_the_server_does_not() -> None:
    """Its own timer ends it in the middle of a library, too."""
    script = (
        "import time, vila_serve.media.worker as worker; worker.GRACE_SECONDS = 0;"
        "worker._answer = lambda job, file: time.sleep(600); worker.main()"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = theirs.fileno()
        started = subprocess.Popen([sys.executable, "-c", script, str(number), str(1 << 30)], pass_fds=[number])
        try:
            receive(ours)  # it is ready
            send(ours, Job(kind="image", is_data_uri=False, limits=server_limits(), seconds=0.2))
            assert started.wait(60) == -signal.SIGALRM
        finally:
            started.kill()


def test_memory_is_limited(open_door: Callable[..., MediaDoor]) -> None:
    door = open_door(memory_bytes=128 * MIB)
    buffer = io.BytesIO()
    PIL.Image.new("L", (7900, 8000), 7).save(buffer, "PNG")  # 62 MB, 250 MB as RGB
    assert "cannot be read" in refusal(door, uri(buffer.getvalue()))
    asyncio.run(door.open_image(SMALL))
    (worker,) = workers()
    limits = Path(f"/proc/{worker}/limits").read_text()
    assert int(re.search(r"Max address space +([0-9]+)", limits)[1]) < 2048 * MIB
    assert re.search(r"Max core file size +0 +0 ", limits)  # a dump would hold what clients sent
    assert Path(f"/proc/{worker}/oom_score_adj").read_text().strip() == "1000"


def test_cancelled_work_stops(open_door: Callable[..., MediaDoor]) -> None:
    door = open_door(image_seconds=600)
    (worker,) = workers()

    async def cancel() -> None:
        os.kill(worker, signal.SIGSTOP)
        task = asyncio.create_task(door.open_image(SMALL))
        await is_given_a_job(door)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(door.open_image(SMALL), 60)

    asyncio.run(cancel())
    assert worker not in workers()


def test_cancelled_requests_in_the_queue_are_never_decoded(open_door: Callable[..., MediaDoor]) -> None:
    door = open_door()
    (worker,) = workers()

    async def cancel() -> None:
        os.kill(worker, signal.SIGSTOP)
        tasks = [asyncio.create_task(door.open_image(SMALL)) for _ in range(20)]
        await is_given_a_job(door)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.wait(tasks[1:])  # a cancelled task notices it when it next runs
        os.kill(worker, signal.SIGCONT)
        assert (await tasks[0]).size == (8, 6)
        await door.open_image(SMALL)

    asyncio.run(cancel())
    assert workers() == [worker]
    (idle,) = [door._pool._idle.get_nowait()]
    assert idle is not None
    assert idle.jobs == 3
    door._pool._idle.put(idle)


def test_processes_are_never_more_than_allowed(open_door: Callable[..., MediaDoor]) -> None:
    door = open_door(workers=2)

    async def ask() -> int:
        tasks = [asyncio.create_task(door.open_image(uri(encoded("PNG", 300, 300)))) for _ in range(20)]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, len(workers()))
            await asyncio.sleep(0.01)
        assert all(task.result().size == (300, 300) for task in tasks)
        return most

    assert asyncio.run(ask()) <= 2


def test_a_process_is_replaced_after_many_jobs(open_door: Callable[..., MediaDoor]) -> None:
    door = open_door(jobs_per_worker=3)
    before = workers()
    for _ in range(3):
        asyncio.run(door.open_image(SMALL))
    assert workers() != before


def test_the_event_loop_never_waits(open_door: Callable[..., MediaDoor]) -> None:
    door = open_door()
    (worker,) = workers()

    async def tick() -> int:
        os.kill(worker, signal.SIGSTOP)
        image = asyncio.create_task(door.open_image(uri(encoded("PNG", 1000, 1000))))
        clip = asyncio.create_task(door.open_video(uri(video(), "video/mp4")))
        ticks = 0
        while ticks < 20:
            await asyncio.sleep(0.005)
            ticks += 1
        assert not image.done()
        assert not clip.done()
        os.kill(worker, signal.SIGCONT)
        await image
        await clip
        return ticks

    assert asyncio.run(tick()) == 20


def test_the_first_job_imports_nothing() -> None:
    """A new server's first pictures would wait for that: 0.2 s each, one for each process."""
    script = (
        "import sys; from vila_serve.media import server_limits, worker; from vila_serve.media.messages import Job;"
        "worker._import_libraries(); before = set(sys.modules);"
        "job = Job(kind='image', is_data_uri=True, limits=server_limits(), seconds=5);"
        f"worker._decode(job, {SMALL!r}.encode()); print(*sorted(set(sys.modules) - before))"
    )
    ended = run_program([sys.executable, "-c", script], seconds=300, check=True)
    assert ended.stdout.strip() == ""


def test_processes_are_light_and_know_no_secrets(
    open_door: Callable[..., MediaDoor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VILA_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "https_proxy"):
        monkeypatch.setenv(name, "hunter2")
    open_door()
    (worker,) = workers()
    assert b"hunter2" not in Path(f"/proc/{worker}/environ").read_bytes()
    assert "torch" not in Path(f"/proc/{worker}/maps").read_text()
    end = time.monotonic() + 60
    while "vila-media" in "".join(open_files(worker)) and time.monotonic() < end:
        time.sleep(0.01)  # the pixels of the last answer are let go after it was sent
    files = open_files(worker)
    assert not [file for file in files if not file.startswith(("/dev/", "socket:", "anon_inode:", "pipe:"))]
    assert sum(file.startswith("socket:") for file in files) == 1


def test_processes_end_with_the_server() -> None:
    script = (
        "import asyncio, os, signal;"
        "from vila_serve.media import *; door = MediaDoor(server_limits(), 8, decoding=DecodeLimits(workers=1));"
        f"asyncio.run(door.open_image({SMALL!r}));"
        "print(door._pool._idle.get().pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = run_program([sys.executable, "-c", script], seconds=300)
    worker = Path(f"/proc/{int(ended.stdout)}")
    deadline = time.monotonic() + 120
    while worker.exists() and b"vila_serve" in (worker / "cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_that_does_not_start_is_no_fault_of_the_medium(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    door = MediaDoor(server_limits(), 8, decoding=DecodeLimits(workers=1))
    try:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="does not start"):
                asyncio.run(door.open_image(SMALL))
        monkeypatch.setattr(sys, "executable", "/no/such/program")
        for _ in range(3):
            with pytest.raises((RuntimeError, OSError)):
                asyncio.run(door.open_image(SMALL))
        monkeypatch.undo()
        assert asyncio.run(door.open_image(SMALL)).size == (8, 6)
    finally:
        door.close()


def test_files_of_processes_cannot_change() -> None:
    file = write_file([b"abc", b"def"])
    assert bytes(read_file(file)) == b"abcdef"
    with pytest.raises(OSError, match="not permitted"):
        os.write(file, b"x")
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(file, 1)
    os.close(file)


def test_files_that_could_change_are_refused(tmp_path: Path) -> None:
    changeable = os.memfd_create("a", os.MFD_ALLOW_SEALING)
    os.write(changeable, bytes(12))
    unsealable = os.memfd_create("b")
    os.write(unsealable, bytes(12))
    (tmp_path / "file").write_bytes(bytes(12))
    on_disk = os.open(tmp_path / "file", os.O_RDWR)
    reader, writer = os.pipe()
    for file in (changeable, unsealable, on_disk, reader):
        with pytest.raises(ProcessFailedError):
            _read_pictures(Decoded(sizes=((2, 2),), order=(0,), indices=(0,)), file)
    os.close(writer)


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": ((2, 3),)},
        {"sizes": ((2, 2), (2, 2))},
        {"sizes": ((2**31, 2**31),)},
        {"sizes": ()},
        {"order": (1,)},
        {"order": ()},
        {"order": (0, 0)},
        {"indices": (0, 1)},
        {"timestamps": (0.0, 1.0)},
        {"order": (), "indices": ()},
    ],
    ids=str,
)
def test_replies_that_do_not_fit_their_pixels(changes: dict[str, tuple[int, ...]]) -> None:
    decoded = Decoded.model_validate({"sizes": ((2, 2),), "order": (0,), "indices": (0,), **changes})
    with pytest.raises(ProcessFailedError):
        _read_pictures(decoded, write_file([bytes(12)]))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02{]",
        b"\0\0\0\x02{}",
        b"\0",
        b"\0\0\0\x05null",
        b'\0\0\0\x0d{"decoded":1}',
        b"\0\0\0\x02[]",
        b"\0\0\0\0",
    ],
)
def test_nonsense_from_a_process(data: bytes) -> None:
    worker = process.DecodingProcess.__new__(process.DecodingProcess)
    worker._channel, theirs = socket.socketpair()
    worker._process = subprocess.Popen([sys.executable, "-c", "pass"])
    worker._is_ready, worker.jobs = True, 0
    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        job = Job(kind="image", is_data_uri=False, limits=server_limits(), seconds=5)
        file = write_file([b"x"])
        with pytest.raises(ProcessFailedError):
            worker.decode(job, file)
        os.close(file)
        worker.kill()


def test_messages_carry_one_file() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        files = [write_file([b"x"]) for _ in range(3)]
        text = Reply().model_dump_json().encode()
        socket.send_fds(ours, [len(text).to_bytes(4, "big") + text], files)
        before = len(os.listdir("/proc/self/fd"))
        _, kept = receive(theirs)
        assert kept is not None
        os.close(kept)
        assert len(os.listdir("/proc/self/fd")) == before
        send(ours, Reply())
        assert receive(theirs) == (text, None)
        for file in files:
            os.close(file)


def test_jobs_say_nothing_of_what_may_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a process fetches nothing, whatever its content is taken for."""
    jobs: list[Job] = []

    async def decode(self: DecodePool, job: Job, content: object) -> NoReturn:
        jobs.append(job)
        raise DecodingFailedError("not decoded")

    monkeypatch.setattr(DecodePool, "decode", decode)
    door = MediaDoor(server_limits(["example.org"]), 8)
    for opened in (door.open_image, door.open_video):
        with pytest.raises(MediaError):
            asyncio.run(opened(SMALL))
    assert [job.limits.fetch for job in jobs] == [None, None]
    assert [job.limits for job in jobs] == [server_limits()] * 2


def test_a_message_is_not_read_beyond_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_MESSAGE_BYTES", 10)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall((11).to_bytes(4, "big") + bytes(11))
        with pytest.raises(ValueError, match="a message of 11 bytes"):
            receive(ours)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall((10).to_bytes(4, "big") + bytes(10))
        assert receive(ours) == (bytes(10), None)


@pytest.mark.parametrize("text", ["{path}", "file://{path}", " {path}", "https://example.org/a.png", "data{path}", ""])
def test_processes_open_no_paths_either(text: str, tmp_path: Path) -> None:
    """Even if the door let a path through as a `data:` URI."""
    (tmp_path / "a.png").write_bytes(encoded())
    content = write_file([text.replace("{path}", str(tmp_path / "a.png")).encode()])
    job = Job(kind="image", is_data_uri=True, limits=server_limits(["example.org"]), seconds=5)
    reply, pixels = worker._answer(job, content)
    assert pixels is None
    assert reply.failed is not None
    assert reply.failed.problem == "data_uri"
