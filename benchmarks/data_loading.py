"""How fast training data is loaded: from files on disk to packed rows in main memory.

    python benchmarks/data_loading.py --workers 0 1 2 4 8 16

Claim: with 16 loading processes, the loader feeds at least twice what a GPU consumes. Conversations about JPEG pictures
(and some about text only) are read from a JSON Lines file, decoded, cut into tiles as for NVILA-8B, tokenized and
packed. Printed for each number of processes: samples, images and tokens per second, and what that is for each process;
and for one process, the share of each stage, and tokens per second of CPU time, which does not depend on what else the
machine does. A token of text is counted as 4 characters, as English has with Qwen2's
tokenizer, since the embedded tokenizer that is used here makes more of them. The files are in the page cache.
"""

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader

from vila_core.bench.shapes import model_shape
from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.embedded import EMBEDDED_MODEL
from vila_core.media import MediaLimits
from vila_core.model import VilaModel
from vila_core.plugins.loader import load_plugins
from vila_core.tokenizer import Tokenizer
from vila_train.config import DataConfig
from vila_train.data.checking import load_media
from vila_train.data.conversations import Conversation
from vila_train.data.mixture import Mixture, open_mixture
from vila_train.loop.loader import FittingEncoder, LaneRounds, LoadedRow, LoadingFailed
from vila_train.packing.lanes import LaneConfig
from vila_train.samples import Encoder, TrainingSample

CHARACTERS_PER_TOKEN = 4
QUESTION_WORDS, ANSWER_WORDS = 12, 60
TEXT_ONLY = 0.1
"""Share of samples without a picture."""


@dataclass(frozen=True)
class Loaded:
    """What was loaded in some time. `cpu_seconds` are those of the main process: of everything, if it loads."""

    seconds: float
    cpu_seconds: float
    samples: int
    images: int
    tokens: int


