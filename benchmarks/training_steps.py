"""Training steps on random weights and rows: what `training.py` and `training_node.py` measure.

A step is what `vila_train.loop.step.train_step` does: forward, backward, clipping and AdamW.
"""

import gc
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from training_rows import meta_network, network_config, ragged_rows, random_network

from vila_core.bench.limits import synchronize
from vila_core.model import VilaModel
from vila_train import adapters, compute
from vila_train.compute.master_weights import compute_in_bf16
from vila_train.config import AdapterConfig, ComputeConfig, OptimizerConfig, Part
from vila_train.loop.optimizer import make_optimizer, part_module, set_learning_rates
from vila_train.loop.step import Trainee, train_step
from vila_train.packing import PackedRow
from vila_train.parallel.fsdp import needs_shards, shard
from vila_train.parallel.mesh import make_mesh
from vila_train.parallel.world import World

ALL: tuple[Part, ...] = ("vision_tower", "projector", "language_model")
SAVING = ComputeConfig(activation_checkpointing="full", compile=True)
CONSTANT_RATE = OptimizerConfig(learning_rate=1e-5, schedule="constant", warmup_ratio=0)


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        shape: name that `network_config` takes.
        compute: of the step.
        tune: parts that are trained in full.
        adapter: of the language model, if any.
        layers: of the language model; None: all.
        row_length: limit on the tokens of a row.
        rows: of each rank in a step.
        optimizer: its learning rates follow the schedule over the steps of a measurement.
        memory_gb: of a smaller card that is imitated; None: all of the GPU's.
    """

    shape: str
    compute: ComputeConfig
    tune: tuple[Part, ...] = ()
    adapter: AdapterConfig | None = None
    layers: int | None = None
    row_length: int = 8192
    rows: int = 1
    optimizer: OptimizerConfig = CONSTANT_RATE
    memory_gb: float | None = None


@dataclass(frozen=True)
class Step:
    """Time and results of a step.

    Attributes:
        seconds: until the GPU has finished it.
        host_seconds: until the host has launched it.
        loss: mean over the labelled tokens of all ranks.
        gradient_norm: before clipping.
    """

    seconds: float
    host_seconds: float
    loss: float
    gradient_norm: float


class Training:
    """A network that is trained as `vila_train.loop` trains it, on random rows.

    Args:
        case: what is trained, and how.
        world: all ranks.
    """

    def __init__(self, case: Case, world: World):
        self.case, self.world = case, world
        _free_memory(world.device)
        _limit_memory(world.device, case.memory_gb)
        network = random_network(network_config(case.shape, case.layers), world.device, dtype_of(case.compute))
        _choose_trained(network, case)
        self.network = network
        self.trainee = _prepare(network, case, world)
        self.optimizer = make_optimizer(network, case.optimizer, world.device)
        _free_memory(world.device)
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # each rank builds the whole network before it is sharded
        self._log(f"{case.shape}: built")

    def batches(self) -> Iterator[list[PackedRow]]:
        """Yield the rows of this rank, step by step. All ranks together read the same rows, however many ranks."""
        first, ranks, rows = self.world.rank, self.world.size, self.case.rows
        sources = [
            ragged_rows(self.network, self.case.row_length, self.world.device, seed)
            for seed in range(first, rows * ranks, ranks)
        ]
        while True:
            yield [next(source) for source in sources]

    def step(self, rows: list[PackedRow], rate: float = 1.0) -> Step:
        """Train on rows of this rank, with `rate` times the learning rate."""
        set_learning_rates(self.optimizer, rate)
        first, ranks = self.world.rank, self.world.size
        synchronize(self.world.device)
        self.world.gather(None)  # no rank waits for another's rows while it is timed
        start = time.perf_counter()
        result = train_step(
            self.trainee,
            rows,
            self.optimizer,
            clip_norm=self.case.optimizer.clip_norm,
            numbers=range(first, len(rows) * ranks, ranks),
            keep_gathered=self.case.compute.keep_gathered,
        )
        launched = time.perf_counter() - start
        synchronize(self.world.device)
        seconds = time.perf_counter() - start
        self._log(f"step of {seconds:.3f} s, launched in {launched:.3f} s")
        return Step(seconds, launched, float(result.loss), float(result.gradient_norm))

    def _log(self, message: str) -> None:
        if self.world.is_first:
            print(f"{time.perf_counter():.1f} {message}", file=sys.stderr, flush=True)


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def dtype_of(compute: ComputeConfig) -> torch.dtype:
    """Return the dtype in which a step computes and frozen weights are stored."""
    return torch.bfloat16 if compute.precision == "bf16" else torch.float32


def _choose_trained(network: VilaModel, case: Case) -> None:
    """Freeze and adapt the network; what is trained is in fp32."""
    network.requires_grad_(False).eval()
    for part in case.tune:
        part_module(network, part).requires_grad_(True).train()
    if case.adapter is not None:
        part_module(network, "language_model").train()
        adapters.install(network, case.adapter)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _prepare(network: VilaModel, case: Case, world: World) -> Trainee:
    """Return what is trained, as `vila_train.loop.setup` makes it."""
    is_sharded = needs_shards(network, case.compute, world.size)
    compute.prepare(network, case.compute, is_sharded=is_sharded)
    if not is_sharded:
        if case.compute.precision == "bf16":
            compute_in_bf16(network)
        return Trainee(network, always_sees=False)
    trainee = Trainee(network)
    shard(trainee, make_mesh(world, case.compute), case.compute, world.device)
    return trainee


def meta_case(case: Case) -> VilaModel:
    """Return the network of a case without weights, frozen and adapted as it is trained."""
    network = meta_network(network_config(case.shape, case.layers), dtype_of(case.compute))
    _choose_trained(network, case)
    return network


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _limit_memory(device: torch.device, gigabytes: float | None) -> None:
    """Let PyTorch take at most so much of the GPU's memory, as if it were a smaller card."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (gigabytes or math.inf) * 1e9 / total))


def report(line: dict[str, object], out: Path | None) -> None:
    """Print a result, and append it to `out`/results.jsonl."""
    print(json.dumps(line), flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def report_out_of_memory(
    line: dict[str, object], error: torch.OutOfMemoryError, world: World, out: Path | None
) -> None:
    """Report that a GPU had too little memory. Other ranks may wait for this one, so with several, all end."""
    report(line | {"error": str(error)[:300]}, out)
    if world.size > 1:
        os._exit(1)  # closing the process group would wait for the others; torchrun ends them
