"""Speed and memory of training steps at NVILA's shapes: random weights, packed rows of ragged samples with images.

    python benchmarks/training.py --case lora-8b --case lora-8b-fp8
    torchrun --nproc-per-node 2 benchmarks/training.py --case full-8b

A sample is an image of 1 to 7 tiles and a text of ragged length, of which 40 % are labelled. Rows are packed as in
training; their lengths differ. A step is what `vila_train.loop.step.train_step` does: forward, backward, clipping and
AdamW. Model FLOPs are those of `vila_train.compute.flops` (backward passes of frozen weights are not counted, nor is
anything that is computed twice). They are compared with the data sheet, and with an 8192 x 8192 x 8192 product in
bfloat16 in the same run: its best rate (`of_ceiling`), and its rate over a second (`of_sustained`), in which a GPU
lowers its clock as it does in training.

On a CPU the case `tiny` shows in a minute that the script works. It computes in fp32, since few CPUs multiply in
bfloat16, and its memory is not measured.

T tokens of a row
"""

import argparse
import gc
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from vila_core.bench.limits import SQUARE, measure_limits
from vila_core.bench.shapes import LANGUAGE_SHAPES, model_shape
from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.embedded import EMBEDDED_MODEL
from vila_core.config import DecoderConfig, VilaConfig
from vila_core.model import PromptBatch, VilaModel
from vila_core.prompt import PreparedMedium
from vila_core.tiles import Normalization, TileLayout, Tiles
from vila_core.tokenizer import Tokenizer
from vila_train import adapters, compute
from vila_train.compute.master_weights import compute_in_bf16
from vila_train.config import AdapterConfig, ComputeConfig, OptimizerConfig, Part
from vila_train.estimates.memory import RowLoad, estimate_memory
from vila_train.labels import IGNORE_INDEX
from vila_train.loop.optimizer import make_optimizer, part_module
from vila_train.loop.step import Trainee, train_step
from vila_train.packing import PackedRow, pack
from vila_train.parallel.fsdp import needs_shards, shard
from vila_train.parallel.mesh import make_mesh
from vila_train.parallel.world import World, join_world

ALL: tuple[Part, ...] = ("vision_tower", "projector", "language_model")
LORA = AdapterConfig(rank=64, alpha=16, dropout=0.0)
FAST = ComputeConfig(activation_checkpointing="none", compile=True)
SAVING = ComputeConfig(activation_checkpointing="full", compile=True)


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        shape: name in `LANGUAGE_SHAPES`.
        tune: parts that are trained in full.
        compute: of the step.
        adapter: of the language model, if any.
        layers: of the language model; None: all.
        row_length: limit on T.
        rows: of each rank in a step.
        sharded: FSDP; None: as in training, where adapters on one GPU do without.
        memory_gb: of a smaller card that is imitated; None: all of the GPU's.
    """

    shape: str
    compute: ComputeConfig
    tune: tuple[Part, ...] = ()
    adapter: AdapterConfig | None = None
    layers: int | None = None
    row_length: int = 8192
    rows: int = 1
    sharded: bool | None = None
    memory_gb: float | None = None


def _with(config: ComputeConfig, **changes: object) -> ComputeConfig:
    return config.model_copy(update=changes)


CASES: dict[str, Case] = {
    "lora-8b": Case("nvila-8b", FAST, adapter=LORA),
    "lora-8b-fp8": Case("nvila-8b", _with(FAST, fp8=True), adapter=LORA),
    "lora-8b-4k": Case("nvila-8b", FAST, adapter=LORA, row_length=4096),
    "lora-8b-eager": Case("nvila-8b", _with(FAST, compile=False), adapter=LORA),
    "lora-8b-linears": Case("nvila-8b", _with(FAST, activation_checkpointing="linears"), adapter=LORA),
    "lora-8b-24gb": Case(
        "nvila-8b", SAVING, adapter=LORA.model_copy(update={"rank": 16}), row_length=4096, memory_gb=24
    ),
    "lora-2b-24gb": Case("nvila-2b", SAVING, adapter=LORA, row_length=4096, memory_gb=24),
    "full-cut": Case("nvila-8b", FAST, tune=ALL, layers=8, rows=2),
    "full-cut-fp8": Case("nvila-8b", _with(FAST, fp8=True), tune=ALL, layers=8, rows=2),
    "full-8b": Case("nvila-8b", SAVING, tune=ALL, rows=2),
    "full-8b-gathered": Case("nvila-8b", _with(SAVING, keep_gathered=True), tune=ALL, rows=2),
    "tiny": Case("tiny", _with(FAST, compile=False), adapter=LORA.model_copy(update={"rank": 4}), row_length=2048),
    "tiny-compiled": Case("tiny", _with(FAST, fp8=False), adapter=LORA.model_copy(update={"rank": 4}), row_length=1024),
    "tiny-gathered": Case(
        "tiny", _with(SAVING, compile=False, keep_gathered=True), tune=ALL, row_length=2048, rows=2, sharded=True
    ),
    "tiny-full": Case("tiny", _with(SAVING, compile=False), tune=ALL, row_length=2048, rows=2),
}
QWEN2_1_5B = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 2048,
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Results of a case on one rank. Rates are per GPU.

    Attributes:
        seconds: of a step, on average.
        host_seconds: until the host has launched it; close to `seconds`, if the GPU waits for the host.
        tokens: of a step, on average.
        flops: model FLOPs of a step.
        peak_bytes: most memory of the GPU that tensors took, weights and optimizer included; None on a CPU.
        reserved_bytes: most memory that PyTorch took from the GPU; None on a CPU.
        estimated_bytes: what a dry run would estimate for `peak_bytes`.
        sharded: whether FSDP was used.
        compile_seconds: of the first step.
    """

    seconds: float
    host_seconds: float
    tokens: float
    flops: float
    peak_bytes: int | None
    reserved_bytes: int | None
    estimated_bytes: int
    sharded: bool
    compile_seconds: float
    losses: list[float] = field(default_factory=list)

    def summary(self, ceiling: float, sustained: float, peak: float | None) -> dict[str, object]:
        """Return the figures of a report."""
        return {
            "tokens_per_second": round(self.tokens / self.seconds),
            "step_ms": round(1e3 * self.seconds, 1),
            "host_ms": round(1e3 * self.host_seconds, 1),
            "tflops": _tera(self.flops / self.seconds),
            "of_ceiling": round(self.flops / self.seconds / ceiling, 3),
            "of_sustained": round(self.flops / self.seconds / sustained, 3),
            "of_data_sheet": None if peak is None else round(self.flops / self.seconds / peak, 3),
            "peak_gb": None if self.peak_bytes is None else round(self.peak_bytes / 1e9, 2),
            "reserved_gb": None if self.reserved_bytes is None else round(self.reserved_bytes / 1e9, 2),
            "estimated_gb": round(self.estimated_bytes / 1e9, 2),
            "peak_of_estimate": None if self.peak_bytes is None else round(self.peak_bytes / self.estimated_bytes, 3),
            "sharded": self.sharded,
            "first_step_s": round(self.compile_seconds, 1),
            "losses": [round(loss, 3) for loss in self.losses],
        }


