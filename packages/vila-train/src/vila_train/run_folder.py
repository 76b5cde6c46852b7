"""The folder of a training run. The same command resumes a run in it.

OUT/run.yaml            the configuration: a run with another one needs another folder
OUT/plan.json           rows per step, lanes and steps, computed when the run started
OUT/skipped.jsonl       samples that could not be used
OUT/checkpoints/        to resume from
OUT/failed-step-…/      the batch of a step whose loss was not finite
OUT/model/              the trained model; written last
OUT/.lock               held by the process that trains
"""

import json
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from vila_core.checkpoint.json_files import read_json
from vila_core.checkpoint.new_folder import require_new
from vila_core.errors import CheckpointError, ConfigError, OutputError, SettingError, first_problem, warn
from vila_core.new_file import cannot_write, make_folder, open_log, require_file, write_file
from vila_core.settings_changes import describe_changes
from vila_train.checkpoint_state import step_folders
from vila_train.config import TrainConfig
from vila_train.data.bad_samples import Skipped
from vila_train.data.mixture import PartState
from vila_train.packing.lanes import Order, SampleEncoder
from vila_train.plan import Plan, make_plan, resume_plan
from vila_train.run_lock import LOCK, is_unused, lock_number, only_run
from vila_train.step_log import forget_after, read_lines
from vila_train.tracking.log import EVALUATION, LOG
from vila_train.yaml_files import read_yaml

RUN, PLAN, SKIPPED, CHECKPOINTS, MODEL = "run.yaml", "plan.json", "skipped.jsonl", "checkpoints", "model"

CHANGEABLE = ("logging", "saving", "evaluation", "data.workers", "compute.sharded", "compute.keep_gathered")
"""Settings on which the trained weights do not depend."""


@dataclass(frozen=True)
class RunFolder:
    """The files of a run.

    Attributes:
        path: the folder.
        lock: `lock_number` of the folder while a run is at work in it.
    """

    path: Path
    lock: int | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def model(self) -> Path:
        return self.path / MODEL

    @property
    def plan(self) -> Plan | None:
        """The plan that was made when the run started; None before that.

        Raises:
            ConfigError: the file is damaged.
        """
        if not (self.path / PLAN).exists():
            return None
        try:
            return Plan.model_validate(read_json(self.path / PLAN))
        except ValidationError as error:
            problem = f"{self.path / PLAN} is damaged: {first_problem(error)}."
        except CheckpointError as error:
            problem = str(error)
        raise ConfigError(f"{problem} Delete this file: each checkpoint has a copy of it.")

    @property
    def is_complete(self) -> bool:
        """Whether the trained model is written."""
        return os.path.isfile(self.model / "config.json")  # an impossible name is no error yet

    @property
    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, intact or not; None before the first."""
        folders = step_folders(self.checkpoints)
        return int(folders[-1].name.removeprefix("step-")) if folders else None

    @property
    def has_started(self) -> bool:
        """Whether a step may have been done."""
        return (self.path / PLAN).exists() or any(self.checkpoints.glob("step-*"))

    def begin(self, config: TrainConfig, plan: Plan, step: int) -> None:
        """Write the configuration and the plan, and remove what was noted of steps after `step`: they are done again.

        Raises `OutputError`.
        """
        self._write(config, plan)
        forget_after(self.path / SKIPPED, step)

    def keep(self, config: TrainConfig, plan: Plan) -> None:
        """Before a checkpoint, write the files that resuming needs again if the folder was deleted or moved.

        Raises:
            OutputError: another run has taken its place, or it cannot be written.
        """
        found = lock_number(self.path)
        if found not in (None, self.lock):
            raise OutputError(
                f"{self.path} was deleted or moved, and another run has begun there. This one writes nothing into it."
            )
        if not (self.path / RUN).exists():
            warn(f"{self.path} was deleted or moved while the run is at work in it. It is made again.")
            make_folder(self.path)
            self._write(config, plan)

    def _write(self, config: TrainConfig, plan: Plan) -> None:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_file(self.path / RUN, text)
        if plan != self.plan:
            write_file(self.path / PLAN, plan.model_dump_json(indent=1) + "\n")

    def add_skipped(self, step: int, skipped: Iterable[Skipped]) -> None:
        """Note samples that could not be used. Raises `OutputError`."""
        lines = [json.dumps({"step": step, **vars(one)}, ensure_ascii=False) + "\n" for one in skipped]
        if not lines or not self.path.exists():  # the folder was deleted: `keep` makes it again
            return
        try:
            with open_log(self.path / SKIPPED) as file:
                file.writelines(lines)
        except OSError as error:
            raise cannot_write(self.path / SKIPPED, error) from error

    def was_evaluated(self, step: int) -> bool:
        """Return whether the scores after this step are noted."""
        return any(record["step"] == step for record in read_lines(self.path / EVALUATION))

    def save_failed_step(self, step: int, rank: int, rows: Iterable[Mapping[str, object]]) -> Path:
        """Write the rows of this rank in a step that failed. Return the folder."""
        folder = self.path / f"failed-step-{step}"
        make_folder(folder)
        write_file(folder / f"rank-{rank}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return folder


@contextmanager
def open_run(path: Path, config: TrainConfig, *, accept_changes: bool = False) -> Generator[RunFolder]:
    """Open a new folder, or that of an earlier call with the same configuration, and keep other runs out of it.

    Nothing but a lock is written: a run that is refused later changes nothing. Not even that is written into the folder
    of a complete run, which may be read-only.

    Args:
        path: the folder; created if it does not exist.
        config: of the run.
        accept_changes: take a folder whose run has another configuration.

    Raises:
        ConfigError: the folder holds something else, or a complete run with another configuration, or another run is
            at work in it.
        OutputError: it cannot be written.
    """
    make_folder(path)
    folder = RunFolder(path)
    require_own_folder(folder, config, accept_changes=accept_changes)
    if folder.is_complete:
        yield folder
        return
    with only_run(path):
        yield RunFolder(path, lock_number(path))


def require_own_folder(folder: RunFolder, config: TrainConfig, *, accept_changes: bool = False) -> None:
    """Raise `ConfigError` or `OutputError` unless a run with `config` may start or resume in `folder`.

    The folder may not exist yet. Nothing is written.
    """
    path = folder.path
    if not exists(path):
        return
    if (path / RUN).exists():
        if folder.is_complete or (folder.has_started and not accept_changes):
            _require_same(folder, config)
    else:
        require_unused(path)
    if not folder.is_complete:
        _require_writable_names(folder)


def _require_writable_names(folder: RunFolder) -> None:
    """Raise `VilaError` if what a run writes cannot get its name. Known before training, not after it."""
    for name in (RUN, PLAN, SKIPPED, LOG, EVALUATION, LOCK):
        require_file(folder.path / name)
    if folder.checkpoints.exists() and not folder.checkpoints.is_dir():
        raise OutputError(f"'{folder.checkpoints}' is not a folder. Checkpoints are written there: move it away.")
    if folder.model.exists():
        require_new(folder.model)


def exists(path: Path) -> bool:
    """Return whether there is something at `path`. Raises `OutputError` if there cannot be, as for too long a name."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error
    return True


