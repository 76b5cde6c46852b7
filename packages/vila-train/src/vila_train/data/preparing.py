"""`vila-train data prepare`: a downloaded public data set becomes an entry of a registry, after a check."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from vila_core.child_process import end_with_parent
from vila_core.new_file import write_file
from vila_train.data.checking import Findings, check_source
from vila_train.data.conversations import ConversationSource
from vila_train.data.entries import DatasetEntry, RegistryFile
from vila_train.data.opening import open_dataset
from vila_train.data.public_sets import find_public_set
from vila_train.data.registry import read_registry
from vila_train.data.sources import Records
from vila_train.data.subsets import write_subset
from vila_train.errors import DatasetError

REGISTRY = "vila-datasets.yaml"
"""Name of the registry that is written into the folder of a data set."""


@dataclass(frozen=True)
class Prepared:
    """A prepared data set.

    Attributes:
        entry: of the registry.
        registry: the file that was written.
        findings: of the check.
        names: that a mixture can have now.
    """

    entry: DatasetEntry
    registry: Path
    findings: Findings
    names: tuple[str, ...]


def prepare_public_set(
    name: str,
    folder: Path,
    limit: int | None,
    decode: bool,
    processes: int = 1,
    start: Callable[[int], None] = lambda total: None,
    on_sample: Callable[[], None] = lambda: None,
) -> Prepared:
    """Find a public data set in a folder, index and check it, and write a registry beside it.

    Args:
        name: of the public data set.
        folder: that it was downloaded to.
        limit: check at most so many samples; None checks all.
        decode: load media too.
        processes: that index files at the same time.
        start: called with the number of samples to check, before they are.
        on_sample: called after each.

    Raises:
        DatasetError: its files are not there or damaged, none of the checked samples can be used, or the folder has a
            registry that is damaged or has a mixture of that name.
        OutputError: the registry cannot be written.
    """
    public = find_public_set(name)
    registry = folder / REGISTRY
    others = read_registry(registry) if registry.exists() else RegistryFile()  # before minutes of checking
    if name in others.mixtures:
        raise DatasetError(f"'{registry}' has a mixture that is called {name}. Rename it.")
    entry = public.locate(name, folder)
    source = open_dataset(name, entry, folder, build=lambda files: build_indexes(files, processes))
    start(len(source) if limit is None else min(limit, len(source)))
    findings = check_source(source, limit, decode, on_sample)
    if not findings.usable:
        raise DatasetError(f"No sample of {name} in '{folder}' can be used. The first: {findings.first[0]}")
    if public.evenly is not None and public.evenly < len(source):
        entry = _keep_evenly(name, entry, folder, source, public.evenly)
    write_registry(registry, others.model_copy(update={"datasets": {**others.datasets, name: entry}}))
    return Prepared(entry, registry, findings, (name, *(f"{name}@{subset}" for subset in entry.subsets)))


def build_indexes(files: Sequence[Records], processes: int) -> None:
    """Find the samples of files in several processes; their indexes are then read from the cache.

    Raises `DatasetError` if a file is damaged.
    """
    if min(processes, len(files)) < 2:
        return
    with ProcessPoolExecutor(min(processes, len(files)), get_context("spawn"), end_with_parent) as pool:
        for _ in pool.map(len, files, chunksize=1):
            pass


def _keep_evenly(name: str, entry: DatasetEntry, folder: Path, source: ConversationSource, count: int) -> DatasetEntry:
    """Write a subset of `count` samples, evenly spread, and return the entry with it."""
    subset = f"{count // 1_000_000}m" if count % 1_000_000 == 0 else str(count)
    file = f"{name}.{subset}.txt"
    indices = np.linspace(0, len(source) - 1, count).astype(np.int64)
    write_subset(folder / file, name, len(source), np.unique(indices))
    return entry.model_copy(update={"subsets": {subset: file}})


def write_registry(path: Path, content: RegistryFile) -> None:
    """Write a registry file. Raises `OutputError`."""
    import yaml

    values = content.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    write_file(path, f"# Written by vila-train data prepare. Paths are relative to this file.\n{text}")
