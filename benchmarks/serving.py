"""Clients of `vila-serve` beside the bare engine: throughput, time to the first token, errors and memory.

    python benchmarks/serving.py [--model-path MODEL | --shapes nvila-8b --pictures 512] [--clients 1 8 32 64]
                                 [--seconds 20] [--tokens 64] [--rounds 1] [--cancel-each 0] [--client-processes 1]
                                 [--out results/serving.json] [--plot results/serving.svg] [--short]

The engine's process of a server loads a model and measures the bare engine (`serving_engine.py`), and then serves it
(`serving_server.py`); clients in other processes ask it (`serving_clients.py`). Each sends a picture with a question,
streams the answer, checks it, and asks again. Answers have `--tokens` tokens, since a logit bias keeps the tokens that
would end them away. The clients of the bare engine do the same without HTTP: PNG in, text out. Its texts for the
bundled pictures are what the server's clients must get. With `--pictures`, that many other pictures are asked about
instead, which are new to the engine in each row; their answers are not checked, and have half to one and a half times
`--tokens`. `--shapes` takes random 4-bit weights of a real model's shapes. With `--step-ms 4`, a step of the engine
only waits (`waiting_engine.py`): what is slow then is the server.

`of one` is the throughput over that of the first row; `of engine` the throughput over the bare engine's at the same
number of clients. `first` is the time from sending a request to its first piece of text, and `first of engine` the
bare engine's median over the server's. `memory` is the resident memory of the server's two processes
after the row, and `front` and `step` are the processor time per token of the one with HTTP and the one with the engine:
the throughput cannot be more than one over the larger. A wrong answer or an error is counted, not hidden; the exit code
is 1 if there is any.

Ten minutes with 64 clients, a tenth of whose requests are given up after the first token:

    python benchmarks/serving.py --clients 1 64 --rounds 10 --seconds 60 --cancel-each 10 --plot results/load.svg
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from serving_clients import Load, Question, Task, bundled_questions, new_questions, run_clients

START_SECONDS = 1.0
"""In which the processes of the clients prepare."""


@dataclass(frozen=True)
class Row:
    """A number of clients for some time. Rates are tokens per second of all together; times are in milliseconds."""

    clients: int
    requests: int
    cancelled: int
    errors: int
    wrong: int
    rate: float
    engine_rate: float
    of_one: float
    of_engine: float
    first_p50: float
    first_p95: float
    engine_first_p50: float
    engine_first_p95: float
    memory_mb: float
    front_us: float
    engine_us: float


class Server:
    """The server of `serving_server.py`: two processes."""

    def __init__(self, options: argparse.Namespace):
        program = [sys.executable, str(Path(__file__).with_name("serving_server.py")), "--device", options.device]
        for name in ("model_path", "shapes", "seconds", "tokens", "pictures", "step_ms"):
            value = getattr(options, name)
            program += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        program += ["--clients", *map(str, options.clients)]
        self._process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
        self.model = self._next("model")
        self.engine: dict[int, Any] = {clients: self._next("engine") for clients in options.clients}
        serving = self._next("serving")
        self.port: int = serving["port"]
        self._pids: list[int] = serving["pids"]

    def _next(self, kind: str) -> dict[str, Any]:
        assert self._process.stdout is not None, "stdout is a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("The server did not start.")
        found: dict[str, Any] = json.loads(line)
        assert found["kind"] == kind, line
        return found

    @property
    def resident_mb(self) -> float:
        """The resident memory of its two processes."""
        return sum(_resident_mb(pid) for pid in self._pids)

    @property
    def processor_seconds(self) -> tuple[float, ...]:
        """The processor time of the process with HTTP and of the one with the engine."""
        return tuple(map(_processor_seconds, self._pids))

    def stop(self) -> None:
        """Let it finish, as SIGTERM does."""
        self._process.terminate()
        self._process.wait(timeout=90)


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def measure(options: argparse.Namespace) -> tuple[list[Row], list[str], str]:
    """Measure all rows; return them with the errors and the name of the device."""
    context = multiprocessing.get_context("spawn")
    server = Server(options)
    rows: list[Row] = []
    errors: list[str] = []
    print(f"{server.model['device']}\n{HEAD}", flush=True)
    try:
        with ProcessPoolExecutor(options.client_processes, context) as pool:
            _ask(server, pool, options, min(8, max(options.clients)), min(3.0, options.seconds), seed=1)  # warms up
            turns = [*options.clients, *[max(options.clients)] * (options.rounds - 1)]
            for index, clients in enumerate(turns):
                before = server.processor_seconds
                load, seconds = _ask(server, pool, options, clients, options.seconds, seed=2 + index)
                used = [end - begin for begin, end in zip(before, server.processor_seconds, strict=True)]
                rows.append(row_of(load, seconds, server, clients, rows, used))
                errors += load.errors
                print(line_of(rows[-1]), flush=True)
    finally:
        server.stop()
    return rows, errors, server.model["device"]


def _ask(
    server: Server, pool: ProcessPoolExecutor, options: argparse.Namespace, clients: int, seconds: float, seed: int
) -> tuple[Load, float]:
    """Let clients in several processes ask for some seconds; return what they saw, and how long it took."""
    fields = {
        "model": server.model["name"],
        "temperature": 0,
        "logit_bias": {str(token): -100 for token in server.model["stops"]},
    }
    bundled = [
        replace(one, expected=text)
        for one, text in zip(bundled_questions(options.tokens), server.model["texts"], strict=True)
    ]
    questions: Sequence[Question] = (
        new_questions(options.pictures, seed, options.tokens) if options.pictures else bundled
    )
    processes = min(options.client_processes, clients)
    task = Task(server.port, 0, (), time.time() + START_SECONDS, seconds, fields, options.cancel_each)
    tasks = [
        replace(
            task,
            clients=len(range(number, clients, processes)),
            questions=tuple(questions[number::processes] if options.pictures else questions),
        )
        for number in range(processes)
    ]
    load = Load()
    for found in pool.map(run_clients, tasks):
        load.add(found)
    return load, load.ended - task.begin


def row_of(load: Load, seconds: float, server: Server, clients: int, rows: Sequence[Row], used: Sequence[float]) -> Row:
    """Return the row of what clients saw in some seconds, in which the two processes used so much processor time."""
    engine = server.engine[clients]
    rate = load.tokens / seconds
    return Row(
        clients,
        load.requests,
        load.cancelled,
        len(load.errors),
        load.wrong,
        rate,
        engine["rate"],
        rate / rows[0].rate if rows else 1.0,
        rate / engine["rate"],
        *percentiles(load.firsts),
        *percentiles(engine["firsts"]),
        server.resident_mb,
        *(1e6 * one / max(load.tokens, 1) for one in used),
    )


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 95th percentile in milliseconds."""
    times = sorted(seconds) or [float("nan")]
    return 1000 * times[len(times) // 2], 1000 * times[min(int(0.95 * len(times)), len(times) - 1)]


HEAD = (
    "clients  requests  given up  errors  wrong  tokens/s  engine  of one  of engine  first p50  p95 ms  engine p50  "
    "p95 ms  first of engine  memory MB  front us  step us"
)


def line_of(row: Row) -> str:
    counts = f"{row.clients:7}  {row.requests:8}  {row.cancelled:8}  {row.errors:6}  {row.wrong:5}"
    rates = f"{row.rate:8.0f}  {row.engine_rate:6.0f}  {row.of_one:5.2f}x  {row.of_engine:9.2f}"
    firsts = f"{row.first_p50:9.1f}  {row.first_p95:6.1f}  {row.engine_first_p50:10.1f}  {row.engine_first_p95:6.1f}"
    costs = f"{row.memory_mb:9.0f}  {row.front_us:8.0f}  {row.engine_us:7.0f}"
    return f"{counts}  {rates}  {firsts}  {row.engine_first_p50 / row.first_p50:15.2f}  {costs}"


def plot(rows: Sequence[Row], path: Path, title: str, rounds: int) -> None:
    """Draw throughput and time to the first token over the number of clients; with rounds, over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "vila"
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    most = max(row.clients for row in rows)
    shown = [row for row in rows if row.clients == most] if rounds > 1 else list(rows)
    where = list(range(1, len(shown) + 1)) if rounds > 1 else [row.clients for row in shown]
    axis: dict[str, Any] = {"xlabel": f"round with {most} clients"} if rounds > 1 else {"xlabel": "clients"}
    left.plot(where, [row.rate for row in shown], "o-", label="server")
    left.plot(where, [row.engine_rate for row in shown], "s--", label="bare engine")
    left.set(ylabel="tokens per second", ylim=(0, None), **axis)
    right.plot(where, [row.first_p50 for row in shown], "o-", color="C0", label="server, p50")
    right.plot(where, [row.first_p95 for row in shown], "o:", color="C0", label="server, p95")
    right.plot(where, [row.engine_first_p50 for row in shown], "s--", color="C1", label="bare engine, p50")
    right.plot(where, [row.engine_first_p95 for row in shown], "s:", color="C1", label="bare engine, p95")
    right.set(ylabel="time to the first token, ms", ylim=(0, None), **axis)
    for one in (left, right):
        one.legend(fontsize="small")
        one.grid(alpha=0.3)
    figure.suptitle(title, fontsize="medium")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path")
    parser.add_argument("--shapes", help="random 4-bit weights of these shapes instead, such as nvila-8b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--client-processes", type=int, default=1)
    parser.add_argument("--step-ms", type=float, help="steps only wait, so that the server's own cost is left")
    parser.add_argument("--pictures", type=int, default=0, help="ask about so many new pictures; 0: the bundled ones")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=1, help="rows with the most clients")
    parser.add_argument("--cancel-each", type=int, default=0, help="give up each so many-th request; 0: none")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--short", action="store_true", help="a few seconds, for the tests")
    options = parser.parse_args()
    if options.short:
        options.clients, options.seconds, options.tokens = [1, 16], 1.0, 8
    rows, errors, device = measure(options)
    most = [row.memory_mb for row in rows if row.clients == max(options.clients)]
    most = most[1:] if len(most) > 2 else most  # the first of several rounds warms up
    spread = (max(most) - min(most)) / statistics.median(most)
    print(
        f"memory with {max(options.clients)} clients: {min(most):.0f} to {max(most):.0f} MB, a spread of {spread:.1%}"
    )
    for error in errors[:5]:
        print(f"error: {error}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot(rows, options.plot, f"{options.shapes or options.model_path or 'vila-tiny'} on {device}", options.rounds)
    sys.exit(1 if errors or any(row.wrong for row in rows) else 0)


if __name__ == "__main__":
    main()
