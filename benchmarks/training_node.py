"""Full training on the GPUs of a node: speed, memory, stages, and checkpoints that fewer GPUs resume from.

    for n in 1 2 4 8; do torchrun --nproc-per-node $n benchmarks/training_node.py --out results/node; done
    torchrun --nproc-per-node 4 benchmarks/training_node.py --out results/node --resume-from results/node/checkpoints-8
    python benchmarks/training_node.py --out results/node --table

Random weights of NVILA-8B's shapes, and packed rows of up to `--row-length` tokens with images (`training_rows.py`):
8,192 as in NVILA's recipes, or 4,096 as in NVILA-Lite's. Each part of a run is a line of results.jsonl:

- `sft`, `sft-gathered`: all weights are trained under FSDP, without and with `compute.keep_gathered`: tokens per second
  and GPU, model FLOPs as a part of the measured ceiling, and peak memory over its estimate (`training_speed.py`).
- `align`, `stage1.5`, `pretrain`: the other stages of NVILA's recipe, each from random weights.
- `checkpoint`: trains all weights on one batch, saves a checkpoint as a run does (`vila_train.checkpoints`), trains on,
  loads it, and does the last steps again.
- `resume`, with `--resume-from`: loads that checkpoint on half the ranks, or any number that divides the rows of a
  step, and does the same steps.

`--table` compares numbers of GPUs. Efficiency is the tokens per second and GPU over those of two GPUs; the goal with
eight is 0.93. Full training of 8B takes 16 bytes a weight, 130 GB in all, and a checkpoint 12 bytes, 97 GB: with
`--layers`, the language model has fewer layers, for one GPU or a small disk. With half of them, two GPUs keep as much
of the state each as four do with all, which leaves memory for activations that are kept (`--recompute none`). Rates in
GB/s tell how long a larger checkpoint takes.

The exit code is 0 if these checks pass, else 1: the trained parts of a stage change, and the frozen ones do not; its
losses are finite; the losses after loading a checkpoint are those of the run that wrote it (within `TOLERANCE` of
`training_checkpoints.py`: another number of ranks adds up rows in another order, and AdamW makes the rounding of small
gradients visible).

`--shapes tiny` shows in a minute on two processes of a CPU that the script works.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor
from training_checkpoints import Recorded, require_room, resume, save_and_load
from training_speed import WARM_UP, Ceiling, measure
from training_steps import ALL, SAVING, Case, Training, device_name, dtype_of, report, report_out_of_memory

from vila_core.bench.shapes import LANGUAGE_SHAPES
from vila_core.errors import ConfigError, VilaError
from vila_core.model import VilaModel
from vila_train.config import Part
from vila_train.loop.optimizer import part_module
from vila_train.parallel.world import World, join_world, sum_over_ranks
from vila_train.recipes import nvila

STAGES = {
    "sft": nvila.sft,
    "sft-gathered": nvila.sft,
    "align": nvila.align,
    "stage1.5": nvila.stage1_5,
    "pretrain": nvila.pretrain,
}
PARTS = (*STAGES, "checkpoint")
SAME_CASE = ("part", "shapes", "layers", "row_length", "rows_per_gpu", "recompute", "precision")
"""Fields of lines that are compared."""
Figures = dict[str, object]


def measure_stage(case: Case, world: World, steps: int, ceiling: Ceiling) -> tuple[Figures, str | None]:
    """Train as a stage does. Return the figures, and what is wrong, if anything."""
    training = Training(case, world)
    before = part_norms(training.network)
    measured = measure(training, steps)
    after = part_norms(training.network)
    changed = [part for part in ALL if before[part] != after[part]]
    figures: Figures = {"steps": WARM_UP + steps, "changed": changed, **measured.summary(ceiling)}
    if not all(map(math.isfinite, measured.losses)):
        return figures, "a loss is not finite"
    if set(changed) != set(case.tune):
        return figures, f"changed are {changed}, and trained {list(case.tune)}"
    return figures, None


def part_norms(network: VilaModel) -> Mapping[Part, float]:
    """Return the norm of all weights of each part, over all ranks."""
    norms: dict[Part, float] = {}
    for part in ALL:
        weights = [parameter.detach() for parameter in part_module(network, part).parameters()]
        is_sharded = isinstance(weights[0], DTensor)
        local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
        squares = torch.stack([torch.linalg.vector_norm(weight, dtype=torch.float64) ** 2 for weight in local]).sum()
        norms[part] = float(sum_over_ranks(squares) if is_sharded else squares)
    return norms


def base_case(arguments: argparse.Namespace, world: World) -> Case:
    """Return what the parts of a run have in common."""
    on_cuda = world.device.type == "cuda"
    precision: Literal["bf16", "fp32"] = "bf16" if on_cuda else "fp32"
    changes = {"precision": precision, "compile": on_cuda, "activation_checkpointing": arguments.recompute}
    compute = SAVING.model_copy(update=changes)
    length = arguments.row_length or (1024 if arguments.shapes == "tiny" else 8192)
    return Case(arguments.shapes, compute, tune=ALL, layers=arguments.layers, row_length=length, rows=arguments.rows)


def run_part(
    part: str, case: Case, world: World, ceiling: Ceiling, arguments: argparse.Namespace
) -> tuple[Figures, str | None]:
    """Do one part of a run. Return its figures, and what is wrong, if anything."""
    if part == "checkpoint":
        return save_and_load(case, world, checkpoint_folder(arguments, world))
    recipe = STAGES[part]()
    compute = case.compute.model_copy(update={"keep_gathered": part == "sft-gathered"})
    steps = arguments.steps if recipe.name == "nvila-sft" else max(1, arguments.stage_steps - WARM_UP)
    return measure_stage(
        replace(case, compute=compute, tune=recipe.tune, optimizer=recipe.optimizer), world, steps, ceiling
    )


def checkpoint_folder(arguments: argparse.Namespace, world: World) -> Path:
    """Return where this run's checkpoint is."""
    return (arguments.checkpoints or arguments.out) / f"checkpoints-{world.size}"


