"""The folder of a training run. The same command resumes a run in it.

OUT/run.yaml            the configuration: a run with another one needs another folder
OUT/plan.json           rows per step, lanes and steps, worked out when the run started
OUT/skipped.jsonl       samples that could not be used
OUT/checkpoints/        to resume from
OUT/failed-step-…/      the batch of a step whose loss was not finite
OUT/model/              the trained model; written last
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from vila_core.checkpoint.json_files import read_json
from vila_core.errors import ConfigError, first_problem
from vila_core.new_file import cannot_write, make_folder, write_file
from vila_core.settings_changes import describe_changes
from vila_train.config import TrainConfig
from vila_train.data.bad_samples import Skipped
from vila_train.plan import Plan
from vila_train.step_lines import forget_after
from vila_train.yaml_files import read_yaml

RUN, PLAN, SKIPPED, CHECKPOINTS, MODEL = "run.yaml", "plan.json", "skipped.jsonl", "checkpoints", "model"

CHANGEABLE = ("logging", "saving", "evaluation", "data.workers", "compute.sharded", "compute.keep_gathered")
"""Settings on which the trained weights do not depend."""


@dataclass(frozen=True)
class RunFolder:
    """The files of a run in the folder `path`."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def model(self) -> Path:
        return self.path / MODEL

    @property
    def plan(self) -> Plan | None:
        """The plan of a run that has started before."""
        if not (self.path / PLAN).exists():
            return None
        try:
            return Plan.model_validate(read_json(self.path / PLAN))
        except ValidationError as error:
            raise ConfigError(f"{self.path / PLAN} is damaged: {first_problem(error)}.") from None

    def save_plan(self, plan: Plan) -> None:
        """Write the plan of a new run."""
        write_file(self.path / PLAN, plan.model_dump_json(indent=1) + "\n")

    def add_skipped(self, step: int, skipped: Iterable[Skipped]) -> None:
        """Note samples that could not be used. Raises `OutputError`."""
        lines = [json.dumps({"step": step, **vars(one)}, ensure_ascii=False) + "\n" for one in skipped]
        if not lines:
            return
        try:
            with (self.path / SKIPPED).open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            raise cannot_write(self.path / SKIPPED, error) from error

    def forget_after(self, step: int) -> None:
        """Remove what was noted of steps after `step`, which a resumed run does again."""
        forget_after(self.path / SKIPPED, step)

    def save_failed_step(self, step: int, rank: int, rows: Iterable[Mapping[str, object]]) -> Path:
        """Write the rows of this rank in a step that failed. Return the folder."""
        folder = self.path / f"failed-step-{step}"
        make_folder(folder)
        write_file(folder / f"rank-{rank}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return folder


def open_run(path: Path, config: TrainConfig, *, accept_changes: bool = False) -> RunFolder:
    """Return a new folder, or that of an earlier call with the same configuration.

    Args:
        path: the folder; created if it does not exist.
        config: of the run.
        accept_changes: take a folder whose run has another configuration, and note the new one.

    Raises:
        ConfigError: the folder holds something else.
        OutputError: it cannot be written.
    """
    make_folder(path)
    if (path / RUN).exists():
        if not accept_changes and (path / PLAN).exists():  # without a plan, no step was done
            _require_same(path, config)
    elif any(path.iterdir()):
        raise ConfigError(f"{path} exists and is not empty. Choose another folder with --out.")
    write_file(path / RUN, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    return RunFolder(path)


def read_config(folder: Path) -> TrainConfig:
    """Return the configuration of the run in `folder`. Raises `ConfigError` if it holds none."""
    if not (folder / RUN).exists():
        raise ConfigError(f"{folder} is not the folder of a training run: it has no {RUN}.")
    return TrainConfig.model_validate(read_yaml(folder / RUN, ConfigError))


def _require_same(path: Path, config: TrainConfig) -> None:
    changes = describe_changes(read_yaml(path / RUN, ConfigError), config.model_dump(mode="json"))
    refuse_changes(
        path,
        [change for change in changes if not change.startswith(CHANGEABLE)],
        "resume with the new settings (--accept-changes)",
    )


def refuse_changes(path: Path, changes: Sequence[str], *advice: str) -> None:
    """Raise `ConfigError` if the run in the folder `path` has other settings: `changes` says which.

    `advice` is what to do besides running it as before or choosing another folder.
    """
    if changes:
        raise ConfigError(
            f"{path} holds a run with other settings: {changes[0]}. "
            f"{', '.join(['Run it as before to resume', *advice])}, or choose another folder with --out."
        )
