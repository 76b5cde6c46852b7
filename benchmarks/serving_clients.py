"""Clients of `vila-serve` for `serving.py`: pictures to ask about, and requests whose answers are streamed and timed.

They speak HTTP over plain asyncio sockets and parse no more than they need, so that few processors are enough for
many clients.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

MEDIA = Path(__file__).parents[1] / "examples" / "media"
QUESTIONS = (
    ("scene.png", "What is in the picture?"),
    ("chart.png", "What color is the highest bar?"),
    ("word.png", "What word is written?"),
    ("pair-1.png", "How many objects are there?"),
)
SIDE = 448
TIMEOUT = 120.0


@dataclass(frozen=True)
class Question:
    """A picture with a question about it.

    The answer has `tokens` tokens; `expected` is the right one, if it is known.
    """

    png: bytes
    text: str
    tokens: int
    expected: str | None = None


@dataclass(frozen=True)
class Task:
    """What the clients of one process do.

    Attributes:
        port: of the server, on loopback.
        clients, questions: client `i` asks questions `i`, `i` + `clients`, … and begins again.
        begin: when they start, in seconds since 1970.
        seconds: after so long, no client asks again.
        fields: of each request, beside its messages.
        cancel_each: each so many-th request is given up after its first token; 0 for none.
    """

    port: int
    clients: int
    questions: tuple[Question, ...]
    begin: float
    seconds: float
    fields: dict[str, Any]
    cancel_each: int = 0


@dataclass
class Load:
    """What clients have seen. `firsts` are times to the first text, in seconds; `ended` when the last answer ended, in
    seconds since 1970."""

    firsts: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    wrong: int = 0
    tokens: int = 0
    requests: int = 0
    cancelled: int = 0
    ended: float = 0.0

    def add(self, other: Load) -> None:
        """Add what other clients have seen."""
        self.firsts += other.firsts
        self.errors += other.errors
        self.wrong += other.wrong
        self.tokens += other.tokens
        self.requests += other.requests
        self.cancelled += other.cancelled
        self.ended = max(self.ended, other.ended)


def bundled_questions(tokens: int) -> list[Question]:
    """Return questions about the bundled pictures. Their answers have `tokens` tokens."""
    return [Question((MEDIA / name).read_bytes(), text, tokens) for name, text in QUESTIONS]


def new_questions(count: int, seed: int, tokens: int) -> list[Question]:
    """Return questions about `count` pictures of 448 × 448 pixels that no other seed gives.

    Answers have half to one and a half times `tokens` tokens: if all were equally long, those that begin together would
    end together, and their clients ask together again.
    """
    numbers = random.Random(seed)
    questions: list[Question] = []
    for index in range(count):
        name, text = QUESTIONS[index % len(QUESTIONS)]
        with Image.open(MEDIA / name) as file:
            picture = file.convert("RGB").resize((SIDE, SIDE))
        draw = ImageDraw.Draw(picture)
        for _ in range(4):
            x, y, color = numbers.randrange(SIDE - 40), numbers.randrange(SIDE - 40), numbers.randrange(1 << 24)
            draw.rectangle((x, y, x + 40, y + 40), fill=f"#{color:06x}")
        data = io.BytesIO()
        picture.save(data, "PNG", compress_level=1)
        questions.append(Question(data.getvalue(), text, numbers.randint(tokens - tokens // 2, tokens + tokens // 2)))
    return questions


def run_clients(task: Task) -> Load:
    """Let the clients of one process ask; return what they saw. The functions of a process pool are called so."""
    return asyncio.run(_run(task))


async def _run(task: Task) -> Load:
    load = Load()
    requests = [_request(question, task.fields) for question in task.questions]
    await asyncio.sleep(max(0.0, task.begin - time.time()))
    await asyncio.gather(*(_Client(task, number, requests, load).run() for number in range(task.clients)))
    return load


def _request(question: Question, fields: dict[str, Any]) -> bytes:
    url = "data:image/png;base64," + base64.b64encode(question.png).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.text}]
    body = {
        **fields,
        "max_tokens": question.tokens,
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


class _Client:
    """Asks one question after the other over one connection."""

    def __init__(self, task: Task, number: int, requests: list[bytes], load: Load):
        self._task = task
        self._number = number
        self._requests = requests
        self._load = load
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self) -> None:
        turn = self._number
        while time.time() < self._task.begin + self._task.seconds:
            index = turn % len(self._requests)
            gives_up = bool(self._task.cancel_each) and turn % self._task.cancel_each == self._task.cancel_each - 1
            try:
                async with asyncio.timeout(TIMEOUT):
                    await self._ask(self._requests[index], self._task.questions[index].expected, gives_up=gives_up)
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                self._load.errors.append(f"{type(error).__name__}: {error}")
                self._close()
                await asyncio.sleep(0.1)  # a server that refuses connections is not asked without end
            turn += self._task.clients
        self._close()
        self._load.ended = max(self._load.ended, time.time())

    def _close(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
        self._stream = None

    async def _ask(self, request: bytes, expected: str | None, *, gives_up: bool) -> None:
        if self._stream is None:
            self._stream = await asyncio.open_connection("127.0.0.1", self._task.port, limit=1 << 20)
        reader, writer = self._stream
        begin, first, events = time.perf_counter(), 0.0, bytearray()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:20] or b"chunked" not in head:
            raise ValueError(f"the server answers {head[:200]!r}")
        while size := int(await reader.readuntil(b"\r\n"), 16):
            part = (await reader.readexactly(size + 2))[:-2]
            events += part
            if not first and b'"content":"' in part.replace(b'"content":""', b""):
                first = time.perf_counter() - begin
                if gives_up:
                    self._load.cancelled += 1
                    self._close()
                    return
        await reader.readexactly(2)
        self._note(bytes(events), expected, first)

    def _note(self, events: bytes, expected: str | None, first: float) -> None:
        """Take note of a complete answer."""
        lines = [line for line in events.decode().split("\n\n") if line.startswith("data: {")]
        chunks: list[Any] = [json.loads(line.removeprefix("data: ")) for line in lines]
        for chunk in chunks:
            if "error" in chunk:
                raise ValueError(f"the server reports {chunk['error']}")
        if not events.endswith(b"data: [DONE]\n\n") or not chunks or not chunks[-1].get("usage"):
            raise ValueError("a stream ended early")
        text = "".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"])
        self._load.requests += 1
        self._load.tokens += chunks[-1]["usage"]["completion_tokens"]
        self._load.wrong += expected is not None and text != expected
        if first:
            self._load.firsts.append(first)
