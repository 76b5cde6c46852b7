"""The model that a run started from. Checkpoints have only what was trained, which fits no other weights."""

from collections.abc import Mapping
from pathlib import Path

from vila_core.checkpoint import Checkpoint, open_checkpoint
from vila_core.checkpoint.embedded import EMBEDDED_MODEL
from vila_core.checkpoint.fingerprints import changed_file, checkpoint_files, file_fingerprint
from vila_core.checkpoint.opening import find_folder
from vila_core.errors import ConfigError
from vila_train.config import ModelConfig
from vila_train.new_model import open_parts


def open_base(config: ModelConfig) -> Checkpoint:
    """Return the checkpoint, or the parts of a new model, that training starts from. No weights are read.

    Raises:
        CheckpointError: it is missing or damaged.
        ConfigError: parts of a new model do not fit, or both are named.
    """
    if config.path is not None and config.new is not None:
        raise ConfigError("Both model.path and model.new are set. Set one of them to null.")
    return open_parts(config.new) if config.new is not None else open_checkpoint(config.path or EMBEDDED_MODEL)


def fingerprint_base(config: ModelConfig) -> dict[str, str]:
    """Return the fingerprint of each file of the base model, by part and name. Raises as `open_base` does."""
    return {name: file_fingerprint(file) for name, file in _files(config).items()}


def require_same_base(config: ModelConfig, before: Mapping[str, str], now: Mapping[str, str], *advice: str) -> None:
    """Raise `ConfigError` if a file of the base model is not the one that a run started from.

    Args:
        config: of the model.
        before: fingerprints when the run started.
        now: present ones.
        advice: what to do besides putting the file back.
    """
    if (changed := changed_file(before, now)) is None:
        return
    if changed not in now:
        problem = f"the model has no {changed} any more"
    else:
        problem = f"'{_files(config)[changed]}' {'has changed' if changed in before else 'is new'}"
    raise ConfigError(
        f"The model that the run started from is another one now: {problem}. What the run trained fits only the "
        f"earlier weights. {', or '.join(['Put them back', *advice])}."
    )


def _files(config: ModelConfig) -> dict[str, Path]:
    """Return the files of the base model by part and name, such as "model/llm/config.json", wherever they are."""
    checkpoint = open_base(config)
    roots = {"model": checkpoint.path}
    if config.new is not None:
        tower = find_folder(config.new.vision_tower, kind="vision tower")
        roots = {"language_model": checkpoint.path, "vision_tower": tower}
    elif checkpoint.adapter is not None:
        roots["adapter"] = checkpoint.adapter
    return {_name(file, roots): file for file in checkpoint_files(checkpoint)}


def _name(file: Path, roots: Mapping[str, Path]) -> str:
    inside = ((part, root) for part, root in roots.items() if file.is_relative_to(root))
    part, root = next(inside, ("elsewhere", file.parent))
    return f"{part}/{file.relative_to(root).as_posix()}"
