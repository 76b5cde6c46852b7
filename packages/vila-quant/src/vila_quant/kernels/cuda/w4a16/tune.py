"""Find the fastest configurations for the shapes of a model, for `tables`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from vila_core.cli.progress import NoProgress, Progress
from vila_core.errors import ConfigError
from vila_quant.kernels.cuda.w4a16.candidates import PREFETCHED, TOKENS, candidates
from vila_quant.kernels.cuda.w4a16.decode import DecodeConfig
from vila_quant.kernels.cuda.w4a16.tables import Config, Entry, Table
from vila_quant.kernels.cuda.w4a16.warpgroups import WarpgroupConfig

WORTH_A_CHANGE = 0.99
"""A configuration replaces the one in use from this ratio of times down: repeated measurements differ by less."""

Shape = tuple[int, int]
"""Outputs and inputs."""


class Timer(Protocol):
    """Times products on a GPU."""

    gpu: str

    def runs(self, config: Config) -> bool:
        """Return whether the GPU runs the kernel of `config`."""
        ...

    def chosen(self, tokens: int, shape: Shape) -> Config:
        """Return the configuration that is in use so far."""
        ...

    def prepare(self, shapes: Sequence[Shape], tokens: Sequence[int]) -> None:
        """Compile what will be timed."""
        ...

    def product(self, tokens: int, shape: Shape, config: Config) -> float | None:
        """Return the milliseconds of one product, or None if the GPU has not enough shared memory or registers."""
        ...

    def chain(self, tokens: int, shapes: Sequence[Shape], configs: Sequence[DecodeConfig]) -> float:
        """Return the milliseconds of one linear of each shape in turn, each of which prefetches the next weight."""
        ...


@dataclass(frozen=True)
class Gain:
    """Milliseconds of a product before and after tuning."""

    tokens: int
    shape: Shape
    before: float
    after: float


def tune(shapes: Sequence[Shape], timer: Timer, progress: Progress | None = None) -> tuple[Table, list[Gain]]:
    """Return the table of the fastest configurations for weights of these shapes, and what it gains.

    Args:
        shapes: in the order in which a layer calls them.
        timer: times products.
        progress: receives the progress.

    Raises:
        ConfigError: no kernel fits the GPU.
    """
    progress = NoProgress() if progress is None else progress
    progress.start("compiling", 1)
    timer.prepare(shapes, TOKENS)
    progress.start("measuring", len(shapes) * len(TOKENS))
    gains: list[Gain] = []
    entries: list[Entry] = []
    for shape in shapes:
        for tokens in TOKENS:
            found, gain = _fastest(tokens, shape, timer)
            gains.append(gain)
            entries += [Entry(tokens, *shape, config) for config in found]
            progress.advance(note=f"{tokens} tokens, {shape[0]} x {shape[1]}")
    progress.start("prefetching", sum(tokens <= 16 for tokens in TOKENS))
    for tokens in TOKENS:
        here = [entry for entry in entries if entry.tokens == tokens]
        configs = [entry.config for entry in here if isinstance(entry.config, DecodeConfig)]
        if len(configs) == len(here) == len(shapes):
            for entry, config in zip(here, _tune_prefetch(tokens, shapes, configs, timer), strict=True):
                entries[entries.index(entry)] = replace(entry, config=config)
            progress.advance()
    progress.finish()
    return Table(timer.gpu, tuple(entries)), gains


def _fastest(tokens: int, shape: Shape, timer: Timer) -> tuple[list[Config], Gain]:
    """Return the fastest configuration, followed by one for other versions of Triton if it needs a certain one."""
    now = timer.chosen(tokens, shape)
    before = timer.product(tokens, shape, now)
    measured: list[tuple[float, Config]] = [] if before is None else [(before, now)]
    for config in candidates(tokens):
        took = timer.product(tokens, shape, config) if timer.runs(config) and config != now else None
        if took is not None:
            measured.append((took, config))
    if not measured:
        raise ConfigError(f"No kernel for {tokens} tokens and a weight of {shape[0]} x {shape[1]} fits {timer.gpu}.")
    measured.sort(key=lambda pair: pair[0])
    after, best = measured[0]
    before = after if before is None else before
    if after > WORTH_A_CHANGE * before:
        after, best = before, now
    others = [config for _, config in measured if not isinstance(config, WarpgroupConfig)]
    found: list[Config] = [best]
    if isinstance(best, WarpgroupConfig):
        found.append(others[0])
    return found, Gain(tokens, shape, before, after)


def _tune_prefetch(
    tokens: int, shapes: Sequence[Shape], configs: Sequence[DecodeConfig], timer: Timer
) -> list[DecodeConfig]:
    """Return the configurations with the bytes to prefetch with which a chain of the linears is fastest."""
    chosen = list(configs)
    best = timer.chain(tokens, shapes, chosen)
    for number in range(len(chosen)):
        for size in PREFETCHED:
            tried = [*chosen[:number], replace(chosen[number], prefetch=size), *chosen[number + 1 :]]
            took = timer.chain(tokens, shapes, tried)
            if took < 0.998 * best:
                best, chosen = took, tried
    return chosen
