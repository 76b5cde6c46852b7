"""Clients of `vila-serve` beside the bare engine: throughput, time to the first token, errors and memory.

    python benchmarks/serving.py [--model-path MODEL] [--clients 1 8 32 64] [--seconds 20] [--tokens 64]
                                 [--out results/serving.json] [--plot results/serving.png] [--short]

Each client asks about a bundled image, streams the answer, checks it, and asks again. Answers have `--tokens` tokens,
since a logit bias keeps the tokens that would end them away. The bare engine answers the same prompts in this process
first, as many at a time as there are clients (`Vila.complete_batch`); its texts are what the clients must get. Then
the server runs in a process of its own, on the same machine as the clients.

`of one` is the throughput over that of one client, `of engine` that over the bare engine's at the same number.
`first` is the time from sending a request to its first piece of text. `memory` is the server's resident memory after
the row. A wrong answer or an error is counted, not hidden; the exit code is 1 if there is any.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import itertools
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import torch

import vila_core

MEDIA = Path(__file__).parents[1] / "examples" / "media"
QUESTIONS = (
    ("scene.png", "What is in the picture?"),
    ("chart.png", "What color is the highest bar?"),
    ("word.png", "What word is written?"),
    ("pair-1.png", "How many objects are there?"),
)


@dataclass(frozen=True)
class Row:
    """One number of clients. Rates are tokens per second of all together; times are in milliseconds."""

    clients: int
    requests: int
    errors: int
    wrong: int
    rate: float
    engine_rate: float
    of_one: float
    of_engine: float
    first_p50: float
    first_p95: float
    memory_mb: float


@dataclass
class Load:
    """What the clients of one row have seen."""

    firsts: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    wrong: int = 0
    tokens: int = 0
    requests: int = 0


def measure_engine(options: argparse.Namespace) -> tuple[dict[int, float], list[str], list[int]]:
    """Return tokens per second of the bare engine by number of prompts, the texts, and the tokens to keep away."""
    model = vila_core.load(options.model_path or "vila-tiny", device=options.device, progress=False)
    prompts = [[vila_core.Image(MEDIA / name), text] for name, text in QUESTIONS]
    stops = sorted(model.stop_token_ids)
    settings: Any = {"max_new_tokens": options.tokens, "logit_bias": dict.fromkeys(stops, -100)}
    texts = [model.generate(prompt, **settings) for prompt in prompts]
    rates: dict[int, float] = {}
    for clients in options.clients:
        end, tokens, begin = time.perf_counter() + options.seconds / 2, 0, time.perf_counter()
        while time.perf_counter() < end:
            batch = [prompts[index % len(prompts)] for index in range(clients)]
            answers = model.complete_batch(batch, **settings)
            tokens += sum(answer.usage.completion_tokens for answer in answers)
        rates[clients] = tokens / (time.perf_counter() - begin)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return rates, texts, stops


def requests_of(model: str, options: argparse.Namespace, stops: list[int]) -> list[bytes]:
    """Return the body of a request for each question."""
    bodies: list[bytes] = []
    for name, text in QUESTIONS:
        uri = "data:image/png;base64," + base64.b64encode((MEDIA / name).read_bytes()).decode()
        content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": text}]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": options.tokens,
            "logit_bias": {str(token): -100 for token in stops},
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        bodies.append(json.dumps(body).encode())
    return bodies


async def ask(http: httpx2.AsyncClient, body: bytes, expected: str, load: Load) -> None:
    """Send one request and take note of what comes."""
    begin, first, text, tokens = time.perf_counter(), 0.0, "", 0
    try:
        async with http.stream("POST", "/v1/chat/completions", content=body) as response:
            if response.status_code != 200:
                load.errors.append(f"status {response.status_code}: {(await response.aread())[:200]!r}")
                return
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    load.errors.append(str(chunk["error"]))
                    return
                tokens = chunk["usage"]["completion_tokens"] if chunk.get("usage") else tokens
                piece = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
                if piece:
                    first = first or time.perf_counter() - begin
                    text += piece
    except httpx2.TransportError as error:
        load.errors.append(f"{type(error).__name__}: {error}")
        return
    load.requests += 1
    load.tokens += tokens
    load.firsts.append(first)
    load.wrong += text != expected


async def run_clients(url: str, clients: int, seconds: float, bodies: list[bytes], texts: list[str]) -> Load:
    """Let clients ask for some seconds; return what they saw."""
    load, end = Load(), time.perf_counter() + seconds
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    headers = {"content-type": "application/json"}

    async with httpx2.AsyncClient(base_url=url, timeout=120, headers=headers, limits=limits) as http:

        async def client(number: int) -> None:
            for turn in itertools.count(number):
                await ask(http, bodies[turn % len(bodies)], texts[turn % len(texts)], load)
                if time.perf_counter() >= end:
                    return

        await asyncio.gather(*(client(number) for number in range(clients)))
    return load


def start_server(options: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """Start the server in a process; return it with its address."""
    program = [
        sys.executable,
        "-c",
        "from vila_serve.cli import main; main()",
        "--port",
        "0",
        "--device",
        options.device,
    ]
    program += ["--no-page", "--log-level", "warning"]
    program += [] if options.model_path is None else ["--model-path", options.model_path]
    server = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if line.startswith("Serving"):
            url = line.split()[-1].removesuffix("/v1")
            break
    else:
        raise SystemExit("The server did not start.")
    for _ in range(600):
        try:
            if httpx2.get(f"{url}/ready").status_code == 200:
                return server, url
        except httpx2.TransportError:
            time.sleep(0.1)
    raise SystemExit("The server did not become ready.")


def resident_mb(process: int) -> float:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def measure(options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Measure all rows; return them with the errors."""
    engine, texts, stops = measure_engine(options)
    server, url = start_server(options)
    rows: list[Row] = []
    errors: list[str] = []
    try:
        name = httpx2.get(f"{url}/v1/models").json()["data"][0]["id"]
        bodies = requests_of(name, options, stops)
        asyncio.run(run_clients(url, min(8, max(options.clients)), min(3.0, options.seconds), bodies, texts))  # warm
        for clients in options.clients:
            begin = time.perf_counter()
            load = asyncio.run(run_clients(url, clients, options.seconds, bodies, texts))
            rate = load.tokens / (time.perf_counter() - begin)
            times = sorted(load.firsts) or [float("nan")]
            first = [1000 * times[min(int(part * len(times)), len(times) - 1)] for part in (0.5, 0.95)]
            row = Row(
                clients,
                load.requests,
                len(load.errors),
                load.wrong,
                rate,
                engine[clients],
                rate / rows[0].rate if rows else 1.0,
                rate / engine[clients],
                *first,
                resident_mb(server.pid),
            )
            rows.append(row)
            errors += load.errors
            print(line_of(row), flush=True)
    finally:
        server.terminate()
        server.wait(timeout=90)
    return rows, errors


