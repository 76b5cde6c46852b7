"""Measure which configuration is fastest on this GPU, for `dispatch.py`.

python -m vila_quant.kernels.cuda.w4a16.tune 4608x3584 3584x3584 --gpu "NVIDIA H100" --out table.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from vila_quant.kernels.cuda.w4a16.decode import DecodeConfig
from vila_quant.kernels.cuda.w4a16.dispatch import Config, Entry, Table, run
from vila_quant.kernels.cuda.w4a16.layout import CODE_WORDS, UNIT_INPUTS, UNIT_OUTPUTS, unit_words
from vila_quant.kernels.cuda.w4a16.panels import PanelConfig
from vila_quant.kernels.cuda.w4a16.tiles import TileConfig

TOKENS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
CACHE_BYTES = 256 << 20
"""Weights are measured in turns that take more memory than any cache."""

PREFETCHED = (0, 1 << 20, 2 << 20, 3 << 20, 4 << 20, 6 << 20)
"""Bytes of the next weight, tried one after the other with the fastest configuration."""

PANEL_ROWS = (4224, 8448, 12672, 1 << 20)

FEW = tuple(
    DecodeConfig(*sizes)
    for sizes in (
        (1, 8, 2, 1, 80),
        (1, 8, 2, 2, 80),
        (1, 8, 2, 2, 96),
        (1, 8, 2, 2, 80, 4),
        (1, 8, 1, 1, 64),
        (1, 8, 4, 1, 104),
        (1, 8, 4, 2, 104),
        (1, 8, 2, 1, 72),
        (1, 16, 1, 1, 64),
        (1, 16, 1, 1, 64, 1),
        (1, 16, 2, 1, 64),
        (1, 16, 2, 1, 64, 1),
        (1, 4, 2, 1, 80),
        (2, 8, 1, 1, 72),
        (2, 8, 1, 1, 80),
        (2, 8, 1, 1, 80, 4),
        (2, 4, 1, 1, 80),
        (2, 4, 2, 1, 96),
        (2, 2, 1, 1, 80),
    )
)
"""Configurations for 1 to 8 tokens: tiles, warps, slots, units ahead, registers, chains."""

MORE = tuple(
    DecodeConfig(*sizes)
    for sizes in (
        *((1, 8, 1, 1, 80), (1, 8, 2, 1, 104), (1, 4, 1, 1, 80), (1, 4, 2, 1, 104), (1, 16, 1, 1, 64, 1)),
        (2, 16, 1, 1, 128),
        (2, 8, 1, 1, 128),
        (2, 8, 1, 1, 112, 1),
        (2, 4, 1, 1, 128),
        (2, 4, 1, 1, 112, 1),
        (2, 4, 2, 1, 168),
    )
)
"""Configurations for 9 to 16 tokens."""


def candidates(tokens: int) -> tuple[Config, ...]:
    """Return at most twenty configurations worth measuring for so many tokens."""
    if tokens <= 8:
        return FEW
    if tokens <= 16:
        return MORE
    if tokens <= 64:
        rows = 32 if tokens <= 32 else 64
        tiles = [
            TileConfig(n, rows, 128, splits, warps, 4)
            for n, warps in ((128, 4), (64, 4), (128, 8))
            for splits in (1, 2, 4, 8)
        ]
        tiles += [TileConfig(n, rows, 128, 8, 4, 4, resident) for n in (128, 64) for resident in (2, 3)]
    else:
        sizes = [(128, 128, 64, 4, 3, 2), (128, 128, 64, 8, 4, 2), (64, 128, 128, 4, 3, 2), (64, 128, 64, 4, 4, 3)]
        sizes.append((128, 64, 128, 4, 4, 2) if tokens <= 128 else (128, 256, 64, 8, 4, 1))
        # With 8 splits only what is left over after whole waves is split, with the others every tile.
        tiles = [TileConfig(n, m, k, 8, warps, stages, resident) for n, m, k, warps, stages, resident in sizes]
        tiles += [
            TileConfig(n, m, k, splits, *more[:2])
            for n, m, k, *more in sizes
            for splits in ((1, 2, 4) if tokens <= 256 else (1,))
        ]
    return (*tiles, *(PanelConfig(rows) for rows in (PANEL_ROWS if tokens > 256 else ())))


def random_weight(outputs: int, inputs: int, group_size: int, device: torch.device) -> Tensor:
    """Return a packed weight of random codes, with scales that keep the size of activations."""
    packed = torch.empty(
        outputs // UNIT_OUTPUTS, inputs // UNIT_INPUTS, unit_words(group_size), dtype=torch.int32, device=device
    )
    packed[..., :CODE_WORDS].random_(-(2**31), 2**31 - 1)
    scales = (0.5 + torch.rand_like(packed[..., CODE_WORDS:], dtype=torch.float32)) / (44 * inputs) ** 0.5
    zeros = torch.randint(16, scales.shape, device=device)
    packed[..., CODE_WORDS:] = torch.stack((scales.half(), (-1024.0 - zeros).half()), dim=-1).view(torch.int32)[..., 0]
    return packed


def replay_milliseconds(call: Callable[[], object], repetitions: int = 15) -> float:
    """Capture `call` in a CUDA graph and return the median time of a replay."""
    call()
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        call()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            call()
    times: list[float] = []
    for repetition in range(repetitions + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if repetition >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def fastest(
    tokens: int, outputs: int, inputs: int, weights: Sequence[Tensor], dtype: torch.dtype, group_size: int = 128
) -> list[tuple[float, Config]]:
    """Return milliseconds and candidates, the fastest first, without those that need too much shared memory."""
    x = torch.randn(tokens, inputs, device=weights[0].device).to(dtype)
    y = x.new_empty(tokens, outputs)
    measured: list[tuple[float, Config]] = []
    for config in candidates(tokens):

        def call(config: Config = config) -> None:
            for packed in weights:
                run(config, x, packed, None, y, group_size)

        try:
            measured.append((replay_milliseconds(call, 5) / len(weights), config))
        except OutOfResources:
            continue
    return sorted(measured, key=lambda pair: pair[0])


def compile_candidates(shapes: Sequence[tuple[int, int]], tokens: Sequence[int], dtype: torch.dtype) -> None:
    """Compile the kernels of all candidates into Triton's cache, in as many processes as there are processors."""
    work = [(*shape, count, config, dtype) for shape in shapes for count in tokens for config in candidates(count)]
    workers = min(len(work), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, work))