def require_unused(path: Path) -> None:
    """Raise `ConfigError` if a folder holds other files, and `OutputError` if it is not a folder or cannot be read."""
    try:
        is_free = is_unused(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    if not is_free:
        raise ConfigError(f"{path} exists and is not empty. Choose another folder with --out.")


def choose_plan(
    folder: RunFolder,
    config: TrainConfig,
    order: Order,
    encode: SampleEncoder,
    world_size: int,
    datasets: tuple[PartState, ...] | None,
    *,
    saved: Plan | None,
    accept_changes: bool,
) -> Plan:
    """Return the plan that was made when the run started, with the steps that `config` asks for, or make one.

    `saved` is the plan in the newest checkpoint, which is used if the folder has lost its own.

    Raises `ConfigError` and `TrainingError` as `make_plan` and `resume_plan` do.
    """
    before = folder.plan or saved
    if before is None:
        return make_plan(config, order, encode, world_size, datasets)
    return resume_plan(before, config, order, encode, datasets, accept_changes=accept_changes)


def read_config(folder: Path) -> TrainConfig:
    """Return the configuration of the run in `folder`. Raises `ConfigError` if it holds none, or a damaged one."""
    path = folder / RUN
    if not path.exists():
        raise ConfigError(f"{folder} is not the folder of a training run: it has no {RUN}.")
    try:
        return TrainConfig.model_validate(read_yaml(path, ConfigError))
    except SettingError as error:
        raise ConfigError(f"'{path}' does not hold the settings of a run: {error.problem.with_value}.") from None


def _require_same(folder: RunFolder, config: TrainConfig) -> None:
    path = folder.path
    if folder.is_complete:
        advice = f"train its model further in another folder (--model {folder.model})"
    else:
        advice = "resume with the new settings (--accept-changes)"
    try:
        before = read_yaml(path / RUN, ConfigError)
    except ConfigError as error:
        raise ConfigError(f"{error} --accept-changes writes it anew, with the settings of this call.") from None
    changes = describe_changes(before, config.model_dump(mode="json"))
    refuse_changes(path, [change for change in changes if not change.startswith(CHANGEABLE)], advice)


def refuse_changes(path: Path, changes: Sequence[str], *advice: str) -> None:
    """Raise `ConfigError` if the run in the folder `path` has other settings: `changes` says which.

    `advice` is what to do besides running it as before or choosing another folder.
    """
    if changes:
        raise ConfigError(
            f"{path} holds a run with other settings: {changes[0]}. "
            f"{', '.join(['Run it as before to resume', *advice])}, or choose another folder with --out."
        )
