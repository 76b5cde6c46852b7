"""The engine of `serving_server.py`: loads a model in the engine's process, and measures it before it serves.

It prints a line of JSON for each measurement. With `shapes`, the model has random 4-bit weights and a vocabulary as
large as the real one, so that each token has text.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from serving_clients import Question, bundled_questions, new_questions
from waiting_engine import let_steps_wait

import vila_core
from vila_core.bench.random_model import random_checkpoint
from vila_core.engine.request import Handle
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.warming import USUAL
from vila_core.loading import load_checkpoint
from vila_serve.answering.engine_side import MAX_THREADS
from vila_serve.loading import load_model
from vila_serve.settings import ServeSettings


@dataclass(frozen=True)
class Measurement:
    """What is served and measured; see the options of `serving.py`."""

    settings: ServeSettings
    shapes: str | None
    device: str
    clients: tuple[int, ...]
    seconds: float
    tokens: int
    pictures: int
    step_ms: float | None


@dataclass
class Asked:
    """A question of a client of the bare engine that is being answered."""

    begin: float
    handle: Future[Handle]
    tokens: int = 0
    has_first: bool = False


@dataclass
class EngineLoad:
    """What the bare engine did. Times are in seconds."""

    clients: int
    rate: float = 0.0
    firsts: list[float] = field(default_factory=list)


class EngineClients:
    """Clients of the engine without a server, which ask again as soon as they are answered.

    A picture comes as PNG, as it does to the server, and is decoded, tiled and tokenized in as many threads; the
    engine is stepped in one more.
    """

    def __init__(self, model: vila_core.Vila, config: GenerationConfig, questions: list[Question]):
        self._model = model
        self._config = config
        self._questions = questions
        self._threads = ThreadPoolExecutor(MAX_THREADS)

    def run(self, clients: int, seconds: float) -> EngineLoad:
        """Ask for some seconds, and wait for the answers."""
        load, begin, tokens, turn = EngineLoad(clients), time.perf_counter(), 0, clients
        asked = [self._ask(number) for number in range(clients)]
        while asked:
            self._model.engine.step()
            now = time.perf_counter()
            for one in list(asked):
                if not one.handle.done():
                    continue
                handle = one.handle.result()
                has_ended = handle.has_ended
                pieces = handle.take()
                one.tokens += sum(piece.token_id is not None for piece in pieces)
                if not one.has_first and any(piece.text.strip() for piece in pieces):
                    one.has_first = True
                    load.firsts.append(now - one.begin)
                if has_ended:
                    handle.result()  # raises the error of an answer that failed
                    tokens += one.tokens
                    asked.remove(one)
                    if now < begin + seconds:
                        asked.append(self._ask(turn))
                        turn += 1
        load.rate = tokens / (time.perf_counter() - begin)
        return load

    def _ask(self, number: int) -> Asked:
        question = self._questions[number % len(self._questions)]
        return Asked(time.perf_counter(), self._threads.submit(self._submit, question))

    def _submit(self, question: Question) -> Handle:
        prompt = self._model.prepare([vila_core.Image(question.png), question.text])
        return self._model.submit(prompt, self._config.model_copy(update={"max_new_tokens": question.tokens}))


def random_model(shapes: str, device: str, engine: vila_core.EngineConfig) -> vila_core.Vila:
    """Load random 4-bit weights of these shapes."""
    checkpoint = random_checkpoint(shapes, "w4")
    with tempfile.TemporaryDirectory() as folder:
        extend_vocabulary(checkpoint.tokenizer_path, Path(folder), checkpoint.config.language_model.vocab_size - 48)
        checkpoint = replace(checkpoint, tokenizer_path=Path(folder))
        return load_checkpoint(checkpoint, device=device, dtype="bfloat16", engine=engine, progress=False)


def extend_vocabulary(source: Path, target: Path, size: int) -> None:
    """Copy a byte-level tokenizer, with words that no text is split into, up to `size` tokens."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    file = target / "tokenizer.json"
    content: Any = json.loads(file.read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    vocabulary.update({token["content"]: token["id"] for token in content["added_tokens"]})
    vocabulary.update({f"Ġw{number}": number for number in range(len(vocabulary), size)})
    file.write_text(json.dumps(content), encoding="utf-8")


def say(kind: str, **values: object) -> None:
    """Print a line for `serving.py`."""
    print(json.dumps({"kind": kind, **values}), flush=True)


def load_and_measure(measurement: Measurement, progress: object) -> vila_core.Vila:
    """Load the model and measure its bare engine; return it for the server. `progress` is not used."""
    settings = measurement.settings
    if measurement.shapes is None:
        model = load_model(settings)
    else:
        waiting = settings.max_batch + settings.max_queue
        engine = vila_core.EngineConfig(max_batch=settings.max_batch, max_queue=waiting)
        model = random_model(measurement.shapes, measurement.device, engine)
    if measurement.step_ms is not None:
        let_steps_wait(model, measurement.step_ms / 1000)
    stops = dict.fromkeys(sorted(model.stop_token_ids), -100.0)
    config = GenerationConfig(max_new_tokens=measurement.tokens, logit_bias=stops)
    begin = time.perf_counter()
    model.warm_up([*USUAL, config])
    print(f"warmed up in {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
    questions = bundled_questions(measurement.tokens)
    texts = [model.generate([vila_core.Image(one.png), one.text], **_settings(config)) for one in questions]
    say("model", name="served", stops=list(stops), texts=texts, device=_device_name(model), pid=os.getpid())

    def ask(clients: int, seconds: float, seed: int) -> EngineLoad:
        asked = new_questions(measurement.pictures, seed, measurement.tokens) if measurement.pictures else questions
        return EngineClients(model, config, asked).run(clients, seconds)

    for index, clients in enumerate(measurement.clients):
        say("engine", **asdict(ask(clients, measurement.seconds, 2000 + index)))
    return model


def _settings(config: GenerationConfig) -> Any:
    return {"max_new_tokens": config.max_new_tokens, "logit_bias": config.logit_bias}


def _device_name(model: vila_core.Vila) -> str:
    import torch

    return torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU"