def _tera(rate: float) -> float:
    """Return a rate in 10^12 per second, with three digits: a CPU's would round to 0."""
    return float(f"{rate / 1e12:.3g}")


# ------------------------------------------------------------------------------------------------ model and rows


def shape_of(case: Case) -> VilaConfig:
    """Return the config of a case's model."""
    base = model_shape("nvila-8b" if case.shape not in LANGUAGE_SHAPES else case.shape, "bfloat16")
    decoder = base.language_model
    assert isinstance(decoder, DecoderConfig)
    changes = dict[str, object]({"nvila-2b": QWEN2_1_5B, "tiny": TINY}.get(case.shape, {}))
    if case.layers is not None:
        changes["num_hidden_layers"] = case.layers
    decoder = DecoderConfig.model_validate(decoder.model_dump() | changes)
    tower = base.vision_tower
    if case.shape == "tiny":
        tower = tower.model_copy(update={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                                         "num_attention_heads": 2})  # fmt: skip
    projector = base.projector.model_copy(update={"in_size": tower.hidden_size, "out_size": decoder.hidden_size})
    return base.model_copy(update={"language_model": decoder, "vision_tower": tower, "projector": projector})


def dtype_of(compute: ComputeConfig) -> torch.dtype:
    """Return what a step computes in, and frozen weights are stored in."""
    return torch.bfloat16 if compute.precision == "bf16" else torch.float32


def random_network(config: VilaConfig, device: torch.device, dtype: torch.dtype) -> VilaModel:
    """Return a network of random weights on `device`."""
    tokenizer = Tokenizer.from_folder(open_checkpoint(EMBEDDED_MODEL).tokenizer_path)
    with torch.device("meta"):
        network = VilaModel(config, tokenizer).to(dtype)
    network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                parameter.fill_(float(name.endswith("weight")))
    return network


def ragged_rows(network: VilaModel, case: Case, device: torch.device, seed: int) -> Iterator[PackedRow]:
    """Yield packed rows of random samples without end."""
    draw = random.Random(seed)
    while True:
        samples = [_sample(network, draw, case.row_length) for _ in range(512)]
        for chosen in pack([length for length, _, _ in samples], case.row_length):
            yield _row([samples[index] for index in chosen], draw, network, device)


