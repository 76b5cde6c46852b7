"""Time products on a GPU, for `tune` and the benchmarks."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import pairwise
from multiprocessing import get_context

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from vila_core.child_process import end_with_parent
from vila_quant.kernels.cuda.w4a16 import dispatch
from vila_quant.kernels.cuda.w4a16.candidates import candidates
from vila_quant.kernels.cuda.w4a16.decode import DecodeConfig
from vila_quant.kernels.cuda.w4a16.dispatch import run, runs_on
from vila_quant.kernels.cuda.w4a16.layout import CODE_WORDS, UNIT_INPUTS, UNIT_OUTPUTS, unit_words
from vila_quant.kernels.cuda.w4a16.tables import Config

CACHE_BYTES = 256 << 20
"""Weights are measured in turns that take more memory than any cache."""

CHAIN_LAYERS = 8

CODE_DEVIATION = 2.8
"""Standard deviation of the codes of normal numbers: the largest of a group of 128 are 2.7 deviations from the mean."""

MAX_PROCESSES = 16
PROCESS_BYTES = 1 << 30
"""GPU memory that a process which compiles kernels may take."""

Shape = tuple[int, int]
"""Outputs and inputs."""


def random_weight(outputs: int, inputs: int, group_size: int, device: torch.device) -> Tensor:
    """Return the packed weight of a matrix of normal numbers, rounded to four bits, that keeps the size of activations.

    What the numbers are matters: the more bits change from one to the next, the more power a product takes.
    """
    blocks, units = -(-outputs // UNIT_OUTPUTS), -(-inputs // UNIT_INPUTS)
    packed = torch.zeros(blocks, units, unit_words(group_size), dtype=torch.int32, device=device)
    codes = packed[..., :CODE_WORDS]
    for bit in range(0, 32, 4):
        code = torch.randn(codes.shape, device=device).mul_(CODE_DEVIATION).add_(7.5).round_().clamp_(0, 15)
        codes |= code.int() << bit
    factors = 0.9 + 0.2 * torch.rand_like(packed[..., CODE_WORDS:], dtype=torch.float32)
    scales = factors / (CODE_DEVIATION * inputs**0.5)
    zeros = torch.randint(7, 9, scales.shape, device=device)
    packed[..., CODE_WORDS:] = torch.stack((scales.half(), (-1024.0 - zeros).half()), dim=-1).view(torch.int32)[..., 0]
    return packed


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of `call`, which has run twice."""
    call()
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        call()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            call()
    return graph


