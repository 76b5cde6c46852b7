"""One decode step of a language model on a GPU, from token id to token id, beside the time of reading its weights.

    python benchmarks/decode.py [--model nvila-8b] [--weights w4 bf16] [--cache auto fp8] [--rows 1 16 64]
                                [--context 300] [--out results/decode.json] [--plot results/decode.svg]
    python benchmarks/decode.py --drawn results/decode.json --plot docs/assets/decode.svg

Random weights of the real shapes. The step is one CUDA graph: embedding, all layers with a paged cache of `context`
tokens per row, the head, and the choice of the token (greedy; `sampled`: temperature, top-k and top-p). `limit` is the
time of reading all weights (of a tied model the embedding, as the head) and the cache once, at the best rate that a
kernel reaches in the same run. Times are medians of replays. `loop` is a loop that reads every token on the host.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from gpu_timing import time_once
from torch import nn
from w4a16 import bytes_per_second

from vila_core.bench.shapes import language_shape
from vila_core.config import DecoderConfig
from vila_core.language.decoder import Decoder
from vila_core.language.page_size import PAGE_SIZE
from vila_core.language.paged_cache import PagedCache, bytes_of_slot
from vila_core.language.paged_graphs import GraphPagedStep
from vila_core.language.paged_rows import RowSampling, StepKind
from vila_core.language.paged_step import paged_step
from vila_quant.kernels.cuda.w4a16.kernel import W4A16Kernel
from vila_quant.kernels.cuda.w4a16.timing import random_weight
from vila_quant.kernels.kernel import LinearShape
from vila_quant.linears.groupwise_linear import GroupwiseLinear

GPU = torch.device("cuda")
GREEDY, SAMPLED = StepKind(), StepKind(draws=True, top_k=True, top_p=True)
GROUP_SIZE = 128
MAX_LENGTH = 32_768 + 64

MODELS = ("nvila-8b", "nvila-3b")


@dataclass(frozen=True)
class Measurement:
    """One row of the table; times in milliseconds."""

    model: str
    weights: str
    dtype: str
    cache: str
    rows: int
    context: int
    limit: float
    step: float
    of_limit: float
    loop: float
    sampled: float
    tokens_per_second: float


def random_decoder(config: DecoderConfig, weights: str, dtype: torch.dtype) -> Decoder:
    """Return a decoder whose layers have `weights` of the kind "w4" or "bf16"."""
    with torch.device("meta"):
        decoder = Decoder(config)
    if weights == "w4":
        for name, linear in list(decoder.model.layers.named_modules()):
            if isinstance(linear, nn.Linear):
                decoder.model.layers.set_submodule(name, _random_quantized(linear))
    for module in decoder.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            made = torch.empty(parameter.shape, device=GPU, dtype=dtype)
            made.normal_(0.0, parameter.shape[-1] ** -0.5) if parameter.ndim == 2 else made.fill_(1.0)
            if name == "bias":
                made.zero_()
            module.register_parameter(name, nn.Parameter(made, requires_grad=False))
    return decoder


def _random_quantized(linear: nn.Linear) -> GroupwiseLinear:
    shape = LinearShape(linear.out_features, linear.in_features, GROUP_SIZE)
    quantized = GroupwiseLinear(shape, bias=linear.bias is not None)  # pyright: ignore[reportUnnecessaryComparison]
    quantized.kernel = W4A16Kernel()
    quantized.packed = (random_weight(shape.outputs, shape.inputs, GROUP_SIZE, GPU),)
    for name in ("qweight", "qzeros", "scales"):
        quantized.register_buffer(name, torch.empty(0, device=GPU))
    return quantized


def weight_bytes(decoder: Decoder) -> int:
    """Return the bytes that a step reads of the weights: all, but of an untied embedding nothing."""
    total = sum(parameter.nbytes for parameter in decoder.parameters())
    total += sum(module.packed[0].nbytes for module in decoder.modules() if isinstance(module, GroupwiseLinear))
    return total - (0 if decoder.lm_head is None else decoder.model.embed_tokens.weight.nbytes)


def paged_step_of(decoder: Decoder, rows: int, context: int, *, in_8_bits: bool = False) -> GraphPagedStep:
    """Return a step over pages of random keys and values, with `rows` rows at `context`."""
    pages = -(-(context + 64) // PAGE_SIZE)
    dtype = decoder.model.embed_tokens.weight.dtype
    cache = PagedCache.allocate(decoder.config, rows * pages, device=GPU, dtype=dtype, in_8_bits=in_8_bits)
    if cache.scales is None:
        cache.keys.normal_()
        cache.values.normal_()
    else:
        cache.keys.random_(0, 127)  # codes that are numbers
        cache.values.random_(0, 127)
        for scales in cache.scales:
            scales.fill_(1 / 128)
    step = paged_step(decoder, cache, rows, pages)
    assert isinstance(step, GraphPagedStep)
    order = torch.randperm(rows * pages).view(rows, pages).tolist()
    for row in range(rows):
        step.rows.start(row, context, order[row], RowSampling(0.7, 50, 0.9, row))
    return step


def step_milliseconds(step: GraphPagedStep, rows: int, kind: StepKind, context: int) -> float:
    """Return the median time of a replay of the captured step, at the same positions every time."""
    graph = step.captured(rows, kind).graph
    times: list[float] = []
    for repetition in range(33):
        step.rows.positions.fill_(context)
        took = time_once(graph.replay)
        if repetition >= 3:
            times.append(took)
    assert 0 <= int(step.rows.ids.min()) <= int(step.rows.ids.max()) < step.rows.vocabulary
    return statistics.median(times)


def loop_milliseconds(step: GraphPagedStep, rows: int, kind: StepKind, context: int, count: int = 40) -> float:
    """Return the time per step of a loop that reads every token on the host, one step late."""
    step.rows.positions.fill_(context)
    pending = step.launch(rows, kind)
    pending.tokens()
    begin = time.perf_counter()
    pending = step.launch(rows, kind)
    for _ in range(count - 1):
        ahead = step.launch(rows, kind)
        pending.tokens()
        pending = ahead
    pending.tokens()
    return 1e3 * (time.perf_counter() - begin) / count


def measure(
    name: str, weights: str, caches: Sequence[str], rows: Sequence[int], contexts: Sequence[int], rate: float
) -> list[Measurement]:
    """Measure one model with one kind of weights; batches only with the first context."""
    dtype = torch.bfloat16 if weights == "bf16" else getattr(torch, weights.partition("-")[2] or "float16")
    config = language_shape(name).model_copy(update={"max_length": MAX_LENGTH})
    decoder = random_decoder(config, weights.partition("-")[0], dtype)
    measured: list[Measurement] = []
    for context, cache in product(contexts, caches):
        for count in rows if context == contexts[0] else rows[:1]:
            kv = bytes_of_slot(config, dtype, in_8_bits=cache == "fp8")
            limit = 1e3 * (weight_bytes(decoder) + kv * context * count) / rate
            step = paged_step_of(decoder, count, context, in_8_bits=cache == "fp8")
            took = step_milliseconds(step, count, GREEDY, context)
            row = Measurement(
                name, weights, str(dtype).removeprefix("torch."), cache, count, context, limit, took, limit / took,
                loop_milliseconds(step, count, GREEDY, context), step_milliseconds(step, count, SAMPLED, context),
                1e3 * count / took,
            )  # fmt: skip
            print(
                f"{name:>9} {weights:>13} {cache:>5} {count:5} {context:8} {limit:8.3f} {took:8.3f} "
                f"{limit / took:9.3f} {row.loop:8.3f} {row.sampled:8.3f} {row.tokens_per_second:9.0f}",
                flush=True,
            )
            del step
            measured.append(row)
    return measured


def draw(report: dict[str, Any], file: Path) -> None:
    """Draw each step beside its limit."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "decode"
    from matplotlib import pyplot as plt

    rows = report["rows"]
    places = range(len(rows))
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.36 * len(rows)), constrained_layout=True)
    bars = axes.barh(places, [row["step"] for row in rows], height=0.6, color="tab:blue", label="step")
    axes.bar_label(bars, [f"{row['of_limit']:.2f}" for row in rows], fontsize=8, padding=3)
    axes.barh(places, [row["limit"] for row in rows], height=0.6, color="tab:orange", label="limit")
    axes.set_yticks(
        places,
        [
            f"{row['model']} {row['weights']}{', fp8 cache' if row['cache'] == 'fp8' else ''}, "
            f"{row['rows']} row{'s'[: row['rows'] > 1]}, {row['context']:,} tokens"
            for row in rows
        ],
    )
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("milliseconds of a step (numbers: limit / step)")
    axes.set_title(f"A decode step, {report['device']}", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--weights", nargs="+", default=["w4", "bf16"], help="w4, w4-bfloat16 or bf16")
    parser.add_argument("--cache", nargs="+", choices=("auto", "fp8"), default=["auto"], help="format of the KV cache")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--context", type=int, nargs="+", default=[300, 32_768])
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--plot", type=Path, help="draw the numbers into this .svg or .png")
    parser.add_argument("--drawn", type=Path, help="draw this JSON file instead of measuring")
    args = parser.parse_args()
    if args.drawn:
        draw(json.loads(args.drawn.read_text()), args.plot)
        return 0
    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here")
    torch.manual_seed(0)
    rate = bytes_per_second(torch.empty(3 << 28, dtype=torch.int32, device=GPU).random_())
    print(f"{torch.cuda.get_device_name()}: reads {rate / 1e9:.0f} GB/s; milliseconds")
    titles = (
        "model",
        "weights",
        "cache",
        "rows",
        "context",
        "limit",
        "step",
        "of limit",
        "loop",
        "sampled",
        "tokens/s",
    )
    print(
        " ".join(f"{title:>{width}}" for title, width in zip(titles, (9, 13, 5, 5, 8, 8, 8, 9, 8, 8, 9), strict=True))
    )
    measured: list[Measurement] = []
    for name in args.model:
        for weights in args.weights:
            measured += measure(name, weights, args.cache, args.rows, args.context, rate)
            torch.cuda.empty_cache()
    report = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "bytes_per_second": rate}
    report |= {"rows": [asdict(row) for row in measured]}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    if args.plot:
        draw(report, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
