"""The engine in a process of its own: the same answers, and what happens when one of the two processes ends."""

import asyncio
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import numpy as np
import PIL.Image
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.programs import run_program
from tests.running_server import RunningServer, running, wait_until
from tests.serve.conftest import MEDIA, data_uri, image_part, user
from tests.serve.test_queue import CHAT, ENDLESS, address_in, body, start

import vila_core
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import CheckpointError, MediaLimitError, MissingDependencyError, VilaError, VilaWarning, warn
from vila_serve.answering.answering import Answering
from vila_serve.answering.channel import (
    SMALL_ARRAYS,
    SMALL_PICKLE,
    BlockingChannel,
    LargeMessageError,
    Unpacker,
    pack,
)
from vila_serve.answering.process import EngineProcess, EngineProcessError, Task
from vila_serve.api.app import create_app
from vila_serve.contract.run import run_contract
from vila_serve.loading import loading_task
from vila_serve.settings import ServeSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Let the engine's process import this module, whose functions it is sent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    with EngineProcess(loading_task(ServeSettings(device="cpu"))) as process:
        yield process


@pytest.fixture(scope="module")
def served(engine: EngineProcess) -> Iterator[RunningServer]:
    app = create_app(engine.wait_until_ready(), ServeSettings(page=False))
    with running(app) as server:
        yield server


def requests_in_engine(server: RunningServer) -> float:
    families = text_string_to_metric_families(httpx2.get(f"{server.url}/metrics", timeout=30).text)
    return sum(
        sample.value for family in families for sample in family.samples if sample.name == "vila_engine_requests"
    )


def ask(server: RunningServer, **fields: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}{CHAT}", json={**body(), **fields}, timeout=60)


def test_answers_are_those_of_vila_core(served: RunningServer, model: vila_core.Vila):
    text = "What is in the picture?"
    for settings in ({"temperature": 0}, {"temperature": 1.0, "seed": 7}):
        answer = ask(served, messages=[user(image_part("scene.png"), text)], max_tokens=12, top_p=0.9, **settings)
        own = model.generate([vila_core.Image(MEDIA / "scene.png"), text], max_new_tokens=12, top_p=0.9, **settings)
        assert answer.json()["choices"][0]["message"]["content"] == own


def test_a_video_is_seen(served: RunningServer, model: vila_core.Vila):
    part = {"type": "video_url", "video_url": {"url": data_uri("motion.mp4")}, "frames": 4}
    answer = ask(served, messages=[user(part, "Which way does it move?")], temperature=0, max_tokens=12)
    video = vila_core.Video(MEDIA / "motion.mp4", frames=4)
    own = model.generate([video, "Which way does it move?"], max_new_tokens=12)
    assert answer.json()["choices"][0]["message"]["content"] == own


def test_clients_of_the_api_find_what_they_expect(served: RunningServer):
    """The contract: streaming, usage, stop, seeds, log-probabilities, JSON schemas, errors, both APIs."""
    outcomes = run_contract(f"{served.url}/v1")
    assert {outcome.name: outcome.problem for outcome in outcomes if outcome.problem} == {}


