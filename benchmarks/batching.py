"""Answers per second of the engine on a GPU for growing batches, from submitted prompts to texts, beside the limit.

    python benchmarks/batching.py [--model nvila-8b] [--weights w4] [--batches 1 16 64] [--prompt 300] [--tokens 128]
                                  [--out results/batching.json] [--plot docs/assets/batching.svg]
    python benchmarks/batching.py --drawn results/batching.json --plot docs/assets/batching.svg

Random weights of the real shapes. All prompts of a batch are submitted at once to `Engine.answer_all`, the method
behind `Vila.generate_batch`: paged cache, captured steps, sampling, detokenizing and stop checks are included.
`decode` is the rate while all rows are answered; `limit` is the rate at which the weights and the caches of all rows
could be read once per step, at the best rate that a kernel reaches in the same run. `joining` is the longest time
between two tokens of an answer while a prompt of 4096 tokens is read beside it, in chunks and at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from decode import GPU, MODELS, random_decoder, weight_bytes
from w4a16 import bytes_per_second

from vila_core.bench.shapes import language_shape
from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.engine.answer import Generated
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import EmbeddedPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.engine.sampling import GenerationConfig
from vila_core.language.decoder import Decoder
from vila_core.tokenizer import Tokenizer

LONG_PROMPT = 4096


@dataclass(frozen=True)
class Batch:
    """One row of the table. Rates are tokens per second of all rows together; `of_limit` is decode / limit."""

    rows: int
    whole: float
    decode: float
    limit: float
    of_limit: float
    over_one: float
    settings: str


def prompts(decoder: Decoder, count: int, length: int) -> list[EmbeddedPrompt]:
    """Return prompts of random tokens."""
    ids = torch.randint(0, decoder.config.vocab_size, (count, length), device=GPU)
    return [EmbeddedPrompt(row) for row in decoder.embed(ids)]


def measure(engine: Engine, decoder: Decoder, rows: int, length: int, config: GenerationConfig) -> tuple[float, float]:
    """Return tokens per second of all rows together: from submission to the end, and while all are answered."""
    best = (0.0, 0.0)
    for _ in range(3):
        batch = prompts(decoder, rows, length)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        answers = engine.answer_all(batch, config)
        whole = time.perf_counter() - begin
        assert all(isinstance(one, Generated) and len(one.token_ids) == config.max_new_tokens for one in answers)
        decoding = min(one.decode_seconds for one in answers if isinstance(one, Generated))
        rates = rows * config.max_new_tokens / whole, rows * (config.max_new_tokens - 1) / decoding
        best = max(best[0], rates[0]), max(best[1], rates[1])
    return best


def longest_gap(engine: Engine, decoder: Decoder) -> float:
    """Return the longest time in milliseconds between two tokens while a long prompt joins."""
    (short,), (long,) = prompts(decoder, 1, 100), prompts(decoder, 1, LONG_PROMPT)
    moments: list[float] = []
    pieces = engine.submit(short, GenerationConfig(max_new_tokens=150))
    other = None
    for number, _ in enumerate(pieces):
        moments.append(time.perf_counter())
        if number == 20:
            other = engine.submit(long, GenerationConfig(max_new_tokens=2))
    assert other is not None
    other.result()
    return 1e3 * max(after - before for before, after in pairwise(moments[5:]))


def draw(report: dict[str, Any], file: Path) -> None:
    """Draw tokens per second over those of one row, beside the goal."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "batching"
    from matplotlib import pyplot as plt

    rows = sorted({batch["rows"] for batch in report["batches"]})
    figure, axes = plt.subplots(figsize=(7, 3.2), constrained_layout=True)
    for place, name in enumerate(("greedy", "sampled")):
        of_name = {batch["rows"]: batch for batch in report["batches"] if batch["settings"] == name}
        bars = axes.bar(
            [index + (place - 0.5) * 0.36 for index in range(len(rows))],
            [of_name[count]["decode"] for count in rows],
            width=0.34,
            label=name,
        )
        labels = [f"{of_name[count]['over_one']:.1f} ×" if count > 1 else "" for count in rows]
        axes.bar_label(bars, labels, fontsize=8)
    limits = {batch["rows"]: batch["limit"] for batch in report["batches"]}
    for index, count in enumerate(rows):
        axes.hlines(limits[count], index - 0.4, index + 0.4, colors="black", linewidth=0.8)
    axes.plot([], [], color="black", linewidth=0.8, label="reading weights and caches once per step")
    axes.set_yscale("log")
    axes.set_ylim(bottom=100)
    axes.set_xticks(range(len(rows)), [f"{count} row{'s'[: count > 1]}" for count in rows])
    axes.set_ylabel("tokens per second")
    axes.set_title(f"{report['model']}, {report['weights']}, through the engine, {report['device']}", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="nvila-8b")
    parser.add_argument("--weights", choices=("w4", "bf16"), default="w4")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prompt", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--plot", type=Path, help="draw the numbers into this .svg or .png")
    parser.add_argument("--drawn", type=Path, help="draw this JSON file instead of measuring")
    args = parser.parse_args()
    if args.drawn:
        draw(json.loads(args.drawn.read_text()), args.plot)
        return
    if not torch.cuda.is_available():
        sys.exit("This benchmark needs an NVIDIA GPU.")
    torch.manual_seed(0)
    dtype = torch.float16 if args.weights == "w4" else torch.bfloat16
    config = language_shape(args.model).model_copy(update={"max_length": 8192})
    decoder = random_decoder(config, args.weights, dtype)
    tokenizer = Tokenizer.from_folder(open_checkpoint(embedded_model()).tokenizer_path)
    bandwidth = bytes_per_second(torch.empty(3 << 28, dtype=torch.int32, device=GPU).random_())
    engine = Engine(decoder, tokenizer, frozenset(), EngineConfig(max_batch=max(args.batches), cache_bytes=16 << 30))
    kv = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
    found: list[Batch] = []
    ways: dict[str, dict[str, Any]] = {
        "greedy": {},
        "sampled": {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "seed": 1},
    }
    for name, settings in ways.items():
        for rows in args.batches:
            whole, decode = measure(
                engine, decoder, rows, args.prompt, GenerationConfig(max_new_tokens=args.tokens, **settings)
            )
            read = weight_bytes(decoder) + rows * kv * (args.prompt + args.tokens // 2)
            limit = rows * bandwidth / read
            one = next((batch.decode for batch in found if batch.rows == 1 and batch.settings == name), decode)
            found.append(Batch(rows, whole, decode, limit, decode / limit, decode / one, name))
            print(
                {
                    key: round(value, 3) if isinstance(value, float) else value
                    for key, value in asdict(found[-1]).items()
                }
            )
    gaps = {}
    for name, chunk in (("chunks of 512", 512), ("chunks of 2048", 2048), ("at once", 1 << 20)):
        own = Engine(
            decoder, tokenizer, frozenset(), EngineConfig(max_batch=4, cache_bytes=4 << 30, chunk_tokens=chunk)
        )
        for _ in range(2):  # a size of prompt is captured in a graph when it comes again
            longest_gap(own, decoder)
        gaps[name] = longest_gap(own, decoder)
    print("longest gap while a prompt joins, ms:", {name: round(gap, 1) for name, gap in gaps.items()})
    report = {
        "device": torch.cuda.get_device_name(),
        "model": args.model,
        "weights": args.weights,
        "bytes_per_second": bandwidth,
        "batches": [asdict(one) for one in found],
        "gaps": gaps,
    }
    if args.out:
        args.out.write_text(json.dumps(report, indent=2))
    if args.plot:
        draw(report, args.plot)


if __name__ == "__main__":
    main()
