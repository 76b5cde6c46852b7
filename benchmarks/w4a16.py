"""Four-bit linears on a GPU: ours and cuBLAS beside the time of reading the weights, all measured in one run.

    python benchmarks/w4a16.py [--tokens 1 4 16 64] [--dtype float16] [--cublas bfloat16 float16]
                               [--out results/w4a16.json] [--plot results/w4a16.svg]
    python benchmarks/w4a16.py --report results/w4a16.json --plot docs/assets/w4a16.svg    # draws what was measured

The linears of Qwen2-7B (NVILA-8B's language model): fused qkv, o, fused gate and up, down; 28 layers, each with its own
random weights, one CUDA graph, each linear's input the output of the one before. Weights are normal numbers, ours
rounded to four bits. `limit` is the larger of two times: reading the weights once at the best rate that a kernel
reaches in this run, and the arithmetic at the rate of a large bf16 product. Times are medians of replays. Ours and
cuBLAS take turns, since large products run at the card's power limit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
import triton
import triton.language as tl
from torch import Tensor

from vila_quant.kernels.cuda.w4a16 import W4Weight, matmul, reference
from vila_quant.kernels.cuda.w4a16.layout import UNIT_INPUTS, UNIT_OUTPUTS, unit_words
from vila_quant.kernels.cuda.w4a16.timing import milliseconds_in_turns, random_weight, replay_milliseconds

SHAPES = {"qkv": (4608, 3584), "o": (3584, 3584), "gate_up": (37888, 3584), "down": (3584, 18944)}
"""N and K."""

LAYERS = 28
GROUP_SIZE = 128
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
SQUARE = 8192
KEYS = {"bfloat16": "bf16", "float16": "fp16"}
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 8e-3}
"""Bound on the relative error of one linear, from the rounding of its weights and its result."""

GPU = torch.device("cuda")


class Report(TypedDict):
    """What was measured, and where."""

    device: str
    torch: str
    triton: str
    dtype: str
    bytes_per_second: float
    bf16_operations_per_second: float
    rows: list[dict[str, float]]


@triton.jit
def _read_kernel(pointer, out_pointer, count, BLOCK: tl.constexpr):  # noqa: N803
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.load(pointer + index, mask=index < count, other=0))
    if total == 123456789:  # keeps the compiler from leaving the load out
        tl.store(out_pointer, total)


@dataclass(frozen=True)
class Weights:
    """The packed weights of all layers in one buffer, `of[name][layer]`."""

    buffer: Tensor
    of: dict[str, list[W4Weight]]

    @classmethod
    def random(cls, layers: int = LAYERS, group_size: int = GROUP_SIZE) -> Weights:
        """Draw weights with which a chain of linears keeps the size of its activations."""
        words = unit_words(group_size)
        sizes = [n // UNIT_OUTPUTS * (k // UNIT_INPUTS) * words for n, k in SHAPES.values()]
        buffer = torch.empty(layers * sum(sizes), dtype=torch.int32, device=GPU)
        of: dict[str, list[W4Weight]] = {name: [] for name in SHAPES}
        start = 0
        for _ in range(layers):
            for (name, (n, k)), size in zip(SHAPES.items(), sizes, strict=True):
                packed = buffer[start : start + size].view(n // UNIT_OUTPUTS, k // UNIT_INPUTS, words)
                packed.copy_(random_weight(n, k, group_size, GPU))
                of[name].append(W4Weight(packed, n, k, group_size))
                start += size
        torch.cuda.synchronize()
        return cls(buffer, of)

    def chain(self) -> list[tuple[str, W4Weight]]:
        """Return the linears in the order in which a model calls them."""
        layers = len(self.of["qkv"])
        return [(name, self.of[name][layer]) for layer in range(layers) for name in SHAPES]


def bytes_per_second(buffer: Tensor) -> float:
    """Return the best rate of reading `buffer`."""
    out = torch.zeros(1, dtype=torch.int32, device=GPU)
    rates: list[float] = []
    for block, warps in ((4096, 8), (8192, 8), (8192, 16), (16384, 16)):
        grid = (triton.cdiv(buffer.numel(), block),)
        took = replay_milliseconds(
            lambda grid=grid, block=block, warps=warps: _read_kernel[grid](
                buffer, out, buffer.numel(), BLOCK=block, num_warps=warps
            )
        )
        rates.append(buffer.nbytes / took * 1e3)
    return max(rates)


def operations_per_second() -> float:
    """Return the rate of a large square bf16 product."""
    a = torch.randn(SQUARE, SQUARE, device=GPU, dtype=torch.bfloat16)
    return 2 * SQUARE**3 / replay_milliseconds(lambda: a @ a.T) * 1e3


def run_chain(x: Tensor, linears: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Call the linears one after the other; each takes as many columns of the last result as it has inputs."""
    for linear, (_, inputs) in zip(linears, list(SHAPES.values()) * (len(linears) // len(SHAPES)), strict=True):
        x = linear(x[:, :inputs])
    return x


def quantized_linears(weights: Weights) -> list[Callable[[Tensor], Tensor]]:
    """Return our linears; each prefetches the weight of the next."""
    chain = [weight for _, weight in weights.chain()]
    following = [*chain[1:], chain[0]]
    return [lambda x, w=w, n=n: matmul(x, w, following=n.packed) for w, n in zip(chain, following, strict=True)]


def relative_errors(weights: Weights, tokens: int, dtype: torch.dtype) -> dict[str, float]:
    """Return the relative error of each linear of the first layer."""
    errors: dict[str, float] = {}
    for name, (_, inputs) in SHAPES.items():
        x = torch.randn(tokens, inputs, device=GPU, dtype=dtype)
        weight = weights.of[name][0]
        expected = x.float() @ reference.dequantize(weight, torch.float32).T
        errors[name] = ((matmul(x, weight).float() - expected).norm() / expected.norm()).item()
    return errors


def dense_linears(dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
    """Return the same linears with normal weights in `dtype`, on cuBLAS."""
    shapes = list(SHAPES.values()) * LAYERS
    dense = [torch.randn(n, k, device=GPU, dtype=dtype) / k**0.5 for n, k in shapes]
    return [lambda x, w=w: x @ w.T for w in dense]


def _tokens(tokens: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(GPU).manual_seed(tokens)
    return torch.randn(tokens, SHAPES["qkv"][1], device=GPU, generator=generator).to(dtype)


@dataclass(frozen=True)
class _Chain:
    """The linears of one kind, in order."""

    key: str
    dtype: torch.dtype
    linears: Sequence[Callable[[Tensor], Tensor]]

    def call(self, tokens: int) -> Callable[[], Tensor]:
        """Return a call of the linears with so many tokens."""
        x = _tokens(tokens, self.dtype)
        return lambda: run_chain(x, self.linears)


def draw(report: Report, file: Path) -> None:
    """Draw times as multiples of their limits."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "w4a16"
    from matplotlib import pyplot as plt

    tokens = [row["tokens"] for row in report["rows"]]
    figure, axes = plt.subplots(figsize=(7, 3.2), constrained_layout=True)
    for key, label in (("bf16_ms", "bf16 cuBLAS"), ("ours_ms", f"ours, 4 bits, {report['dtype']}")):
        axes.plot(tokens, [row[key] / row["limit_ms"] for row in report["rows"]], marker="o", markersize=4, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [f"{int(count):,}" for count in tokens])
    axes.set_ylim(0)
    axes.set_xlabel("tokens")
    axes.set_ylabel("time / limit")
    axes.set_title(f"Linears of NVILA-8B's language model, {report['device']}", fontsize=10)
    axes.legend(fontsize=8)
    axes.tick_params(labelsize=8)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def measure(tokens: Sequence[int], dtype: torch.dtype, cublas: Sequence[str]) -> Report:
    """Time our linears and cuBLAS for each number of tokens, and print the times.

    Args:
        tokens: values of M.
        dtype: of our activations.
        cublas: dtypes of cuBLAS's weights and activations, "bfloat16" first.
    """
    torch.manual_seed(0)
    weights = Weights.random()
    read_rate, arithmetic_rate = bytes_per_second(weights.buffer), operations_per_second()
    elements = LAYERS * sum(n * k for n, k in SHAPES.values())
    chains = [
        _Chain("ours_ms", dtype, quantized_linears(weights)),
        *(_Chain(f"{KEYS[kind]}_ms", getattr(torch, kind), dense_linears(getattr(torch, kind))) for kind in cublas),
    ]
    rows: list[dict[str, float]] = []
    print(
        f"{torch.cuda.get_device_name()}: reads {read_rate / 1e9:.0f} GB/s, "
        f"multiplies {arithmetic_rate / 1e12:.0f} TFLOP/s in bf16"
    )
    keys = [chain.key for chain in chains]
    print(f"{'M':>5}", *(f"{key:>8}" for key in ("limit_ms", *keys)), "ours/limit ours/bf16   error")
    for count in tokens:
        error = max(relative_errors(weights, count, dtype).values())
        took = dict(zip(keys, milliseconds_in_turns([chain.call(count) for chain in chains]), strict=True))
        limit = 1e3 * max(weights.buffer.nbytes / read_rate, 2 * count * elements / arithmetic_rate)
        of_limit, of_bf16 = took["ours_ms"] / limit, took["ours_ms"] / took["bf16_ms"]
        rows.append(
            {"tokens": count, "limit_ms": limit, **took, "error": error, "of_limit": of_limit, "of_bf16": of_bf16}
        )
        numbers = " ".join(f"{number:8.3f}" for number in (limit, *took.values()))
        print(f"{count:5} {numbers} {of_limit:10.2f} {of_bf16:9.3f}   {error:.1e}", flush=True)
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "bytes_per_second": read_rate,
        "bf16_operations_per_second": arithmetic_rate,
        "rows": rows,
    }


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="values of M")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help="of the activations")
    parser.add_argument(
        "--cublas", nargs="+", choices=tuple(KEYS), default=["bfloat16"], help="dtypes of cuBLAS; 13 GB for each"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--plot", type=Path, help="draw the numbers into this .svg or .png")
    parser.add_argument("--report", type=Path, help="numbers of an earlier run: measure nothing, draw these")
    args = parser.parse_args()
    if args.cublas[0] != "bfloat16":
        parser.error("bfloat16 comes first: it is what ours is compared with")
    if args.report:
        report: Report = json.loads(args.report.read_text())
    elif torch.cuda.is_available():
        report = measure(args.tokens, getattr(torch, args.dtype), args.cublas)
    else:
        parser.error("there is no CUDA GPU here")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    if args.plot:
        draw(report, args.plot)
    tolerance = TOLERANCE[getattr(torch, report["dtype"])]
    return 0 if all(row["error"] < tolerance for row in report["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
