"""`prune`: score the datasets of a mixture with two models, and write what to keep of each.

OUT/settings.json                    the models, their files, and the data: other ones need another folder
OUT/DATASET.small.jsonl, .large.jsonl  the scores of both models, one line per sample
OUT/DATASET.txt                      the samples to keep: train on `DATASET@OUT/DATASET.txt`
"""

import gc
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

import vila_core
from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.json_files import read_json
from vila_core.cli.progress import NoProgress, Progress
from vila_core.errors import ConfigError
from vila_core.new_file import make_folder, write_file
from vila_core.settings_changes import describe_changes
from vila_train.base_model import fingerprint_base
from vila_train.config import ModelConfig
from vila_train.data.conversations import ConversationSource
from vila_train.data.fingerprints import dataset_fingerprint
from vila_train.data.registry import open_registry
from vila_train.data.subsets import write_subset
from vila_train.errors import DatasetError, TrainingError
from vila_train.pruning.scoring import AnswerScore, score_answers
from vila_train.pruning.selection import Selection, select
from vila_train.run_lock import is_unused, only_run

MAX_LENGTH = 8192
SETTINGS = "settings.json"


@dataclass(frozen=True)
class PruneOptions:
    """Options of pruning: the models, the data, and how they are scored.

    Attributes:
        small, large: folders or hub ids of the two models.
        data: a mixture; its weights do not matter.
        registries: YAML files that define more datasets.
        max_length: longest samples, in tokens; None: what both models take, at most 8192.
        per_token: divide the score of a sample by the tokens of its answers. Long answers differ more.
    """

    small: str
    large: str
    data: str
    registries: tuple[str, ...] = ()
    max_length: int | None = None
    per_token: bool = False


@dataclass(frozen=True)
class Pruned:
    """The samples of a dataset that are kept.

    Attributes:
        dataset: its name.
        path: of the subset file.
        selection: what is kept, and why others are not.
        failed: samples without a score, by reason.
    """

    dataset: str
    path: Path
    selection: Selection
    failed: Counter[str]


def prune(
    options: PruneOptions,
    out: Path,
    *,
    keep: float = 0.5,
    drop_hardest: float = 0.0,
    min_score: float | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Pruned]:
    """Score and select the samples of each dataset. The same call resumes; other shares select anew from the scores.

    Args:
        options: what is scored.
        out: folder.
        keep: see `select`.
        drop_hardest: see `select`.
        min_score: see `select`.
        device: of the models, which are loaded one after the other.
        progress: counts samples.

    Raises:
        CheckpointError: a model is missing or damaged.
        ConfigError: `out` holds other scores, or a share is out of range.
        DatasetError: the mixture cannot be opened, or names a part of a dataset.
        TrainingError: nothing of a dataset is left, or none of its samples has a score above 0.
        OutputError: a file cannot be written.
    """
    choose = partial(select, keep=keep, drop_hardest=drop_hardest, min_score=min_score)
    choose(np.zeros(0))  # checks the shares before hours of scoring
    shown = progress or NoProgress()
    datasets = _open_datasets(options)
    lengths = [open_checkpoint(path).config.language_model.max_length for path in (options.small, options.large)]
    max_length = options.max_length or min(*lengths, MAX_LENGTH)
    with only_run(_own_folder(out)):
        return _prune(options, out, datasets, max_length, choose, device, shown)


def _prune(
    options: PruneOptions,
    out: Path,
    datasets: Mapping[str, ConversationSource],
    max_length: int,
    choose: Callable[[npt.NDArray[np.float64]], Selection],
    device: str,
    progress: Progress,
) -> list[Pruned]:
    _claim(out, options, datasets)
    scores: dict[str, dict[str, list[AnswerScore]]] = {name: {} for name in datasets}
    for role, path in (("small", options.small), ("large", options.large)):
        load = cache(partial(vila_core.load, path, device=device))
        for name, source in datasets.items():
            file = out / f"{file_name(name)}.{role}.jsonl"
            scores[name][role] = score_answers(load, source, file, max_length, progress)
        del load
        gc.collect()  # the large model may need the room of the small one
    return [_select(name, scores[name], out, options, choose) for name in datasets]