def write_data(folder: Path, pictures: int, samples: int, sizes: list[tuple[int, int]]) -> Path:
    """Write noisy JPEG pictures and conversations about them, and return the data file."""
    rng = random.Random(0)
    noise = np.random.default_rng(0)
    for number in range(pictures):
        width, height = sizes[number % len(sizes)]
        values = noise.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        picture = PIL.Image.fromarray(values).resize((width, height), PIL.Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=90)
    words = ["the", "picture", "shows", "a", "small", "red", "house", "beside", "water", "with", "trees", "behind"]

    def text(count: int) -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(count // 2, 2 * count)))

    with (folder / "data.jsonl").open("w") as file:
        for number in range(samples):
            question, answer = text(QUESTION_WORDS), text(ANSWER_WORDS)
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            record: dict[str, object] = {"conversations": turns}
            if rng.random() >= TEXT_ONLY:
                record["image"] = f"{number % pictures}.jpg"
            file.write(json.dumps(record) + "\n")
    return folder / "data.jsonl"


def make_encoder(name: str, data: DataConfig) -> FittingEncoder:
    """Return the encoder of a model's shapes, without weights."""
    tokenizer = Tokenizer.from_folder(open_checkpoint(EMBEDDED_MODEL).tokenizer_path)
    with torch.device("meta"):
        network = VilaModel(model_shape(name, "bfloat16"), tokenizer)
    template = load_plugins().chat_templates.get("qwen2")
    return FittingEncoder(Encoder(network, tokenizer, template, MediaLimits(fetch=None)), data)


def count_tokens(sample: TrainingSample) -> int:
    """Return the tokens of a sample, its text counted by characters."""
    media = sum(len(block) for blocks in sample.expanded.blocks for block in blocks)
    return media + sum(len(turn.text) for turn in sample.prompt.turns) // CHARACTERS_PER_TOKEN


class Counting:
    """An encoder that leaves the counts of a sample in its name, which rows carry to the main process."""

    def __init__(self, encode: FittingEncoder):
        self.encode = encode

    def __call__(self, conversation: Conversation) -> TrainingSample:
        sample = self.encode(conversation)
        return replace(sample, name=f"{len(sample.prompt.media)} {count_tokens(sample)}")


def load(mixture: Mixture, encode: FittingEncoder, workers: int, row_length: int, seconds: float) -> Loaded:
    """Load rows for some time, after every process has delivered its first."""
    lanes = 2 * max(workers, 1)
    config = LaneConfig(lanes=lanes, row_length=row_length, lookahead=32)
    rounds = LaneRounds(mixture, Counting(encode), config, range(lanes), {}, 0)
    loader = iter(DataLoader(rounds, batch_size=None, num_workers=workers))
    for _ in range(2 * max(workers, 1)):
        rows_of(next(loader))
    started, cpu_started = time.perf_counter(), time.process_time()
    samples = images = tokens = 0
    while time.perf_counter() - started < seconds:
        for row in rows_of(next(loader)):
            for name in row.row.names:
                of_sample = [int(part) for part in name.split()]
                samples, images, tokens = samples + 1, images + of_sample[0], tokens + of_sample[1]
    return Loaded(time.perf_counter() - started, time.process_time() - cpu_started, samples, images, tokens)


def rows_of(loaded: list[LoadedRow] | LoadingFailed) -> list[LoadedRow]:
    """Return the rows of a round."""
    assert not isinstance(loaded, LoadingFailed), loaded.message
    return loaded


def time_stages(mixture: Mixture, encode: FittingEncoder, samples: int) -> dict[str, float]:
    """Return the milliseconds of each stage per sample, in this process."""
    found: dict[str, list[float]] = {"read": [], "decode": [], "tile and tokenize": []}
    for position in range(samples):
        start = time.perf_counter()
        conversation = mixture.conversation(0, position)
        read = time.perf_counter()
        load_media(conversation)
        decoded = time.perf_counter()
        encode(conversation)  # decodes again
        end = time.perf_counter()
        found["read"].append(read - start)
        found["decode"].append(decoded - read)
        found["tile and tokenize"].append((end - decoded) - (decoded - read))
    return {stage: 1e3 * statistics.mean(times) for stage, times in found.items()}


def parse_size(text: str) -> tuple[int, int]:
    """Return "640x480" as numbers."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nvila-8b", help="shapes, as in vila bench")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="loading processes")
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[(640, 480), (1024, 768), (1280, 720)])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--row-length", type=int, default=16_384, help="in tokens of the embedded tokenizer")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument(
        "--need", type=float, help="tokens per second that the GPU consumes: exit with 1 below twice it"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        path = write_data(Path(temporary), options.pictures, options.samples, options.sizes)
        data = DataConfig(mixture=str(path), max_length=options.row_length)
        mixture, encode = open_mixture(data, seed=0), make_encoder(options.model, data)
        tiles = [len(encode(mixture.conversation(0, n)).prompt.media) for n in range(20)]
        stages = time_stages(mixture, encode, 60)
        results = {n: load(mixture, encode, n, options.row_length, options.seconds) for n in options.workers}
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"
    record = {
        "machine": machine,
        "shapes": options.model,
        "sizes": options.sizes,
        "images_per_sample": statistics.mean(tiles),
        "milliseconds_per_sample": stages,
        "decode_share": stages["decode"] / sum(stages.values()),
        "tokens_per_cpu_second": results[0].tokens / results[0].cpu_seconds if 0 in results else None,
        "workers": {
            n: {
                "samples_per_second": one.samples / one.seconds,
                "images_per_second": one.images / one.seconds,
                "tokens_per_second": one.tokens / one.seconds,
            }
            for n, one in results.items()
        },
    }
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        print_report(record)
    best = max(one.tokens / one.seconds for one in results.values())
    if options.need is not None and best < 2 * options.need:
        raise SystemExit(1)


def print_report(record: Mapping[str, object]) -> None:
    """Print the results for people."""
    print(f"{record['machine']}; {record['shapes']}; pictures of {record['sizes']}")
    stages = record["milliseconds_per_sample"]
    assert isinstance(stages, dict)
    print("one process, milliseconds per sample: " + ", ".join(f"{name} {ms:.1f}" for name, ms in stages.items()))
    print(f"decoding takes {record['decode_share']:.0%}")
    if record["tokens_per_cpu_second"] is not None:
        print(f"one process: {record['tokens_per_cpu_second']:,.0f} tokens per second of CPU time")
    print(f"{'workers':>8} {'samples/s':>10} {'images/s':>10} {'tokens/s':>10} {'tokens/s/worker':>16}")
    rows = record["workers"]
    assert isinstance(rows, dict)
    for workers, one in rows.items():
        samples, images, tokens = one.values()
        print(f"{workers:>8} {samples:>10.1f} {images:>10.1f} {tokens:>10,.0f} {tokens / max(workers, 1):>16,.0f}")


if __name__ == "__main__":
    main()