def test_a_prompt_that_is_too_long_is_refused_with_the_counts(served: RunningServer):
    response = ask(served, messages=[user("word " * 20_000)])
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_requests_end_when_their_clients_leave(served: RunningServer):
    with httpx2.stream("POST", f"{served.url}{CHAT}", json=body(**ENDLESS, stream=True), timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        assert requests_in_engine(served) >= 1
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{served.url}{CHAT}", json=body(**ENDLESS, n=2), timeout=0.3)
    wait_until(lambda: requests_in_engine(served) == 0)


def test_the_server_does_without_torch():
    code = "import sys, vila_serve.server, vila_serve.loading, vila_serve.api.app; print('torch' in sys.modules)"
    assert run_program([sys.executable, "-c", code], check=True).stdout.strip() == "False"


def fork_a_sleeper(model: vila_core.Vila, prompt: object) -> int:
    """Fork as the engine does to compile a schema; return the id of the process."""
    child = os.fork()
    if child == 0:
        time.sleep(300)
        os._exit(0)
    return child


def end_of_engine(act: Callable[[EngineProcess, Answering], Awaitable[None]]) -> str:
    """Start an engine, do what ends it, and return why it ended as the API's side noticed it."""

    async def lose_the_engine() -> str:
        with EngineProcess(loading_task(ServeSettings(device="cpu"))) as process:
            answering = process.wait_until_ready()
            answering.start()
            is_lost = asyncio.Event()
            answering.when_stopped(lambda reason: is_lost.set())
            await act(process, answering)
            await asyncio.wait_for(is_lost.wait(), 60)
            await answering.stop()
            return str(answering.stopped)

    return asyncio.run(asyncio.wait_for(lose_the_engine(), 180))


def test_a_message_that_cannot_be_read_ends_the_engine():
    async def send_nonsense(process: EngineProcess, answering: Answering) -> None:
        os.write(process._channel.fileno(), struct.pack("!Q?Q", 12, False, 0) + b"oops")  # pyright: ignore[reportPrivateUsage]

    assert "exit code 1" in end_of_engine(send_nonsense)


def test_a_process_that_the_engine_forked_does_not_hide_its_end():
    sleepers: list[int] = []

    async def fork_and_kill(process: EngineProcess, answering: Answering) -> None:
        config = GenerationConfig(max_new_tokens=2)
        (answer,) = await answering.answer([vila_core.Message("user", "Hello")], [config])
        sleepers.append(await answering.look(answer.prompt, fork_a_sleeper))
        os.kill(process.pid, signal.SIGKILL)

    try:
        assert "SIGKILL" in end_of_engine(fork_and_kill)
    finally:
        for sleeper in sleepers:
            os.kill(sleeper, signal.SIGKILL)


def test_the_engine_is_killed_under_requests(engine: EngineProcess, served: RunningServer):
    """The last test of this server."""
    with httpx2.stream("POST", f"{served.url}{CHAT}", json=body(**ENDLESS, stream=True), timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(engine.pid, signal.SIGKILL)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert '"code":"engine_stopped"' in rest[-2]
    assert '"type":"server_error"' in rest[-2]
    health = httpx2.get(f"{served.url}/health")
    assert (health.status_code, health.json()["status"]) == (503, "failed")
    assert httpx2.get(f"{served.url}/ready").status_code == 503
    refused = ask(served)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "engine_stopped"
    assert int(refused.headers["retry-after"]) > 0
    assert "SIGKILL" not in refused.text
    assert httpx2.get(f"{served.url}/metrics").status_code == 200


def engine_of(process: subprocess.Popen[str]) -> int:
    """Return the id of the engine's process of a server."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (found,) = [pid for pid in children if b"answering.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(found)


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def program() -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start the server's program, in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        started.append(start("--port", "0", "--no-page", "--device", "cpu"))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def rest_of_log(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.read()


def test_the_program_ends_with_a_reason_when_its_engine_is_killed(program: Callable[[], subprocess.Popen[str]]):
    process = program()
    url = address_in(process)
    wait_until(lambda: _is_ready(url))
    os.kill(engine_of(process), signal.SIGKILL)
    assert process.wait(timeout=30) == 2
    log = rest_of_log(process)
    last = log.strip().splitlines()[-1]
    assert last.startswith("Error: The engine's process was killed by SIGKILL")
    assert "Start the server again." in last
    assert "Traceback" not in log


def test_the_engine_ends_when_the_program_is_killed(program: Callable[[], subprocess.Popen[str]]):
    process = program()
    address_in(process)
    pid = engine_of(process)
    process.kill()
    process.wait()
    wait_until(lambda: not is_running(pid))


@pytest.mark.parametrize("while_loading", [True, False], ids=["while loading", "while serving"])
def test_ctrl_c_ends_both_processes_without_a_traceback(
    while_loading: bool, program: Callable[[], subprocess.Popen[str]]
):
    process = program()
    if while_loading:
        wait_until(lambda: bool(_children(process)))
    else:
        url = address_in(process)
        wait_until(lambda: _is_ready(url))
    pid = engine_of(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == (130 if while_loading else 0)
    assert "Traceback" not in rest_of_log(process)
    wait_until(lambda: not is_running(pid))


def _children(process: subprocess.Popen[str]) -> list[str]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in children if b"answering.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/ready").status_code == 200
    except httpx2.TransportError:
        return False


class OddError(Exception):
    """Cannot be pickled."""

    def __init__(self, one: int, two: int):
        super().__init__(f"{one} and {two}")
        self.held = io.StringIO()
        self.lock = socket.socket()


def fail_to_load(progress: Callable[[int, int], None]) -> vila_core.Vila:
    progress(3, 16)
    warn("It will not work.")
    raise CheckpointError("The folder is empty.")


def load_oddly(progress: Callable[[int, int], None]) -> vila_core.Vila:
    raise OddError(1, 2)


def load_missing_file(progress: Callable[[int, int], None]) -> vila_core.Vila:
    raise PermissionError(13, "Permission denied", "/models/x")


def run_out_of_memory(progress: Callable[[int, int], None]) -> vila_core.Vila:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def exit_early(progress: Callable[[int, int], None]) -> vila_core.Vila:
    os._exit(3)


def test_an_error_of_loading_is_raised_here_and_warnings_are_shown_here():
    seen: list[tuple[int, int]] = []
    with EngineProcess(Task(fail_to_load)) as process:
        with (
            pytest.warns(VilaWarning, match="It will not work"),
            pytest.raises(CheckpointError, match="The folder is empty") as raised,
        ):
            process.wait_until_ready(lambda done, total: seen.append((done, total)))
        assert seen == [(3, 16)]
        assert "fail_to_load" in "".join(raised.value.__notes__)  # what --debug shows


@pytest.mark.parametrize(
    ("load", "error", "message"),
    [
        (load_oddly, RuntimeError, "OddError: 1 and 2"),
        (load_missing_file, PermissionError, "/models/x"),
        (run_out_of_memory, EngineProcessError, "SIGKILL while it loaded the model. Linux does so when main memory"),
        (exit_early, EngineProcessError, "exit code 3 while it loaded"),
    ],
)
def test_other_ends_of_loading(load: Any, error: type[Exception], message: str):
    with EngineProcess(Task(load)) as process, pytest.raises(error, match=message):
        process.wait_until_ready()


def received(data: bytes, files: list[int], sizes: int) -> list[Any]:
    """Return the messages in `data`, which arrives in pieces of so many bytes."""
    unpacker, found = Unpacker(), []
    for start_of_piece in range(0, len(data), sizes):
        piece = data[start_of_piece : start_of_piece + sizes]
        found += unpacker.messages(piece, files if start_of_piece == 0 else [])
    return found


@pytest.mark.parametrize("sizes", [1, 7, 8, 9, 10, 1000, 10**6])
def test_messages_arrive_whole_whatever_the_pieces_are(sizes: int):
    sent = ["", {"text": "é" * 50}, list(range(300)), None]
    assert received(b"".join(pack(message).frame for message in sent), [], sizes) == sent


def test_pixels_go_through_shared_memory():
    picture = np.arange(60 * 40 * 3, dtype=np.uint8).reshape(60, 40, 3)
    frame = PIL.Image.fromarray(picture[::2].copy())
    empty = np.zeros((0, 3), np.uint8)
    packed = pack({"image": picture, "frames": [frame, frame], "empty": empty, "text": "x"})
    assert packed.file is not None
    assert len(packed.frame) < 2000
    (found,) = received(packed.frame, [os.dup(packed.file)], 100)
    assert (found["image"] == picture).all()
    assert found["frames"][0] is found["frames"][1]
    assert found["frames"][0].tobytes() == frame.tobytes()
    assert found["empty"].shape == (0, 3)
    assert not found["image"].flags.writeable


@pytest.mark.parametrize(
    "large",
    ["x" * SMALL_PICKLE, [f"{number}" for number in range(20_000)], np.zeros(SMALL_ARRAYS + 1, "u1")],
    ids=["a text", "many texts", "pixels"],
)
def test_large_messages_are_not_packed_in_the_event_loop(large: Any):
    small = {"text": "x" * 1000, "pixels": np.ones((448, 448, 3), np.uint8)}
    packed = pack(small, only_small=True)
    assert packed.file is not None
    (found,) = received(packed.frame, [os.dup(packed.file)], 10**6)
    assert (found["text"], found["pixels"].sum()) == (small["text"], 448 * 448 * 3)
    with pytest.raises(LargeMessageError):
        pack({**small, "large": large}, only_small=True)
    pack({**small, "large": large})


@pytest.mark.parametrize(
    "error",
    [
        MediaLimitError("too large", "max_pixels"),
        MissingDependencyError("ray", "--replicas", "vila-serve[ray]"),
        CheckpointError("one\ntwo").with_details(["three"]),
    ],
)
def test_errors_arrive_as_they_are(error: VilaError):
    (found,) = received(pack(error).frame, [], 1000)
    assert type(found) is type(error)
    assert (str(found), vars(found)) == (str(error), vars(error))


def test_many_messages_with_files_keep_their_order():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender, receiver = BlockingChannel(ours), BlockingChannel(theirs)
        sent = [np.full(200_000, number, np.uint8) for number in range(40)]
        thread = Thread(target=lambda: [sender.send((number, one)) for number, one in enumerate(sent)])
        thread.start()
        messages = receiver.receive()
        for number in range(40):
            index, array = next(messages)
            assert index == number
            assert array[0] == array[-1] == number
        thread.join(timeout=10)
        assert not thread.is_alive()
