"""Measure 4-bit decoding and prefill on a CPU against bf16 and against the memory limit, in one run.

    export OMP_NUM_THREADS=2 OMP_PROC_BIND=close OMP_PLACES=threads
    python benchmarks/cpu_decode.py [--lm-head int8|int4] [--out results.json]

Claims, for a model with the shape of Qwen2-1.5B and random weights (groups of 128, a separate int8 lm_head) on 2
cores:
- decoding takes at most 1 / 0.8 of the limit: the bytes that a token reads, divided by the memory bandwidth measured
  in this run;
- decoding is at least 2.5 times as fast as our own bf16;
- prefill of 512 tokens is no slower than bf16.
The script exits with 1 if a claim does not hold.

Decoding uses the decoder and the generation loop of vila-core. Each round alternates between reading memory and
decoding tokens and compares the medians of both, because the host's bandwidth changes from second to second. The
median round counts; the worst and the best are printed beside it.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vila_core
from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.config import DecoderConfig
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import EmbeddedPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.engine.sampling import GenerationConfig
from vila_core.language.decoder import Decoder
from vila_core.tokenizer import Tokenizer
from vila_quant.kernels import LinearShape, choose, forced
from vila_quant.kernels.cpu.pages import large_pages
from vila_quant.linears.decoding import CompiledDecodeStep
from vila_quant.linears.eight_bit_linear import EightBitLinear
from vila_quant.linears.groupwise_linear import GroupwiseLinear
from vila_quant.packing.groupwise import GroupwiseWeight

CPU = torch.device("cpu")
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2-1.5b": dict(zip(SIZES, (28, 1536, 8960, 12, 2, 128, 151936), strict=True)),
    "tiny": dict(zip(SIZES, (2, 256, 512, 4, 2, 64, 1024), strict=True)),
}
CONTEXT = 64
"""Tokens before the first decoded one."""
READ_AT_ONCE = 1 << 29
"""Bytes."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Round:
    """Medians of one round: bytes a second that are read, bytes that a token reads, and its seconds."""

    bandwidth: float
    size: int
    token: float

    @property
    def of_floor(self) -> float:
        return self.size / self.bandwidth / self.token

    def __str__(self) -> str:
        return f"{1000 * self.token:.1f} ms, {self.of_floor:.2f} of the floor at {self.bandwidth / 1e9:.1f} GB/s"


