"""Checkpoints to resume from: trained weights and optimizer state in shards, and where the data stand.

OUT/checkpoints/step-00000200/      written under another name, and renamed when everything is on disk
    *.distcp, .metadata             torch.distributed.checkpoint: readable by any number of ranks
    state.json                      step, lanes, counts, and the checksum of each file and of itself

Frozen weights are not saved: they are those that the run started from.
"""

import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch.serialization import get_crc32_options, set_crc32_options

from vila_core.errors import CheckpointError, OutputError, VilaError, warn
from vila_core.new_file import cannot_write, make_folder
from vila_train.checkpoint_reader import CheckpointReader
from vila_train.checkpoint_state import (
    Progress,
    file_checksum,
    file_damage,
    flush,
    folder_name,
    read_progress,
    step_folders,
    write_progress,
)
from vila_train.errors import TrainingError
from vila_train.parallel.world import World

PARTIAL = ".part"
_ROUNDED = re.compile(r"parametrizations\.(\w+)\.original")
"""Added to names by `compute.master_weights`."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run.

    Attributes:
        folder: holds them.
        keep: how many of the newest stay.
        world: all ranks write and read together.
    """

    folder: Path
    keep: int
    world: World

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> Path:
        """Write a checkpoint completely or not at all, then delete the oldest. Return its folder.

        Raises:
            OutputError: it cannot be written. Earlier checkpoints are intact.
        """
        target = self.folder / folder_name(progress.step)
        partial = self.folder / f".{target.name}{PARTIAL}"
        problem = self._agree(_failure(target, lambda: self._prepare(partial)))
        own: dict[str, int] = {}
        if problem is None:
            problem = self._agree(_failure(target, lambda: own.update(self._write(partial, network, optimizer))))
        if problem is None:
            files = {name: checksum for of_rank in self.world.gather(own) for name, checksum in of_rank.items()}
            if self.world.is_first:
                problem = _failure(target, lambda: self._finish(partial, target, progress, files))
            problem = self._agree(problem)
        if problem is not None:
            if self.world.is_first:
                shutil.rmtree(partial, ignore_errors=True)
            before = self._intact(target)
            raise OutputError(f"The checkpoint of step {progress.step:,} was not saved. {before} {problem}")
        return target

    def _prepare(self, partial: Path) -> None:
        if self.world.is_first:
            make_folder(self.folder)
            for left in self.folder.glob(f".step-*{PARTIAL}"):  # by a killed run, perhaps of another step
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir()

    def _write(self, partial: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
        """Write the tensors. Return the checksums of the files of this rank, which its node still has in memory."""
        tensors = {**trained_weights(network), **_optimizer_tensors(network, optimizer)}
        with _without_zip_checksums(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no process group
            save_tensors(tensors, checkpoint_id=partial, no_dist=not dist.is_initialized())
        return {file.name: file_checksum(file) for file in partial.glob(f"__{self.world.rank}_*")}

    def _finish(self, partial: Path, target: Path, progress: Progress, files: Mapping[str, int]) -> None:
        """Complete and rename the folder, `files` of which have these checksums."""
        _require_all_files(partial)
        others = {file.name: file_checksum(file) for file in partial.iterdir() if file.name not in files}
        write_progress(partial, progress, {**others, **files})
        shutil.rmtree(target, ignore_errors=True)  # a damaged one, or one of a run whose end was lost
        flush(partial)
        partial.rename(target)
        flush(self.folder)  # earlier ones are deleted only when this one survives a power failure
        # Later ones are damaged, or the run would have resumed from them.
        for old in [folder for folder in self.complete() if folder.name <= target.name][: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def complete(self) -> list[Path]:
        """Return the folders of all checkpoints, oldest first."""
        return step_folders(self.folder)

    def newest(self) -> tuple[Path, Progress] | None:
        """Return the newest intact checkpoint; None before the first. A warning names damaged ones.

        A run that is at work may save new ones and delete old ones meanwhile.

        Raises:
            TrainingError: all of them are damaged.
        """
        problem = None
        seen: list[Path] = []
        while left := [folder for folder in self.world.share(self.complete()) if folder not in seen]:
            folder = left[-1]
            seen.append(folder)
            try:
                return folder, self._read(folder)
            except CheckpointError as error:
                problem = str(error)
                if self.world.is_first:
                    warn(f"{problem} The checkpoint before it is used.")
        if problem is not None:
            raise TrainingError(
                f"{problem} No other checkpoint is left in {self.folder}. Delete the run's folder to start again."
            )
        return None

    def _read(self, folder: Path) -> Progress:
        """Return the state of a checkpoint, all of whose files are intact. Each rank reads some of them.

        Raises:
            CheckpointError: a file is missing, incomplete or changed.
        """
        progress = self.world.first(lambda: read_progress(folder))
        own = sorted(progress.files)[self.world.rank :: self.world.size]
        problem = self._agree(
            next(filter(None, (file_damage(folder / name, progress.files[name]) for name in own)), None)
        )
        if problem is not None:
            raise CheckpointError(problem)
        return progress

    def load(self, folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Fill the trained weights and the optimizer from a checkpoint, on any number of ranks.

        Raises:
            TrainingError: its tensors are not those of this model.
        """
        states = _empty_optimizer_tensors(network, optimizer, _stored(folder))
        self._load(folder, {**trained_weights(network), **states})
        _set_optimizer_tensors(network, optimizer, states)

    def load_weights(self, folder: Path, network: nn.Module) -> None:
        """Fill the trained weights from a checkpoint. Raises `TrainingError` as `load` does."""
        self._load(folder, trained_weights(network))

    def require_weights(self, folder: Path, network: nn.Module) -> None:
        """Raise `TrainingError` unless a checkpoint has the trained weights of `network`, which may have no values."""
        _require_tensors(folder, trained_weights(network))

    def _load(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        _require_tensors(folder, tensors)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_tensors(tensors, storage_reader=CheckpointReader(folder), no_dist=self.world.size == 1)
        except (CheckpointException, RuntimeError, ValueError, OSError) as error:
            raise TrainingError(f"{folder} cannot be loaded: {_reason(error, folder, _unreadable)}") from error

    def _agree(self, problem: str | None) -> str | None:
        """Return the first problem of any rank."""
        return next((one for one in self.world.gather(problem) if one is not None), None)

    def _intact(self, target: Path) -> str:
        before = [folder for folder in self.complete() if folder.name < target.name]
        return f"The one before is intact: {before[-1]}." if before else "There is no earlier one."


@contextmanager
def _without_zip_checksums() -> Generator[None]:
    """Let torch leave out the checksum of each tensor, half of the work of saving: `state.json` has those of files."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


def _stored(folder: Path) -> Mapping[str, Any]:
    """Return what the checkpoint in `folder` says of its tensors, by name."""
    return CheckpointReader(folder).read_metadata().state_dict_metadata


def _require_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    stored = _stored(folder)
    for name, tensor in tensors.items():
        if name not in stored:
            raise TrainingError(f"{folder} has no tensor {name}. It is a checkpoint of another run.")
        if tensor.shape != stored[name].size:
            raise TrainingError(
                f"{folder} holds {name} of shape {tuple(stored[name].size)}, but this run's has "
                f"{tuple(tensor.shape)}. It is a checkpoint of another run."
            )


def _require_all_files(folder: Path) -> None:
    """Raise `OutputError` unless the files of all ranks are in `folder`."""
    stored = CheckpointReader(folder).read_metadata().storage_data or {}
    for name in sorted({info.relative_path for info in stored.values()}):
        if not (folder / name).exists():
            raise OutputError(
                f"{name} of another rank is not in {folder}. All nodes need to write to one folder: choose --out on a "
                "file system that they share."
            )


def parameter_name(name: str) -> str:
    """Return the name of a parameter without what compiling, recomputing and rounding add to it."""
    name = name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")
    return _ROUNDED.sub(r"\1", name)


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the trained weights of `network` by name, which share its memory."""
    return {
        f"model.{parameter_name(name)}": parameter.detach()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def _named_states(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[nn.Parameter, Any]]:
    return {
        parameter_name(name): (parameter, optimizer.state.get(parameter, {}))
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def _optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors by name. A weight that never had a gradient has none."""
    return {
        f"optimizer.{kind}.{name}": tensor
        for name, (_, state) in _named_states(network, optimizer).items()
        for kind, tensor in state.items()
    }


def _empty_optimizer_tensors(
    network: nn.Module, optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return tensors for what is stored of AdamW's state, in the layout of the weights on this rank."""
    tensors: dict[str, Tensor] = {}
    for name, (parameter, _) in _named_states(network, optimizer).items():
        for kind in ("exp_avg", "exp_avg_sq"):
            if (key := f"optimizer.{kind}.{name}") in stored:
                tensors[key] = torch.zeros_like(parameter)
        if (key := f"optimizer.step.{name}") in stored:
            device = parameter.device if optimizer.defaults["fused"] else "cpu"
            tensors[key] = torch.zeros((), device=device)
    return tensors


def _set_optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    for name, (parameter, _) in _named_states(network, optimizer).items():
        state = {kind: tensors.get(f"optimizer.{kind}.{name}") for kind in ("step", "exp_avg", "exp_avg_sq")}
        if state["step"] is not None:
            optimizer.state[parameter] = state


def _failure(folder: Path, action: Callable[[], object]) -> str | None:
    """Write to a checkpoint, `folder`, with `action`. Return why that failed; None if it did not."""
    try:
        action()
    except (OSError, OutputError, CheckpointException, RuntimeError) as error:
        return _reason(error, folder, cannot_write)
    return None


def _unreadable(path: Path, error: OSError) -> TrainingError:
    return TrainingError(f"'{path}' cannot be read: {error.strerror or error}.")


def _reason(error: BaseException, folder: Path, describe: Callable[[Path, OSError], VilaError]) -> str:
    """Return the message of an error for people; torch wraps those of each rank, and does not name their files.

    Args:
        error: what was raised.
        folder: of the checkpoint.
        describe: makes the message for a file.
    """
    if isinstance(error, pickle.UnpicklingError | LookupError | EOFError):  # torch advises to load them without a check
        return "one of its files holds something else than tensors."
    if isinstance(error, CheckpointException):
        inner: Sequence[Any] = [*error.failures.values()]
        first = inner[0][0] if inner and isinstance(inner[0], tuple) else next(iter(inner), None)
        return str(error) if first is None else _reason(first, folder, describe)
    cause = next((one for one in (error, error.__cause__, error.__context__) if isinstance(one, OSError)), None)
    return str(error) if cause is None else str(describe(Path(str(cause.filename or folder)), cause))