def _sample(network: VilaModel, draw: random.Random, limit: int) -> tuple[int, int, PreparedMedium]:
    """Return length, tokens of the image, and the image."""
    pixels = network.config.pixels
    tiles = draw.choices(range(1, 8), weights=(8, 1, 4, 2, 3, 1, 3))[0]
    values = torch.zeros(1, dtype=torch.uint8).expand(tiles, 3, pixels.size, pixels.size)  # `_row` draws them
    medium = PreparedMedium("image", Tiles(values, TileLayout("separate", 1, tiles), Normalization.of(pixels)))
    media = network.num_tokens(medium)
    text = min(int(draw.lognormvariate(5.6, 0.8)) + 32, limit - media)
    return media + text, media, medium


def _row(
    samples: list[tuple[int, int, PreparedMedium]], draw: random.Random, network: VilaModel, device: torch.device
) -> PackedRow:
    vocabulary = network.config.language_model.vocab_size
    ids: list[int] = []
    places: list[int] = []
    labels: list[int] = []
    for length, media, _ in samples:
        places += range(len(ids) + 16, len(ids) + 16 + media)
        own = [draw.randrange(vocabulary) for _ in range(length)]
        answer = int(0.4 * (length - media))
        ids += own
        labels += [IGNORE_INDEX] * (length - answer) + own[length - answer :]
    media_on_device = [
        replace(medium, tiles=replace(medium.tiles, values=_random_pixels(medium.tiles, device)))
        for *_, medium in samples
    ]
    batch = PromptBatch(
        torch.tensor(ids, device=device),
        torch.tensor(places, device=device),
        media_on_device,
        [length for length, *_ in samples],
    )
    labelled = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
    return PackedRow(
        batch,
        torch.tensor(labels, device=device),
        [str(index) for index in range(len(samples))],
        torch.tensor([place - 1 for place in labelled], device=device),
        torch.tensor([labels[place] for place in labelled], device=device),
    )


def _random_pixels(tiles: Tiles, device: torch.device) -> torch.Tensor:
    return torch.randint(0, 256, tiles.values.shape, dtype=torch.uint8, device=device)


# ------------------------------------------------------------------------------------------------ measuring


def build(case: Case, world: World) -> tuple[VilaModel, Trainee]:
    """Return the network and what is trained, as `vila_train.loop.setup` makes it."""
    network = random_network(shape_of(case), world.device, dtype_of(case.compute))
    _choose_trained(network, case)
    is_sharded = needs_shards(network, case.compute, world.size)
    compute.prepare(network, case.compute, is_sharded=is_sharded)
    if not is_sharded:
        if case.compute.precision == "bf16":
            compute_in_bf16(network)
        return network, Trainee(network, always_sees=False)
    trainee = Trainee(network)
    shard(trainee, make_mesh(world, case.compute), case.compute, world.device)
    return network, trainee


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


def estimate(case: Case, world: World, rows: list[PackedRow]) -> int:
    """Return the peak that a dry run estimates for a case whose largest rows are these."""
    tokenizer = Tokenizer.from_folder(open_checkpoint(EMBEDDED_MODEL).tokenizer_path)
    with torch.device("meta"):
        network = VilaModel(shape_of(case), tokenizer).to(dtype_of(case.compute))
        _choose_trained(network, case)
    load = RowLoad(
        tokens=max(row.num_tokens for row in rows),
        tiles=max(sum(len(medium.tiles) for medium in row.batch.media) for row in rows),
        labels=max(row.num_labels for row in rows),
        rows=case.rows,
    )
    memory = torch.cuda.get_device_properties(world.device).total_memory if world.device.type == "cuda" else None
    return estimate_memory(
        network, case.compute, load, world_size=world.size, adapter=case.adapter, gpu_bytes=memory
    ).peak