HEAD = "clients  requests  errors  wrong  tokens/s  engine  of one  of engine  first p50  p95 ms  memory MB"


def line_of(row: Row) -> str:
    return (
        f"{row.clients:7}  {row.requests:8}  {row.errors:6}  {row.wrong:5}  {row.rate:8.0f}  {row.engine_rate:6.0f}  "
        f"{row.of_one:5.2f}x  {row.of_engine:9.2f}  {row.first_p50:9.0f}  {row.first_p95:6.0f}  {row.memory_mb:9.0f}"
    )


def plot(rows: list[Row], path: Path) -> None:
    """Draw throughput and time to the first token over the number of clients."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    clients = [row.clients for row in rows]
    left.plot(clients, [row.rate for row in rows], "o-", label="server")
    left.plot(clients, [row.engine_rate for row in rows], "s--", label="bare engine")
    left.set(xlabel="clients", ylabel="tokens per second", xscale="log")
    left.legend()
    right.plot(clients, [row.first_p50 for row in rows], "o-", label="p50")
    right.plot(clients, [row.first_p95 for row in rows], "s--", label="p95")
    right.set(xlabel="clients", ylabel="time to the first token, ms", xscale="log")
    right.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--short", action="store_true", help="a few seconds, for the tests")
    options = parser.parse_args()
    if options.short:
        options.clients, options.seconds, options.tokens = [1, 16], 1.0, 8
    print(HEAD)
    rows, errors = measure(options)
    memory = [row.memory_mb for row in rows]
    print(f"memory: {min(memory):.0f} to {max(memory):.0f} MB, median {statistics.median(memory):.0f}")
    for error in errors[:5]:
        print(f"error: {error}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot(rows, options.plot)
    sys.exit(1 if errors or any(row.wrong for row in rows) else 0)


if __name__ == "__main__":
    main()
