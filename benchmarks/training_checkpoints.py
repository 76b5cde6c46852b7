"""Checkpoints of full training: the time to save and to load one, and resuming on another number of ranks.

All steps train on the same rows, so the loss falls from step to step, and each loss shows which weights and moments it
came from.
"""

import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from training_steps import Case, Step, Training, meta_case

from vila_core.checkpoint.json_files import read_json
from vila_core.config import Config
from vila_core.errors import ConfigError, first_problem
from vila_core.new_file import write_file
from vila_train.checkpoints import Checkpoints, Progress
from vila_train.config import OptimizerConfig
from vila_train.packing import PackedRow
from vila_train.parallel.world import World

FAST_RATE = OptimizerConfig(learning_rate=2e-4, schedule="constant", warmup_ratio=0)
"""Training moves the loss by much more than rounding does."""
BEFORE, AFTER = 3, 3
"""Steps before and after the checkpoint."""
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}
"""Relative difference within which losses count as equal, and ten times that for gradient norms."""
MOVED = 20
"""So many tolerances lie between the loss before training and that after the checkpoint."""
BYTES = 12
"""Size of a trained weight in a checkpoint: its value and AdamW's two moments, all in fp32."""
RECORD = "recorded.json"


class Recorded(Config):
    """What a run on other ranks has to repeat, written beside its checkpoint.

    Attributes:
        shapes, layers, row_length, precision: of the case.
        rows: of all ranks in a step.
        processes: that wrote it.
        untrained: loss before the first step.
        losses, gradient_norms: of the steps after the checkpoint.
    """

    shapes: str
    layers: int | None
    row_length: int
    precision: Literal["bf16", "fp32"]
    rows: int
    processes: int
    untrained: float
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> "Recorded":
        """Return what is recorded in `folder`. Raises `ConfigError` or `CheckpointError` if nothing is."""
        if not (folder / RECORD).is_file():
            raise ConfigError(
                f"{folder} has no {RECORD}. Give the checkpoints-N that the part `checkpoint` has written."
            )
        try:
            return cls.model_validate(read_json(folder / RECORD))
        except ValidationError as error:
            raise ConfigError(
                f"{folder / RECORD} is not a record of training_node.py: {first_problem(error)}."
            ) from None

    def compare(self, steps: list[Step]) -> tuple[dict[str, object], str | None]:
        """Return how far the losses of `steps` are from the recorded ones, and what is wrong with that, if anything."""
        tolerance = TOLERANCE[self.precision]
        losses = [step.loss for step in steps]
        apart = max(_relative(a, b) for a, b in zip(losses, self.losses, strict=True))
        norms = max(_relative(step.gradient_norm, b) for step, b in zip(steps, self.gradient_norms, strict=True))
        moved = _relative(self.untrained, self.losses[0])
        figures: dict[str, object] = {
            "losses": losses,
            "recorded": list(self.losses),
            "loss_difference": apart,
            "gradient_norm_difference": norms,
            "moved_by_training": moved,
            "tolerance": tolerance,
        }
        if not apart <= tolerance:  # also where a loss is not a number
            return figures, f"losses after loading differ by {apart:.1e} (tolerance {tolerance:.0e})"
        if not norms <= 10 * tolerance:
            return figures, f"gradient norms after loading differ by {norms:.1e} (tolerance {10 * tolerance:.0e})"
        if not moved >= MOVED * tolerance:
            return figures, f"training moved the loss by {moved:.1e} only, so equal losses say nothing"
        return figures, None


def _relative(a: float, b: float) -> float:
    return abs(a - b) / abs(b) if b else math.inf


def checkpoint_bytes(case: Case) -> int:
    """Return the size of a case's checkpoint."""
    return BYTES * sum(weight.numel() for weight in meta_case(case).parameters() if weight.requires_grad)


