"""Runs of the training loop on a network with a few thousand parameters, in this process or in others."""

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tests.fork_server import run_in_processes

import vila_core as vila
from vila_core.chat import Message
from vila_train.callbacks import RunStart, StepRecord
from vila_train.config import DataConfig, TrainConfig
from vila_train.data.conversations import Conversation, SampleError
from vila_train.loop import train

WORDS = ["red", "blue", "green", "left", "right", "square", "circle", "one", "two", "three"]
ALL = ("vision_tower", "projector", "language_model")


@lru_cache
def shuffled(epoch: int, count: int) -> list[int]:
    return random.Random(epoch).sample(range(count), count)


@dataclass(frozen=True)
class Mixed:
    """Texts, pictures and videos, and some damaged samples, in another order in each epoch."""

    count: int = 40
    damaged: int = 13
    slow: float = 0.0

    def __len__(self) -> int:
        return self.count

    def conversation(self, epoch: int, position: int) -> Conversation:
        index = shuffled(epoch, self.count)[position]
        time.sleep(self.slow)
        if index % self.damaged == self.damaged - 1:
            raise SampleError(f"mixed/{index} is damaged.", "damaged", f"mixed/{index}")
        return conversation(index)


def conversation(index: int) -> Conversation:
    draw = np.random.default_rng(index)
    words = [WORDS[choice] for choice in draw.integers(0, len(WORDS), int(draw.integers(1, 30)))]
    parts: list[Any] = [" ".join(words)]
    if index % 3 == 1:
        picture = draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        parts = [vila.Image(PIL.Image.fromarray(picture)), *parts, *([parts[0]] if index % 2 else [])]
    if index % 5 == 2:
        parts = [vila.Video(draw.integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)), *parts]
    return Conversation(f"mixed/{index}", [Message("user", parts), Message("assistant", " ".join(words[:7]))])


def micro_config(checkpoint: Path, **changes: Any) -> TrainConfig:
    """Return a short run in fp32. Keys of `changes` may have dots."""
    data = DataConfig(mixture="mixed", max_length=128, rows_per_step=4, lanes=4, lookahead=4, workers=0)
    config: dict[str, Any] = {
        "name": "micro",
        "model": {"path": str(checkpoint)},
        "tune": ALL,
        "data": data.model_dump(),
        "optimizer": {"learning_rate": 3e-3},
        "compute": {"precision": "fp32", "activation_checkpointing": "none"},
        "saving": {"every": 2},
        "logging": {"callbacks": ()},
        "max_steps": 6,
    }
    for name, value in changes.items():
        *outer, last = name.split(".")
        place = config
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = value
    return TrainConfig.model_validate(config)


@dataclass
class Recorder:
    """Keeps what a run reports; `after` is called with each step."""

    after: Callable[[int], None] = lambda step: None
    start: RunStart | None = None
    records: list[StepRecord] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    ends: list[tuple[int, str]] = field(default_factory=list)

    def on_start(self, start: RunStart) -> None:
        self.start = start

    def on_step(self, record: StepRecord) -> None:
        self.records.append(record)
        self.after(record.step)

    def on_evaluation(self, step: int, scores: Mapping[str, float]) -> None: ...

    def on_checkpoint(self, step: int, folder: Path) -> None:
        self.checkpoints.append(step)

    def on_end(self, step: int, reason: str) -> None:
        self.ends.append((step, reason))

    @property
    def losses(self) -> dict[int, float]:
        return {record.step: record.loss for record in self.records}


def run(config: TrainConfig, out: Path, order: Any = None, **arguments: Any) -> Recorder:
    """Train in this process."""
    recorder = Recorder(**arguments)
    train(config, out, [recorder], order=Mixed() if order is None else order, device="cpu")
    return recorder


def write_losses(path: Path) -> Callable[[StepRecord], None]:
    def write(record: StepRecord) -> None:
        with path.open("a") as file:
            file.write(f"{record.step} {record.loss.hex()} {record.gradient_norm.hex()}\n")

    return write


def read_losses(path: Path) -> dict[int, tuple[float, float]]:
    """Return (loss, gradient norm) by step; of a step that was done twice, the last."""
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return {int(step): (float.fromhex(loss), float.fromhex(norm)) for step, loss, norm in rows}


class Writer(Recorder):
    """Writes the loss of each step to a file, and then calls `after`."""

    def __init__(self, path: Path, after: Callable[[int], None]):
        super().__init__(after)
        self._write = write_losses(path)

    def on_step(self, record: StepRecord) -> None:
        self._write(record)
        super().on_step(record)


def in_processes(
    config: TrainConfig,
    out: Path,
    losses: Path,
    *,
    ranks: int = 1,
    order: Any = None,
    before: Callable[[], None] = lambda: None,
    after: Callable[[int], None] = lambda step: None,
) -> list[int]:
    """Train in processes of their own, described as torchrun does. Return the exit codes; negative: killed by a signal.

    Args:
        config: of the run.
        out: its folder.
        losses: receives a line for each step.
        ranks: how many processes.
        order: the samples.
        before: called in each process before it trains.
        after: called in the process of rank 0 after each step.
    """
    port = free_port()
    return run_in_processes(
        [partial(_train, config, out, losses, rank, ranks, port, order, before, after) for rank in range(ranks)]
    )


def _train(
    config: TrainConfig,
    out: Path,
    losses: Path,
    rank: int,
    ranks: int,
    port: int,
    order: Any,
    before: Callable[[], None],
    after: Callable[[int], None],
) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{ranks}"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "GLOO_SOCKET_IFNAME": "lo"}
    before()
    try:
        train(config, out, [Writer(losses, after)], order=Mixed() if order is None else order, device="cpu")
    except KeyboardInterrupt:
        os._exit(130)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def kill_at(step: int) -> Callable[[int], None]:
    """Return what kills its process after this step."""

    def after(done: int) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return after


def send_at(step: int, number: int) -> Callable[[int], None]:
    """Return what sends its process a signal after this step."""

    def after(done: int) -> None:
        if done == step:
            os.kill(os.getpid(), number)

    return after


def largest_difference(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))