def build(name: str, layers: int | None, generator: torch.Generator) -> Decoder:
    """Return a bf16 decoder of random weights, with so many layers instead of the shape's own."""
    sizes = SHAPES[name].copy()
    if layers is not None:
        sizes["num_hidden_layers"] = layers
    config = DecoderConfig(
        architecture="qwen2",
        **sizes,
        max_length=4096,
        max_position_embeddings=32768,
        rope_theta=1e6,
        attention_bias=True,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        llm = Decoder(config)
    llm.to_empty(device="cpu").to(torch.bfloat16)
    llm.reset_parameters(generator=generator)
    return llm.eval().requires_grad_(False)


def quantize(llm: Decoder, group_size: int, lm_head: str, generator: torch.Generator) -> None:
    """Replace the decoder's linears by four-bit ones with random weights, and give it a head of its own."""
    for parent in list(llm.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(
                    parent,
                    name,
                    four_bits(child.out_features, child.in_features, group_size, child.bias is not None, generator),
                )  # pyright: ignore[reportUnnecessaryComparison]
    llm.use_step(CompiledDecodeStep(llm))
    vocabulary, width = llm.model.embed_tokens.weight.shape
    if lm_head == "int8":
        head = EightBitLinear("int8", vocabulary, width, bias=False)
        head.weight.random_(-127, 128, generator=generator)
        head.weight_scale.fill_(0.02 / 73)
        head.reset_buffers(CPU, torch.bfloat16)
    else:
        head = four_bits(vocabulary, width, group_size, False, generator)
    llm.lm_head = head  # pyright: ignore[reportAttributeAccessIssue]


def four_bits(outputs: int, inputs: int, group_size: int, bias: bool, generator: torch.Generator) -> GroupwiseLinear:
    linear = GroupwiseLinear(LinearShape(outputs, inputs, group_size), bias=bias).to(torch.bfloat16)
    q = torch.randint(16, (outputs, inputs), dtype=torch.uint8, generator=generator)
    scales = torch.full((outputs, inputs // group_size), 0.02 / 4.6)
    linear.use_weight(GroupwiseWeight(q, scales, torch.full_like(scales, 8), 4), CPU, torch.bfloat16)
    return linear


def check_products(group_size: int, generator: torch.Generator) -> None:
    """Exit where the kernel to be timed and the reference disagree, for few rows or many."""
    shape = LinearShape(512, 1024, group_size)
    q = torch.randint(16, (512, 1024), dtype=torch.uint8, generator=generator)
    scales = torch.rand(512, 1024 // group_size, generator=generator).half()
    weight = GroupwiseWeight(q, scales, torch.full_like(scales, 7), 4)
    for rows in (1, 128):
        x = torch.randn(rows, 1024, generator=generator).bfloat16()
        results: list[torch.Tensor] = []
        for name in (None, "reference"):
            with forced(name):
                kernel = choose(shape, CPU, torch.bfloat16)
            results.append(kernel.multiply(x, kernel.pack(weight, CPU, torch.bfloat16), shape).double())
        error = ((results[0] - results[1]).norm() / results[1].norm()).item()
        if error > 0.01:
            sys.exit(f"{rows} rows: the kernel differs from the reference by {error:.4f}")


def fastest_read(numbers: torch.Tensor, clock: Clock) -> Callable[[], object]:
    """Return the reduction that reads `numbers` fastest here."""
    ways = (numbers.sum, numbers.view(torch.int64).sum, lambda: torch.dot(numbers, numbers), numbers.amax)
    return min(ways, key=lambda way: min(seconds(way, clock) for _ in range(5)))


def seconds(call: Callable[[], object], clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start


def decode_seconds(llm: Decoder, tokenizer: Tokenizer, tokens: int, clock: Clock = time.perf_counter) -> list[float]:
    """Return the seconds of each decoded token but the first, which prefill gives."""
    embeds = llm.embed(torch.arange(CONTEXT)[None])[0]
    engine = Engine(llm, tokenizer, frozenset(), EngineConfig(max_batch=1))
    pieces = engine.submit(EmbeddedPrompt(embeds), GenerationConfig(max_new_tokens=tokens))
    moments = [clock() for _ in pieces]
    return [after - before for before, after in pairwise(moments)]


@torch.inference_mode()
def prefill_seconds(llm: Decoder, tokens: int, clock: Clock) -> float:
    embeds = llm.embed(torch.arange(tokens)[None] % llm.config.vocab_size)
    cache = llm.new_cache(1, tokens)
    return seconds(lambda: llm.logits(llm(embeds, cache=cache)[:, -1]), clock)


def bytes_a_token(llm: Decoder, tokens: int) -> int:
    """Return what decoding one token reads.

    Every weight but the embedding (unless that is the head), and the middle cache.
    """
    weights = sum(
        tensor.nbytes for name, tensor in llm.named_parameters() if "embed_tokens" not in name or llm.lm_head is None
    )
    for module in llm.modules():
        if isinstance(module, GroupwiseLinear):
            weights += sum(tensor.nbytes for tensor in module.packed)
        elif isinstance(module, EightBitLinear):
            weights += module.weight.nbytes + module.weight_scale.nbytes
    config = llm.config
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2 * (CONTEXT + tokens // 2)
    return weights + cache


def profile(llm: Decoder, tokenizer: Tokenizer) -> None:
    """Print where the time of eight tokens goes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        decode_seconds(llm, tokenizer, 9)
    print(trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=40))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2-1.5b")
    parser.add_argument("--lm-head", choices=("int8", "int4"), default="int8")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=24, help="decoded in a round")
    parser.add_argument("--prefill", type=int, default=512, metavar="TOKENS", help="0: leave prefill out")
    parser.add_argument("--layers", type=int, help="fewer than the shape has, for a quick look at prefill")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="time this process alone, on a busy machine; only with OMP_NUM_THREADS=1",
    )
    parser.add_argument("--profile", action="store_true", help="print where the time of four-bit decoding goes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.cpu_time and torch.get_num_threads() != 1:
        parser.error("--cpu-time adds the time of all threads; set OMP_NUM_THREADS=1")
    clock = time.process_time if args.cpu_time else time.perf_counter

    tokenizer = Tokenizer.from_folder(open_checkpoint(embedded_model()).tokenizer_path)
    generator = torch.Generator().manual_seed(0)
    check_products(args.group_size, generator)
    whole = build(args.shape, args.layers, generator)
    small = build(args.shape, args.layers, generator)
    quantize(small, args.group_size, args.lm_head, generator)
    gc.collect()
    models = {"bf16": whole, "w4": small}
    if args.profile:
        profile(small, tokenizer)

    numbers = large_pages((READ_AT_ONCE // 4,), torch.float32).fill_(1)
    read = fastest_read(numbers, clock)
    rounds: dict[str, list[Round]] = {name: [] for name in models}
    prefills: dict[str, list[float]] = {name: [] for name in models}
    for llm in models.values():
        decode_seconds(llm, tokenizer, 3)  # warm
    for turn in range(args.rounds):
        for name, llm in models.items():
            reads = [seconds(read, clock) for _ in range(args.tokens // 2)]
            tokens = decode_seconds(llm, tokenizer, args.tokens, clock)
            reads += [seconds(read, clock) for _ in range(args.tokens // 2)]
            rounds[name].append(
                Round(
                    numbers.nbytes / statistics.median(reads),
                    bytes_a_token(llm, args.tokens),
                    statistics.median(tokens),
                )
            )
        print(f"round {turn}: " + ", ".join(f"{name} {values[-1]}" for name, values in rounds.items()), flush=True)
    for _ in range(2 if args.prefill else 0):
        for name, llm in models.items():
            prefills[name].append(prefill_seconds(llm, args.prefill, clock))
            print(f"prefill {name} {prefills[name][-1]:.2f} s", flush=True)

    report: dict[str, Any] = {
        "shape": args.shape,
        "layers": whole.config.num_hidden_layers,
        "clock": "CPU time" if args.cpu_time else "wall",
        "lm_head": args.lm_head,
        "group_size": args.group_size,
        "cpu": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "kernels": sorted(
            {layer.kernel.name for layer in small.modules() if isinstance(layer, GroupwiseLinear) and layer.kernel}
        ),
        "torch": torch.__version__,
        "vila_core": vila_core.__version__,
        "lowest_read_GB_per_s": min(one.bandwidth for values in rounds.values() for one in values) / 1e9,
        "highest_read_GB_per_s": max(one.bandwidth for values in rounds.values() for one in values) / 1e9,
    }
    for name, values in rounds.items():
        parts = sorted(one.of_floor for one in values)
        report |= {
            f"{name}_GB_a_token": values[0].size / 1e9,
            f"{name}_ms_a_token": 1000 * statistics.median(one.token for one in values),
            f"{name}_floor_ms": 1000 * statistics.median(one.size / one.bandwidth for one in values),
            f"{name}_of_floor": statistics.median(parts),
            f"{name}_of_floor_worst": parts[0],
            f"{name}_of_floor_best": parts[-1],
        }
        if prefills[name]:
            report[f"{name}_prefill_s"] = min(prefills[name])
    report["speedup"] = report["bf16_ms_a_token"] / report["w4_ms_a_token"]
    claims = {"w4_of_floor >= 0.8": report["w4_of_floor"] >= 0.8, "speedup >= 2.5": report["speedup"] >= 2.5}
    if args.prefill:
        report["prefill_speedup"] = report["bf16_prefill_s"] / report["w4_prefill_s"]
        claims["prefill_speedup >= 1"] = report["prefill_speedup"] >= 1
    for key, value in (report | claims).items():
        print(f"{key:24} {value:.3f}" if isinstance(value, float) else f"{key:24} {value}")
    if args.out:
        args.out.write_text(json.dumps(report | {"claims": claims}, indent=2))
    sys.exit(0 if all(claims.values()) else 1)


if __name__ == "__main__":
    main()