def _compile(work: tuple[int, int, int, Config, torch.dtype]) -> None:
    outputs, inputs, tokens, config, dtype = work
    device = torch.device("cuda")
    packed = torch.zeros(
        outputs // UNIT_OUTPUTS, inputs // UNIT_INPUTS, unit_words(128), dtype=torch.int32, device=device
    )
    x = torch.zeros(tokens, inputs, dtype=dtype, device=device)
    try:
        for following in (None, packed):
            run(config, x, packed, None, x.new_empty(tokens, outputs), 128, following)
    except OutOfResources:
        return


def chain_milliseconds(
    configs: Sequence[DecodeConfig], weights: Sequence[Sequence[Tensor]], tokens: int, dtype: torch.dtype
) -> float:
    """Return the time of layers of linears, each of which prefetches the weight of the next.

    Args:
        configs: of the linears of a layer.
        weights: of each linear, for every layer.
        tokens: M.
        dtype: of the activations.
    """
    layers = list(zip(*weights, strict=True))
    chain = [(config, packed) for layer in layers for config, packed in zip(configs, layer, strict=True)]
    x = {
        packed.shape[1]: torch.randn(tokens, packed.shape[1] * UNIT_INPUTS, device=packed.device) for _, packed in chain
    }
    x = {units: given.to(dtype) for units, given in x.items()}
    y = [given[0].new_empty(tokens, given[0].shape[0] * UNIT_OUTPUTS, dtype=dtype) for given in weights]

    def call() -> None:
        for number, (config, packed) in enumerate(chain):
            following = chain[(number + 1) % len(chain)][1]
            run(config, x[packed.shape[1]], packed, None, y[number % len(configs)], 128, following)

    return replay_milliseconds(call, 7)


def tune_prefetch(
    shapes: Sequence[tuple[int, int]], configs: Sequence[DecodeConfig], tokens: int, dtype: torch.dtype
) -> list[DecodeConfig]:
    """Return the configurations with the bytes to prefetch with which a chain of the linears is fastest."""
    device = torch.device("cuda", torch.cuda.current_device())
    weights = [[random_weight(outputs, inputs, 128, device) for _ in range(8)] for outputs, inputs in shapes]
    chosen = list(configs)
    best = chain_milliseconds(chosen, weights, tokens, dtype)
    for number in range(len(chosen)):
        for size in PREFETCHED:
            tried = [*chosen[:number], replace(chosen[number], prefetch=size), *chosen[number + 1 :]]
            took = chain_milliseconds(tried, weights, tokens, dtype)
            if took < 0.998 * best:
                best, chosen = took, tried
    return chosen


def tune(
    shapes: Sequence[tuple[int, int]],
    gpu: str,
    tokens: Sequence[int] = TOKENS,
    dtype: torch.dtype = torch.float16,
    group_size: int = 128,
) -> Table:
    """Return the table of the fastest configurations for weights `(N, K)` on the current GPU."""
    compile_candidates(shapes, tokens, dtype)
    entries: list[Entry] = []
    device = torch.device("cuda", torch.cuda.current_device())
    for outputs, inputs in shapes:
        one = random_weight(outputs, inputs, group_size, device)
        weights = [one.clone() for _ in range(triton.cdiv(CACHE_BYTES, one.nbytes))]
        for count in tokens:
            took, config = fastest(count, outputs, inputs, weights, dtype, group_size)[0]
            entries.append(Entry(count, outputs, inputs, config))
            print(f"{count:5} tokens, {outputs} x {inputs}: {1e3 * took:8.1f} us with {config}", flush=True)
    for count in tokens:
        here = [entry for entry in entries if entry.tokens == count]
        configs = [entry.config for entry in here if isinstance(entry.config, DecodeConfig)]
        if len(configs) == len(here):
            for entry, config in zip(here, tune_prefetch(shapes, configs, count, dtype), strict=True):
                entries[entries.index(entry)] = replace(entry, config=config)
    return Table(gpu, tuple(entries))


def main() -> int:
    """Write the table that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", help="outputs x inputs of a weight, such as 4608x3584")
    parser.add_argument("--gpu", required=True, help="part of the GPU's name that the table is for")
    parser.add_argument("--out", type=Path, required=True, help="the table, JSON")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="numbers of tokens")
    args = parser.parse_args()
    shapes = [tuple(int(size) for size in shape.split("x")) for shape in args.shapes]
    tune([(outputs, inputs) for outputs, inputs in shapes], args.gpu, args.tokens).write(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