def measure(case: Case, world: World, steps: int, profile: Path | None = None) -> Measured:
    """Run a case: two steps to warm up, then `steps` timed ones."""
    _reset_memory(world.device)
    _limit_memory(world.device, case.memory_gb)
    network, trainee = build(case, world)
    optimizer = make_optimizer(network, OptimizerConfig(learning_rate=1e-5), world.device)
    flops = compute.ModelFlops.of(network)
    source = ragged_rows(network, case, world.device, seed=world.rank)
    batches = [[next(source) for _ in range(case.rows)] for _ in range(steps + 2)]
    times: list[float] = []
    host_times: list[float] = []
    losses: list[float] = []
    _log(f"{case.shape}: built")
    for rows in batches:
        _synchronize(world.device)
        start = time.perf_counter()
        gathered = case.compute.keep_gathered
        result = train_step(trainee, rows, optimizer, clip_norm=1.0, keep_gathered=gathered)
        host_times.append(time.perf_counter() - start)
        _synchronize(world.device)
        times.append(time.perf_counter() - start)
        losses.append(float(result.loss))
        _log(f"step of {times[-1]:.3f} s, launched in {host_times[-1]:.3f} s")
    timed = batches[2:]
    if profile is not None:
        _profile(trainee, timed[0], optimizer, profile)
    on_cuda = world.device.type == "cuda"
    return Measured(
        seconds=sum(times[2:]) / steps,
        host_seconds=sum(host_times[2:]) / steps,
        tokens=sum(len(row.labels) for rows in timed for row in rows) / steps,
        flops=sum(flops.of_row(row) for rows in timed for row in rows) / steps,
        peak_bytes=torch.cuda.max_memory_allocated() if on_cuda else None,
        reserved_bytes=torch.cuda.max_memory_reserved() if on_cuda else None,
        estimated_bytes=estimate(case, world, [row for rows in batches for row in rows]),
        sharded=isinstance(trainee, FSDPModule),
        compile_seconds=times[0],
        losses=losses,
    )


def _profile(trainee: nn.Module, rows: list[PackedRow], optimizer: torch.optim.Optimizer, file: Path) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        train_step(trainee, rows, optimizer, clip_norm=1.0)  # pyright: ignore[reportArgumentType]
        torch.cuda.synchronize()
    kernels = [event for event in profiler.key_averages() if event.device_type.name == "CUDA"]
    kernels = sorted(kernels, key=_kernel_time, reverse=True)
    lines = [f"{e.self_device_time_total / 1e3:9.2f} ms {e.count:6d} x {e.key[:140]}" for e in kernels[:60]]
    total = sum(event.self_device_time_total for event in kernels) / 1e3
    host = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60)
    file.write_text("\n".join([f"{total:9.2f} ms in all", *lines, "", host]) + "\n")


def _kernel_time(event: Any) -> float:
    return float(event.self_device_time_total)


def _log(message: str) -> None:
    print(f"{time.perf_counter():.1f} {message}", file=sys.stderr, flush=True)


def _reset_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _limit_memory(device: torch.device, gigabytes: float | None) -> None:
    """Let PyTorch take at most so much of the GPU's memory, as if it were a smaller card."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (gigabytes or math.inf) * 1e9 / total))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def sustained_flops(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return the rate of the ceiling's product when it runs for `seconds`: a GPU lowers its clock at high power."""
    side = SQUARE[device.type]
    a = torch.randn(side, side, device=device, dtype=dtype)
    b = torch.randn(side, side, device=device, dtype=dtype)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(20):
            torch.mm(a, b)
        _synchronize(device)
        count += 20
    return 2 * side**3 * count / (time.perf_counter() - start)


def main() -> None:
    """Measure the chosen cases, and print and append a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, required=True)
    parser.add_argument("--sharded", action="store_true", help="use FSDP also where training does without")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for results.jsonl and profiles")
    parser.add_argument("--profile", action="store_true", help="write the kernels and the host's time of one step")
    arguments = parser.parse_args()
    with join_world(group=True) as world:
        precision: Literal["bf16", "fp32"] = "bf16" if world.device.type == "cuda" else "fp32"
        dtype = dtype_of(ComputeConfig(precision=precision))
        ceiling = measure_limits(world.device, dtype).operations_per_second
        sustained = sustained_flops(world.device, dtype)
        peak = compute.peak_flops(world.device)
        if world.is_first:
            device = torch.cuda.get_device_name() if world.device.type == "cuda" else "CPU"
            rates = {"ceiling_tflops": _tera(ceiling), "sustained_tflops": _tera(sustained)}
            line: dict[str, object] = {"device": device, "processes": world.size, "precision": precision, **rates}
            _report(line, arguments.out)
        for name in arguments.case:
            case = CASES[name]
            shards = True if arguments.sharded else case.sharded
            case = replace(case, compute=_with(case.compute, sharded=shards, precision=precision))
            label = f"{name}{'-sharded' if arguments.sharded else ''}"
            profile = arguments.out / f"{label}.txt" if arguments.profile and world.is_first else None
            try:
                measured = measure(case, world, arguments.steps, profile)
                line = {"case": label, **measured.summary(ceiling, sustained, peak)}
            except torch.OutOfMemoryError as error:
                line = {"case": label, "error": str(error)[:300]}
            if world.is_first:
                _report(line, arguments.out)


def _report(line: dict[str, object], out: Path | None) -> None:
    print(json.dumps(line), flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