def replays_milliseconds(graph: torch.cuda.CUDAGraph, repetitions: int) -> list[float]:
    """Return the times of replays, one after the other without a pause."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repetitions + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    events[-1].synchronize()
    return [start.elapsed_time(end) for start, end in pairwise(events)]


def replay_milliseconds(call: Callable[[], object], repetitions: int = 15) -> float:
    """Capture `call` in a CUDA graph and return the median time of a replay."""
    graph = captured(call)
    times: list[float] = []
    for _ in range(repetitions + 3):
        times += replays_milliseconds(graph, 1)
    return statistics.median(times[3:])


def milliseconds_in_turns(
    calls: Sequence[Callable[[], object]], rounds: int = 5, milliseconds: float = 160
) -> list[float]:
    """Return the median time of a replay of each of `calls`, which are timed in turns.

    Large products bring the GPU to its power limit, which lowers the clock for what comes next. In turns, all find the
    same. A turn lasts about so many milliseconds; the replays in its first half warm up and do not count.

    Args:
        calls: each is captured in a CUDA graph.
        rounds: turns of each.
        milliseconds: of a turn.
    """
    graphs = [captured(call) for call in calls]
    counts: list[int] = []
    for graph in graphs:
        replays_milliseconds(graph, 1)
        counts.append(max(1, round(milliseconds / 2 / replays_milliseconds(graph, 1)[0])))
    times: list[list[float]] = [[] for _ in graphs]
    for turn in range(rounds):
        for number in range(len(graphs)):
            own = (turn + number) % len(graphs)
            times[own] += replays_milliseconds(graphs[own], 2 * counts[own])[counts[own] :]
    return [statistics.median(own) for own in times]


class GpuTimer:
    """Times products of random weights on a GPU. See `tune.Timer`."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float16, group_size: int = 128) -> None:
        self.device, self.dtype, self.group_size = device, dtype, group_size
        self.gpu = torch.cuda.get_device_name(device)
        self._weights: tuple[Shape, list[Tensor]] | None = None
        self._layers: tuple[tuple[Shape, ...], list[list[Tensor]]] | None = None

    def runs(self, config: Config) -> bool:
        return runs_on(config, self.device)

    def chosen(self, tokens: int, shape: Shape) -> Config:
        return dispatch.choose(tokens, *shape, self.device)

    def prepare(self, shapes: Sequence[Shape], tokens: Sequence[int]) -> None:
        """Compile the kernels into Triton's cache, in as many processes as there are processors and memory for.

        What is not compiled here is compiled when it is timed.
        """
        work = [
            (shape, count, config, self.dtype, self.group_size, self.device.index or 0)
            for shape in shapes
            for count in tokens
            for config in candidates(count)
            if self.runs(config)
        ]
        room = torch.cuda.mem_get_info(self.device)[0] // PROCESS_BYTES
        workers = max(1, min(len(work), os.cpu_count() or 1, MAX_PROCESSES, room))
        pool = ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent)
        with suppress(BrokenProcessPool), pool:
            list(pool.map(_compile, work, chunksize=4))

    @torch.inference_mode()
    def product(self, tokens: int, shape: Shape, config: Config) -> float | None:
        if self._weights is None or self._weights[0] != shape:
            self._weights = None  # frees the memory of the shape before
            one = random_weight(*shape, self.group_size, self.device)
            self._weights = shape, [one.clone() for _ in range(triton.cdiv(CACHE_BYTES, one.nbytes))]
        weights = self._weights[1]
        x = torch.randn(tokens, weights[0].shape[1] * UNIT_INPUTS, device=self.device).to(self.dtype)
        y = x.new_empty(tokens, shape[0])

        def call() -> None:
            for packed in weights:
                run(config, x, packed, None, y, self.group_size)

        try:
            return replay_milliseconds(call, 5) / len(weights)
        except TritonError:  # too little shared memory, or the compiler gives up
            return None

    @torch.inference_mode()
    def chain(self, tokens: int, shapes: Sequence[Shape], configs: Sequence[DecodeConfig]) -> float:
        if self._layers is None or self._layers[0] != tuple(shapes):
            self._weights = self._layers = None
            self._layers = (
                tuple(shapes),
                [
                    [random_weight(*shape, self.group_size, self.device) for shape in shapes]
                    for _ in range(CHAIN_LAYERS)
                ],
            )
        linears = [pair for layer in self._layers[1] for pair in zip(configs, layer, strict=True)]
        x = {
            packed.shape[1]: torch.randn(tokens, packed.shape[1] * UNIT_INPUTS, device=self.device)
            for _, packed in linears
        }
        x = {units: given.to(self.dtype) for units, given in x.items()}
        y = [torch.empty(tokens, outputs, dtype=self.dtype, device=self.device) for outputs, _ in shapes]

        def call() -> None:
            for number, (config, packed) in enumerate(linears):
                following = linears[(number + 1) % len(linears)][1]
                place = y[number % len(shapes)]
                run(config, x[packed.shape[1]], packed, None, place, self.group_size, following)

        return replay_milliseconds(call, 7) / CHAIN_LAYERS


def _compile(work: tuple[Shape, int, Config, torch.dtype, int, int]) -> None:
    (outputs, inputs), tokens, config, dtype, group_size, index = work
    torch.cuda.set_device(index)
    device = torch.device("cuda", index)
    packed = random_weight(outputs, inputs, group_size, device)
    x = torch.zeros(tokens, packed.shape[1] * UNIT_INPUTS, dtype=dtype, device=device)
    try:
        for following in (None, packed):
            run(config, x, packed, None, x.new_empty(tokens, outputs), group_size, following)
    except TritonError:  # too little shared memory, or the compiler gives up
        return
