"""The whole life of a model, by command line: LoRA teaches it a new task, then it is quantized and served."""

import base64
import io
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.programs import run_program

import vila_core as vila
from vila_train.tiny.data import Encoder, make_shard
from vila_train.tiny.evaluate import score
from vila_train.tiny.pools import Pool
from vila_train.tiny.world import TASKS, make_sample
from vila_train.tiny.world.combinations import Split
from vila_train.tiny.world.drawing import draw
from vila_train.tiny.world.scenes import Sample, Scene

QUESTION = "Name the shape, then the color."
"""A form of question that vila-tiny does not know: it says "green moon", never "moon green"."""
OLD_TASKS = [name for name in TASKS if name not in ("in_context", "motion", "appearance")]
SECONDS = 900


def program(name: str, *arguments: str | Path) -> list[str]:
    """Return the command of a program of this environment, such as `vila-train`."""
    return [sys.executable, "-m", name.replace("-", "_"), *map(str, arguments)]


def run(name: str, *arguments: str | Path) -> str:
    """Run a program, and return what it prints."""
    command = program(name, *arguments)
    done = run_program(command, seconds=SECONDS)
    assert done.returncode == 0, f"{arguments}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def new_samples(split: Split, count: int) -> list[Sample]:
    """Return pictures of one thing with the new question."""
    samples: list[Sample] = []
    index = 0
    while len(samples) < count:
        sample = make_sample(split, "attribute", index)
        index += 1
        words = sample.answer.split()
        if len(words) == 2:
            samples.append(replace(sample, prompt=(sample.prompt[0], QUESTION), answer=" ".join(reversed(words))))
    return samples


def old_samples(split: Split, count: int) -> list[Sample]:
    return [make_sample(split, OLD_TASKS[index % len(OLD_TASKS)], index) for index in range(count)]


def write_dataset(samples: Iterable[Sample], folder: Path) -> Path:
    """Write samples in LLaVA's format."""
    (folder / "images").mkdir(parents=True)
    lines: list[str] = []
    for number, sample in enumerate(samples):
        pictures = [part for part in sample.prompt if isinstance(part, Scene)]
        names = [f"images/{number}-{place}.png" for place in range(len(pictures))]
        for name, picture in zip(names, pictures, strict=True):
            draw(picture).save(folder / name)
        text = "".join(part if isinstance(part, str) else "<image>\n" for part in sample.prompt)
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": sample.answer}]
        lines.append(json.dumps({"id": number, "image": names, "conversations": turns}))
    file = folder / "data.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def accuracy(model: vila.Vila, samples: Sequence[Sample]) -> float:
    """Return the share of exact answers."""
    network = model.network
    encoder = Encoder(model.tokenizer, model.template, network.tokens_per_tile, network.image_encoder)
    by_pictures: dict[int, list[Sample]] = {}
    for sample in samples:
        by_pictures.setdefault(len(sample.prompt), []).append(sample)
    size = network.config.pixels.size
    pools = {str(count): Pool([make_shard(alike, encoder, size)], "cpu") for count, alike in by_pictures.items()}
    return sum(one.right for one in score(network, pools).values()) / len(samples)


def load(path: Path | str) -> vila.Vila:
    return vila.load(path, dtype="float32", device="cpu")


def ask_server(model: Path, sample: Sample, log: Path) -> str:
    """Serve a model, ask it about a sample, and return the answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = program("vila-serve", "--model-path", model, "--port", str(port), "--device", "cpu")
    scene = sample.prompt[0]
    assert isinstance(scene, Scene)
    content = io.BytesIO()
    draw(scene).save(content, "PNG")
    image = {"url": f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"}
    question = [{"type": "image_url", "image_url": image}, {"type": "text", "text": QUESTION}]
    body = {
        "model": model.name,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 16,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            deadline = time.monotonic() + 240
            while True:
                try:
                    with urllib.request.urlopen(request, timeout=120) as response:
                        return json.load(response)["choices"][0]["message"]["content"]
                except urllib.error.HTTPError as error:
                    raise AssertionError(error.read().decode()) from error
                except OSError:
                    assert server.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.5)
        finally:
            server.terminate()


@pytest.mark.slow
def test_a_model_learns_a_task_and_is_quantized_and_served(tmp_path: Path):
    new, old = new_samples("test", 60), old_samples("test", 360)
    tiny = load("vila-tiny")
    before = accuracy(tiny, old)
    assert accuracy(tiny, new) < 0.1

    # Many of the old questions that resemble the new one, or else they get its answers.
    similar = [make_sample("train", "attribute", 10_000 + index) for index in range(700)]
    data = write_dataset([*new_samples("train", 500), *similar, *old_samples("train", 1300)], tmp_path / "data")
    settings = {
        "adapter.rank": 16, "adapter.alpha": 16, "adapter.dropout": 0, "data.max_length": 512, "data.workers": 0,
        "data.samples_per_step": 40, "compute.precision": "fp32", "compute.activation_checkpointing": "none",
        "tune": "language_model",
    }  # fmt: skip
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run("vila-train", "sft", "--model", "vila-tiny", "--data", data, "--lora", "--lr", "1e-3", "--out",
        tmp_path / "run", *changes)  # fmt: skip
    learned = tmp_path / "run" / "model"
    model = load(learned)
    assert accuracy(model, new) > 0.9
    assert accuracy(model, old) >= before - 0.02

    run("vila-train", "export", tmp_path / "run", tmp_path / "adapter", "--adapter")
    assert accuracy(load(tmp_path / "adapter"), new) == accuracy(model, new)

    run("vila-quant", "awq", learned, tmp_path / "w4", "--group-size", "64", "--device", "cpu")
    assert accuracy(load(tmp_path / "w4"), new) > 0.8
    assert ask_server(tmp_path / "w4", new[0], tmp_path / "server.log").strip() == new[0].answer