def _open_datasets(options: PruneOptions) -> dict[str, ConversationSource]:
    registry = open_registry([Path(file) for file in options.registries])
    found: dict[str, ConversationSource] = {}
    for item in registry.resolve(options.data):
        if item.subset is not None:
            raise DatasetError(
                f"'{item.name}@{item.subset}' is a part of a dataset. Prune all of '{item.name}': a part of a part has "
                "no name in a mixture."
            )
        source = registry.open(item)
        if not len(source):
            raise DatasetError(f"The dataset '{item.name}' has no samples.")
        found[item.name] = source
    if twice := [name for name, count in Counter(map(file_name, found)).items() if count > 1]:
        raise DatasetError(f"Two datasets would be written to {twice[0]}.txt. Prune them one by one.")
    return found


def file_name(dataset: str) -> str:
    """Return a dataset's name, or the last part of its path, as the name of a file."""
    return re.sub(r"[^\w.-]", "_", Path(dataset).stem if "/" in dataset or "." in dataset else dataset)


def _own_folder(out: Path) -> Path:
    """Return the folder `out`, which is created. Raises `ConfigError` if it holds something else than scores."""
    make_folder(out)
    if not (out / SETTINGS).exists() and not is_unused(out):
        raise ConfigError(f"{out} exists and is not empty. Choose another folder with --out.")
    return out


def _claim(out: Path, options: PruneOptions, datasets: Mapping[str, ConversationSource]) -> None:
    """Note the models and the data. Raises `ConfigError` if the folder holds scores of others.

    Args:
        out: the folder.
        options: that name the models and the data.
        datasets: by name.
    """
    models = {"small": options.small, "large": options.large}
    files = {role: fingerprint_base(ModelConfig(path=path)) for role, path in models.items()}
    noted = {
        "samples": {name: len(source) for name, source in datasets.items()},
        "data_fingerprints": {name: dataset_fingerprint(source) for name, source in datasets.items()},
        "files": files,
    }
    chosen = json.loads(json.dumps({**asdict(options), "per_token": None, **noted}))
    path = out / SETTINGS
    if path.exists() and any(file.stat().st_size for file in out.glob("*.jsonl")):
        before = {**noted, **read_json(path)}  # an earlier version noted none
        if changes := describe_changes(before, chosen):
            raise ConfigError(
                f"{out} holds scores of something else: {changes[0]}. Restore it, or choose another --out."
            )
    write_file(path, json.dumps(chosen, indent=1) + "\n")


def delta_losses(
    small: Sequence[AnswerScore], large: Sequence[AnswerScore], per_token: bool
) -> npt.NDArray[np.float64]:
    """Return log(p_large / p_small) of each sample; NaN if one of the models has no score for it."""
    deltas = np.full(len(small), np.nan)
    for place, (a, b) in enumerate(zip(small, large, strict=True)):
        if a.log_p is None or b.log_p is None:
            continue
        # The models may have different tokenizers.
        deltas[place] = b.log_p / b.tokens - a.log_p / a.tokens if per_token else b.log_p - a.log_p
    return deltas


def _select(
    name: str,
    scores: dict[str, list[AnswerScore]],
    out: Path,
    options: PruneOptions,
    choose: Callable[[npt.NDArray[np.float64]], Selection],
) -> Pruned:
    small, large = scores["small"], scores["large"]
    deltas = delta_losses(small, large, options.per_token)
    selection = choose(deltas)
    reasons = (a.reason or b.reason for a, b in zip(small, large, strict=True))
    failed = Counter(reason for reason in reasons if reason is not None)
    counts = ", ".join(f"{count:,} {reason}" for reason, count in failed.items())
    found = f"of {len(deltas):,} samples {selection.scored:,} have a score{f' ({counts})' if counts else ''}"
    if not selection.scored:
        raise TrainingError(f"'{name}': none of {len(deltas):,} samples has a score ({counts}).")
    if not (deltas > 0).any():
        raise TrainingError(f"'{name}': {found}, and none is above 0. Is the large model the better one?")
    if not len(selection.kept):
        raise TrainingError(f"Nothing of '{name}' is left: {found}. Change --drop-hardest or --min-score.")
    path = out / f"{file_name(name)}.txt"
    write_subset(path, name, len(deltas), selection.kept)
    return Pruned(name, path, selection, failed)