def run(arguments: argparse.Namespace, world: World) -> bool:
    """Do all parts, and report each. Return whether all checks passed."""
    case = base_case(arguments, world)
    if arguments.resume_from is not None:
        return _run_resume(arguments, case, world)
    if "checkpoint" in arguments.only:
        world.first(lambda: require_room(case, checkpoint_folder(arguments, world)))
    ceiling = Ceiling.measure(world.device, dtype_of(case.compute))
    if world.is_first:
        machine: Figures = {"device": device_name(world.device), "gpus": world.size, "torch": torch.__version__}
        report(machine | ceiling.summary(), arguments.out)
    holds = True
    for part in arguments.only:
        try:
            result = run_part(part, case, world, ceiling, arguments)
        except torch.OutOfMemoryError as error:
            report_out_of_memory({"part": part, "gpus": world.size}, error, world, arguments.out)
            holds = False
        else:
            holds &= _report_part(part, case, world, arguments.out, result)
    return holds


def _run_resume(arguments: argparse.Namespace, case: Case, world: World) -> bool:
    folder = arguments.resume_from
    recorded = world.first(lambda: Recorded.read(folder))
    if recorded.precision != case.compute.precision:
        raise ConfigError(f"{folder} was written in {recorded.precision}, and this is {case.compute.precision}.")
    if recorded.rows % world.size:
        raise ConfigError(f"{world.size} ranks cannot share {recorded.rows} rows per step equally.")
    case = replace(
        case, shape=recorded.shapes, layers=recorded.layers, row_length=recorded.row_length,
        rows=recorded.rows // world.size,
    )  # fmt: skip
    return _report_part("resume", case, world, arguments.out, resume(recorded, case, world, folder))


def _report_part(part: str, case: Case, world: World, out: Path, result: tuple[Figures, str | None]) -> bool:
    """Write the line of a part. Return whether its checks passed."""
    figures, problem = result
    line: Figures = {
        "part": part, "shapes": case.shape, "layers": case.layers, "gpus": world.size, "rows_per_gpu": case.rows,
        "row_length": case.row_length, "recompute": case.compute.activation_checkpointing,
        "precision": case.compute.precision, **figures,
    }  # fmt: skip
    if world.is_first:
        report(line if problem is None else line | {"error": problem}, out)
    return problem is None


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the speeds of `lines` on several numbers of GPUs; of equal cases, the last counts."""
    newest = {(*(line[key] for key in SAME_CASE), line["gpus"]): line for line in lines if "tokens_per_second" in line}
    head = ["part", "layers", "row", "recompute", "GPUs", "tok/s/GPU", "of two GPUs", "of ceiling", "peak GB"]
    rows = [[*head, "of estimate"]]
    for (*case, gpus), line in sorted(newest.items(), key=lambda item: (*map(str, item[0][:-1]), item[0][-1])):
        pair = newest.get((*case, 2))
        efficiency = None if pair is None else round(line["tokens_per_second"] / pair["tokens_per_second"], 3)
        figures = (gpus, line["tokens_per_second"], efficiency, line["of_ceiling"], line["peak_gb"])
        own = (line["part"], line["layers"] or "all", line["row_length"], line["recompute"])
        cells = (*own, *figures, line["peak_of_estimate"])
        rows.append(["-" if value is None else str(value) for value in cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def read_lines(out: Path) -> list[dict[str, Any]]:
    """Return the results in folder `out`. Raises `ConfigError` if they cannot be read."""
    file = out / "results.jsonl"
    try:
        return [json.loads(line) for line in file.read_text().splitlines()]
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"{file} is damaged: {error}.") from None


def parse_arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line, `given` or those of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.jsonl")
    parser.add_argument("--shapes", default="nvila-8b", choices=("tiny", "nvila-2b", *LANGUAGE_SHAPES))
    parser.add_argument("--layers", type=int, help="of the language model (default: all)")
    parser.add_argument("--row-length", type=int, help="tokens (default: 8192; tiny: 1024)")
    parser.add_argument("--recompute", default="full", choices=("none", "linears", "full"), help="default: full")
    parser.add_argument("--rows", type=int, default=2, help="of each GPU in a step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of sft")
    parser.add_argument("--stage-steps", type=int, default=50, help="steps of each other stage")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--checkpoints", type=Path, help="folder for checkpoints (default: --out)")
    parser.add_argument("--resume-from", type=Path, metavar="DIR", help="only resume from this checkpoints-N")
    parser.add_argument("--table", action="store_true", help="only compare the results in --out")
    arguments = parser.parse_args(given)
    for name in ("layers", "row_length", "rows", "steps", "stage_steps"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; expected at least 1")
    return arguments


def main(given: Sequence[str] | None = None) -> int:
    """Run the script, and return its exit code."""
    arguments = parse_arguments(given)
    try:
        if arguments.table:
            print(table(read_lines(arguments.out)))
            return 0
        with join_world(group=True) as world:
            holds = run(arguments, world)
            if world.is_first:
                print(table(read_lines(arguments.out)), file=sys.stderr)
            return 0 if holds else 1
    except VilaError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