def require_room(case: Case, folder: Path) -> None:
    """Raise `ConfigError` unless the disk of `folder` has room for a checkpoint."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = int(shutil.disk_usage(there).free * 0.95)
    needed = checkpoint_bytes(case)
    if needed <= free:
        return
    one, two = (checkpoint_bytes(replace(case, layers=layers)) for layers in (1, 2))
    fitting = 1 + (free - one) // (two - one)
    advice = f", or use at most --layers {fitting}" if fitting >= 1 else ""
    raise ConfigError(
        f"A checkpoint takes {needed / 1e9:.0f} GB, and {there} has {free / 1e9:.0f} GB to spare. "
        f"Choose another disk with --checkpoints{advice}."
    )


def save_and_load(case: Case, world: World, folder: Path) -> tuple[dict[str, object], str | None]:
    """Save a checkpoint in `folder`, train on, load it, and do the same steps again.

    Return the figures, and what is wrong, if anything.
    """
    case = replace(case, optimizer=FAST_RATE)
    world.first(lambda: shutil.rmtree(folder, ignore_errors=True))
    training = Training(case, world)
    rows = next(training.batches())
    before = _train(training, rows, BEFORE)
    checkpoints = Checkpoints(folder, 1, world)
    progress = Progress(step=BEFORE, lanes={}, skipped={})
    saving = _seconds(world, lambda: checkpoints.save(training.network, training.optimizer, progress))
    after = _train(training, rows, AFTER)
    precision = case.compute.precision
    recorded = Recorded(
        shapes=case.shape, layers=case.layers, row_length=case.row_length, precision=precision,
        rows=case.rows * world.size, processes=world.size, untrained=before[0].loss,
        losses=tuple(step.loss for step in after), gradient_norms=tuple(step.gradient_norm for step in after),
    )  # fmt: skip
    world.first(lambda: write_file(folder / RECORD, recorded.model_dump_json(indent=1) + "\n"))
    size = world.first(lambda: _drop_from_page_cache(folder))
    loading = _load(training, checkpoints)
    figures, problem = recorded.compare(_train(training, rows, AFTER))
    speed = {"checkpoint_gb": round(size / 1e9, 3), "save_s": round(saving, 2), "save_gb_per_s": _rate(size, saving)}
    return speed | _loading_figures(size, loading) | figures, problem


def resume(recorded: Recorded, case: Case, world: World, folder: Path) -> tuple[dict[str, object], str | None]:
    """Load the checkpoint in `folder` into a new network, and do the steps that `recorded` did after it."""
    size = world.first(lambda: _drop_from_page_cache(folder))
    training = Training(replace(case, optimizer=FAST_RATE), world)
    loading = _load(training, Checkpoints(folder, 1, world))
    figures, problem = recorded.compare(_train(training, next(training.batches()), AFTER))
    return {"from_processes": recorded.processes} | _loading_figures(size, loading) | figures, problem


def _train(training: Training, rows: list[PackedRow], steps: int) -> list[Step]:
    return [training.step(rows) for _ in range(steps)]


def _load(training: Training, checkpoints: Checkpoints) -> tuple[float, float]:
    """Load the newest checkpoint as a resumed run does. Return the seconds to verify and to load it."""
    found: list[Path] = []

    def verify() -> None:
        newest = checkpoints.newest()
        if newest is None:
            raise ConfigError(f"{checkpoints.folder} has no checkpoint.")
        found.append(newest[0])

    verifying = _seconds(training.world, verify)
    filling = _seconds(training.world, lambda: checkpoints.load(found[0], training.network, training.optimizer))
    return verifying, filling


def _loading_figures(size: int, loading: tuple[float, float]) -> dict[str, object]:
    return {
        "load_s": round(sum(loading), 2),
        "of_which_verifying_s": round(loading[0], 2),
        "load_gb_per_s": _rate(size, sum(loading)),
    }


def _rate(size: int, seconds: float) -> float:
    return float(f"{size / 1e9 / seconds:.3g}")


def _seconds(world: World, action: Callable[[], object]) -> float:
    """Return how long `action` takes, until all ranks have done it."""
    world.gather(None)
    start = time.perf_counter()
    action()
    world.gather(None)
    return time.perf_counter() - start


def _drop_from_page_cache(folder: Path) -> int:
    """Ask the system to read the files below `folder` from the disk next time. Return their size."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in files:
        if sys.platform == "linux":
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return sum(file.stat().st_size for file in files)
