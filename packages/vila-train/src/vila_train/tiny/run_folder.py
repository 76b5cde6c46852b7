"""The folder of a training run, from which the same command resumes after the last finished stage.

OUT/run.json      what is run: a run with other settings needs another folder
OUT/tokenizer/    the tokenizer
OUT/log.jsonl     one record per line
OUT/<stage>.pt    the state after each finished stage
OUT/vila-tiny/    the checkpoint, or vila-tiny-u/
OUT/scores.json   the scores on the test split; written last
OUT/test.md       the same as a table
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from vila_core.checkpoint.json_files import read_json
from vila_core.errors import CheckpointError, ConfigError
from vila_core.new_file import make_folder, write_file
from vila_core.settings_changes import describe_changes
from vila_train.run_folder import exists, refuse_changes, require_unused
from vila_train.tiny.evaluate import Score, table
from vila_train.tiny.loop import Stage

RUN, LOG, SCORES, TABLE = "run.json", "log.jsonl", "scores.json", "test.md"


def require_own_folder(path: Path, run: Mapping[str, object]) -> None:
    """Raise `ConfigError` or `OutputError` unless `run` may start or resume in the folder `path`. Nothing is written.

    The arguments are those of `RunFolder`.
    """
    if not exists(path):
        return
    if (path / RUN).exists():
        refuse_changes(path, describe_changes(_read(path / RUN), json.loads(json.dumps(run))))
    else:
        require_unused(path)


def _read(path: Path) -> dict[str, object]:
    """Return the object in a file of a run. Raises `ConfigError` if it is damaged."""
    try:
        return read_json(path)
    except CheckpointError as error:
        raise ConfigError(f"{error} Choose another folder with --out.") from None


class RunFolder:
    """A new folder, or that of an earlier call with the same settings.

    Args:
        path: the folder; created if it does not exist.
        run: everything that the result depends on, as JSON values.
        model: name of the model, and of the checkpoint's folder.

    Raises:
        ConfigError: the folder holds something else.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, run: Mapping[str, object], model: str):
        self.path = path
        self.model = model
        require_own_folder(path, run)
        make_folder(path)
        if not (path / RUN).exists():
            write_file(path / RUN, json.dumps(run, indent=2, sort_keys=True) + "\n")

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def checkpoint(self) -> Path:
        return self.path / self.model

    def delete_checkpoint(self) -> None:
        """Delete the checkpoint of a run that stopped before its scores."""
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    @property
    def scores(self) -> dict[str, Score] | None:
        """The scores of a complete run, None for an unfinished one. Raises `ConfigError` if they are damaged."""
        path = self.path / SCORES
        if not path.exists():
            return None
        scores = {task: _as_score(stored) for task, stored in _read(path).items()}
        if None in scores.values():
            raise ConfigError(
                f"{path} is damaged: expected right and total answers. Delete it to test the model again."
            )
        return {task: score for task, score in scores.items() if score is not None}

    def save_scores(self, scores: Mapping[str, Score]) -> None:
        """Mark the run as complete."""
        write_file(self.path / TABLE, table(scores) + "\n")
        write_file(
            self.path / SCORES, json.dumps({task: vars(score) for task, score in scores.items()}, indent=2) + "\n"
        )

    def save(self, stage: Stage) -> None:
        """Save the state after a finished stage."""
        stage.save(self.path / f"{stage.config.name}.pt")

    def has(self, stage: str) -> bool:
        """Return whether the state after the stage of this name was saved."""
        return (self.path / f"{stage}.pt").exists()

    def restore(self, stage: Stage) -> None:
        """Load the state after this stage. Raises `TrainingError` if it is damaged."""
        stage.resume(self.path / f"{stage.config.name}.pt")


def _as_score(stored: object) -> Score | None:
    """Return what `RunFolder.save_scores` wrote of a score; None if it did not write this."""
    match stored:
        case {"right": int(right), "total": int(total)} if 0 <= right <= total and total:
            return Score(right, total)
        case _:
            return None
