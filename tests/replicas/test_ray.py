"""The whole server with two replicas under Ray Serve: answers, routing by media, and a replica killed under load."""

import base64
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import vila_core as vila

MEDIA = Path(__file__).parents[2] / "examples" / "media"
REPLICA = b"ServeReplica:vila:replica"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start the server as users do, and return its address."""
    command = [sys.executable, "-m", "vila_serve", "--replicas", "2", "--port", "0"]
    process = subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    found: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if match := re.search(r"at (http://\S+)/v1", line):
            found.append(match[1])
            break
    assert found, "".join(lines)
    threading.Thread(target=process.stderr.read, daemon=True).start()
    wait_until(lambda: httpx2.get(f"{found[0]}/health").status_code == 200)
    yield found[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) == 0


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=120)


def wait_until(is_so: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if is_so():
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError("it took too long")


def ask(client: openai.OpenAI, name: str, text: str, **fields: Any) -> Any:
    data = base64.b64encode((MEDIA / name).read_bytes()).decode()
    image: Any = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    content: Any = [image, {"type": "text", "text": text}]
    return client.chat.completions.create(
        model="vila-tiny", messages=[{"role": "user", "content": content}], temperature=0, **fields
    )


def replica_pids() -> set[int]:
    pids: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().find(REPLICA) >= 0:
                pids.add(int(folder.name))
        except OSError:
            continue
    return pids


def answers_by_replica(address: str) -> dict[str, float]:
    text = httpx2.get(f"{address}/metrics").text
    counts: dict[str, float] = {}
    for match in re.finditer(r'vila_answers_total\{.*replica="([^"]+)"\} (\S+)', text):
        counts[match[1]] = counts.get(match[1], 0) + float(match[2])
    return counts


def images() -> list[str]:
    return sorted(path.name for path in MEDIA.glob("*.png"))


def test_answers_are_those_of_the_model(client: openai.OpenAI):
    model = vila.load("vila-tiny", device="cpu")
    for name in images():
        expected = model.generate([vila.Image(MEDIA / name), "What is in the picture?"], temperature=0.0)
        assert ask(client, name, "What is in the picture?").choices[0].message.content == expected


def test_a_stream_passes_through(client: openai.OpenAI):
    chunks = [*ask(client, images()[0], "What is in the picture?", stream=True)]
    whole = ask(client, images()[0], "What is in the picture?").choices[0].message.content
    assert len(chunks) > 3
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole


def test_questions_about_one_image_reach_one_replica(client: openai.OpenAI, address: str):
    before = answers_by_replica(address)
    for number in range(6):
        ask(client, images()[0], f"What is in the picture? {number}", max_tokens=2)
    after = answers_by_replica(address)
    gained = sorted(after.get(name, 0) - before.get(name, 0) for name in after)
    assert gained[-1] == 6
    assert sum(gained) == 6


def test_no_request_is_unanswered_when_a_replica_is_killed(client: openai.OpenAI):
    before = replica_pids()
    assert len(before) == 2
    names = images()

    def work(number: int) -> str:
        return ask(client, names[number % len(names)], f"What is in the picture? {number}").choices[0].message.content

    with ThreadPoolExecutor(16) as threads:
        answers = [threads.submit(work, number) for number in range(64)]
        wait_until(lambda: any(answer.done() for answer in answers))
        os.kill(min(before), signal.SIGKILL)
        assert all(answer.result(timeout=120) for answer in answers)
    wait_until(lambda: len(replica_pids()) == 2 and min(before) not in replica_pids())
    assert work(0)


def test_errors_are_those_of_one_server(client: openai.OpenAI, address: str):
    with pytest.raises(openai.NotFoundError, match="vila-tiny"):
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="vila-tiny", messages=[])
    response = httpx2.get(f"{address}/nowhere")
    assert response.status_code == 404
    assert response.headers["x-request-id"]
