"""The server's process for `serving.py`: loads a model, measures its bare engine, then serves the same model.

It prints a line of JSON for each measurement and one when it serves. With `--shapes`, the model has random 4-bit
weights and a vocabulary as large as the real one, so that each token has text.
"""

from __future__ import annotations

import argparse
import json
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
from vila_core.loading import load_checkpoint
from vila_serve import server
from vila_serve.answering import MAX_THREADS
from vila_serve.api.app import create_app
from vila_serve.settings import ServeSettings


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
        return self._model.submit(prompt, self._config)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path")
    parser.add_argument("--shapes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clients", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=0)
    parser.add_argument("--step-ms", type=float)
    options = parser.parse_args()
    settings = ServeSettings(
        port=0, page=False, log_level="warning", model_path=options.model_path, model_name="served"
    )
    if options.shapes is None:
        model = server.load_model(settings.model_copy(update={"device": options.device}))
    else:
        waiting = settings.max_batch + settings.max_queue
        engine = vila_core.EngineConfig(max_batch=settings.max_batch, max_queue=waiting)
        model = random_model(options.shapes, options.device, engine)
    if options.step_ms is not None:
        let_steps_wait(model, options.step_ms / 1000)
    stops = dict.fromkeys(sorted(model.stop_token_ids), -100.0)
    config = GenerationConfig(max_new_tokens=options.tokens, logit_bias=stops)
    questions = bundled_questions()
    texts = [model.generate([vila_core.Image(one.png), one.text], **_settings(config)) for one in questions]
    say("model", name="served", stops=list(stops), texts=texts, device=_device_name(model))
    for index, clients in enumerate((min(8, max(options.clients)), *options.clients)):
        asked = new_questions(options.pictures, 1000 + index) if options.pictures else questions
        load = EngineClients(model, config, asked).run(clients, options.seconds if index else 1.0)
        if index:  # the first one warms up
            say("engine", **asdict(load))
    bound = server.bind(settings)
    say("serving", port=bound.getsockname()[1])
    server.serve(create_app(model, settings), settings, bound)


def _settings(config: GenerationConfig) -> Any:
    return {"max_new_tokens": config.max_new_tokens, "logit_bias": config.logit_bias}


def _device_name(model: vila_core.Vila) -> str:
    import torch

    return torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
    sys.exit(0)
