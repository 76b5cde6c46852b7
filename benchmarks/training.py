"""Speed and memory of training steps at NVILA's shapes: random weights, packed rows of ragged samples with images.

    python benchmarks/training.py --case lora-8b --case lora-8b-fp8
    torchrun --nproc-per-node 2 benchmarks/training.py --case full-8b

`training_rows.py` says what is trained on, `training_steps.py` what a step is, and `training_speed.py` how it is
measured. `training_node.py` measures full training on the GPUs of a node, and its checkpoints.

On a CPU the case `tiny` shows in a minute that the script works. It computes in fp32, since few CPUs multiply in
bfloat16, and its memory is not measured.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from training_speed import Ceiling, measure
from training_steps import ALL, SAVING, Case, Training, device_name, dtype_of, report, report_out_of_memory

from vila_train.config import AdapterConfig, ComputeConfig
from vila_train.packing import PackedRow
from vila_train.parallel.world import World, join_world

LORA = AdapterConfig(rank=64, alpha=16, dropout=0.0)
FAST = ComputeConfig(activation_checkpointing="none", compile=True)
LABELS = ("nccl:", "FSDP::", "Optimizer.")
"""How names begin that the profiler lists beside kernels."""


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
    "full-8b-kept": Case("nvila-8b", _with(SAVING, activation_checkpointing="none"), tune=ALL, rows=4),
    "full-8b-gathered": Case("nvila-8b", _with(SAVING, keep_gathered=True), tune=ALL, rows=2),
    "tiny": Case("tiny", _with(FAST, compile=False), adapter=LORA.model_copy(update={"rank": 4}), row_length=2048),
    "tiny-compiled": Case("tiny", _with(FAST, fp8=False), adapter=LORA.model_copy(update={"rank": 4}), row_length=1024),
    "tiny-gathered": Case(
        "tiny", _with(SAVING, compile=False, keep_gathered=True, sharded=True), tune=ALL, row_length=2048, rows=2
    ),
    "tiny-full": Case("tiny", _with(SAVING, compile=False), tune=ALL, row_length=2048, rows=2),
}


def main() -> None:
    """Measure the chosen cases, and print and append a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, required=True)
    parser.add_argument("--sharded", action="store_true", help="use FSDP also where training does without")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for results.jsonl and profiles")
    parser.add_argument("--profile", action="store_true", help="write the kernels and the host's time of one step")
    arguments = parser.parse_args()
    if arguments.profile and arguments.out is None:
        parser.error("--profile needs a folder: add --out")
    with join_world(group=True) as world:
        precision: Literal["bf16", "fp32"] = "bf16" if world.device.type == "cuda" else "fp32"
        ceiling = Ceiling.measure(world.device, dtype_of(ComputeConfig(precision=precision)))
        if world.is_first:
            machine: dict[str, object] = {
                "device": device_name(world.device),
                "processes": world.size,
                "precision": precision,
            }
            report(machine | ceiling.summary(), arguments.out)
        for name in arguments.case:
            compute = _with(CASES[name].compute, precision=precision)
            case = replace(CASES[name], compute=_with(compute, sharded=True) if arguments.sharded else compute)
            label = f"{name}{'-sharded' if arguments.sharded else ''}"
            profile = arguments.out / f"{label}.txt" if arguments.profile else None
            _report_case(label, case, world, ceiling, arguments.steps, arguments.out, profile)


def _report_case(
    label: str, case: Case, world: World, ceiling: Ceiling, steps: int, out: Path | None, profile: Path | None
) -> None:
    """Measure a case, or say that memory was too small for it."""
    try:
        training = Training(case, world)
        line: dict[str, object] = {"case": label, **measure(training, steps).summary(ceiling)}
        if profile is not None:
            _profile(training, profile)
    except torch.OutOfMemoryError as error:
        report_out_of_memory({"case": label}, error, world, out)
    else:
        if world.is_first:
            report(line, out)


def _profile(training: Training, file: Path) -> None:
    """Write where one step takes its time; all ranks take part, and the first one writes."""
    rows: list[PackedRow] = next(training.batches())
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        training.step(rows)
    if not training.world.is_first:
        return
    kernels = [event for event in profiler.key_averages() if event.device_type.name == "CUDA"]
    kernels = sorted(kernels, key=_kernel_time, reverse=True)
    lines = [f"{e.self_device_time_total / 1e3:9.2f} ms {e.count:6d} x {e.key[:140]}" for e in kernels[:60]]
    total = sum(event.self_device_time_total for event in kernels) / 1e3
    lines[:0] = _gaps(profiler)
    host = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60)
    file.write_text("\n".join([f"{total:9.2f} ms in all", *lines, "", host]) + "\n")


def _gaps(profiler: torch.profiler.profile, longest: int = 25) -> list[str]:
    """Return how long nothing was computed: in all, in communication, and the longest times with what came next."""
    spans = sorted(
        (event.time_range.start, event.time_range.end, str(event.name))
        for event in profiler.events() or []
        if event.device_type.name == "CUDA" and not event.name.startswith(LABELS)
    )
    computing = [span for span in spans if "nccl" not in span[2]]
    communicating = [span for span in spans if "nccl" in span[2]]
    gaps: list[tuple[float, float, str]] = []
    busy_until = first = computing[0][0]
    for start, end, name in computing:
        if start > busy_until:
            gaps.append((busy_until, start, name))
        busy_until = max(busy_until, end)
    idle = sum(end - start for start, end, _ in gaps)
    waiting = sum(
        max(0.0, min(end, other_end) - max(start, other_start))
        for start, end, _ in gaps
        for other_start, other_end, _ in communicating
    )
    lines = [f"{idle / 1e3:9.2f} ms without computation, {waiting / 1e3:.2f} ms of them in communication"]
    for start, end, name in sorted(gaps, key=lambda gap: gap[0] - gap[1])[:longest]:
        lines.append(f"{(end - start) / 1e3:9.2f} ms from {(start - first) / 1e3:.1f} ms, then {name[:100]}")
    return [*lines, ""]


def _kernel_time(event: Any) -> float:
    return float(event.self_device_time_total)


if __name__ == "__main__":
    main()
