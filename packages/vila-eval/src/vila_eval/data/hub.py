"""A dataset repository on the hub, or a copy of it in a folder: reading its tables and unpacking its media."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from vila_eval.data.archives import unpack, written_whole
from vila_eval.errors import DataError
from vila_eval.texts import one_line

if TYPE_CHECKING:
    from datasets import Dataset

    from vila_eval.data.sources import DataOptions, HubDataset

FIXTURE_REVISION = "fixture"
"""Revision recorded for miniatures, so that their results are never mistaken for real ones."""


@dataclass(frozen=True)
class Repository:
    """A repository to read: a copy in `folder`, or the hub's at `revision` if `folder` is None."""

    name: str
    revision: str
    folder: Path | None
    options: DataOptions

    def read(self, source: HubDataset, config: str | None) -> Dataset:
        """Return one configuration of one split, without decoding images and videos. Raises `DataError`."""
        import datasets

        if self.folder is not None:
            datasets.disable_progress_bars()  # nothing is downloaded
        path = self.name if self.folder is None else str(self.folder)
        try:
            table = datasets.load_dataset(
                path,
                name=config,
                split=source.split,
                data_files=source.data_files if source.data_files is None else {source.split: source.data_files},
                revision=self.revision if self.folder is None else None,
                token=self.options.token,
                cache_dir=str(self.options.cache / "tables"),
                download_config=datasets.DownloadConfig(local_files_only=self.options.offline),
            )
        except Exception as error:
            raise DataError(_explain(self, source, config, error)) from error
        assert isinstance(table, datasets.Dataset), type(table)
        return table.with_format("arrow")  # rows as stored, with images and videos encoded

    def media(self, patterns: Sequence[str]) -> Path | None:
        """Return the folder that relative media paths start from, with archives unpacked."""
        if not patterns:
            return self.folder
        folder = self._download(patterns) if self.folder is None else self.folder
        archives = [
            path for path in sorted(folder.rglob("*")) if path.is_file() and self._is_archive(path, folder, patterns)
        ]
        if not archives:
            return folder
        stated = [(str(path.relative_to(folder)), path.stat().st_size) for path in archives]
        key = hashlib.sha256(repr((str(folder), self.revision, stated)).encode()).hexdigest()[:16]
        target = self.options.cache / "media" / self.name.replace("/", "--") / key
        if not target.exists():
            unpack(archives, target)
        return target

    def _is_archive(self, path: Path, folder: Path, patterns: Sequence[str]) -> bool:
        relative = path.relative_to(folder).as_posix()
        return any(fnmatch(relative, pattern) for pattern in patterns) and any(
            part in path.name for part in (".zip", ".tar", ".tgz")
        )

    def _download(self, patterns: Sequence[str]) -> Path:
        import huggingface_hub

        try:
            path = huggingface_hub.snapshot_download(
                self.name,
                repo_type="dataset",
                revision=self.revision,
                allow_patterns=list(patterns),
                token=self.options.token,
                local_files_only=self.options.offline,
            )
        except Exception as error:
            raise DataError(
                f"The media of {self.name} cannot be fetched: {_sentence(error)} {_ADVICE.format(self.name)}"
            ) from error
        return Path(path)


_ADVICE = (
    "Download it elsewhere with `hf download --repo-type dataset {0}` "
    "and give its location with --data DIR (the copy is DIR/{0})."
)


def open_repository(source: HubDataset, options: DataOptions) -> Repository:
    """Return the repository of `source`: its miniature, a local copy, or the hub. Raises `DataError`."""
    name = source.repository
    if options.fixtures:
        folder = write_fixture(name, source.fixture, options)
        return Repository(
            name, FIXTURE_REVISION, folder, replace(options, cache=_fixtures_folder(options.cache, os.getpid()))
        )
    if options.mirror is not None:
        folder = options.mirror / name
        if not folder.is_dir():
            raise DataError(f"There is no copy of {name} in '{options.mirror}': expected the folder '{folder}'.")
        return Repository(name, _digest_of_names(folder), folder, options)
    if source.media_from is not None:
        raise DataError(
            f"{name} does not contain its media. Get them from {source.media_from}. "
            f"{_ADVICE.format(name)} Put them into it."
        )
    return Repository(name, _resolve_commit(source, options), None, options)


def write_fixture(name: str, fixture: Callable[[Path], None] | None, options: DataOptions) -> Path:
    """Return the folder of a source's miniature, written once per process. Raises `DataError` if it has none."""
    if fixture is None:
        raise DataError(f"{name} has no miniature; leave --fixtures out, or give the source's `fixture`.")
    folder = _fixtures_folder(options.cache, os.getpid()) / "repositories" / name
    if not folder.exists():
        with written_whole(folder) as unfinished:
            fixture(unfinished)
    return folder


@functools.cache
def _fixtures_folder(cache: Path, process: int) -> Path:
    """Return the folder for a process's miniatures and their caches. It is removed when the process ends."""
    folder = cache / "fixtures" / str(process)
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process with this id
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _resolve_commit(source: HubDataset, options: DataOptions) -> str:
    import huggingface_hub

    if options.offline:
        return source.revision
    try:
        info = huggingface_hub.HfApi().dataset_info(source.repository, revision=source.revision, token=options.token)
    except Exception as error:
        raise DataError(
            f"The dataset {source.repository} cannot be reached: {_sentence(error)} {_ADVICE.format(source.repository)}"
        ) from error
    return str(info.sha)


def _digest_of_names(folder: Path) -> str:
    """Identify a copy by its files' names and sizes. Raises `DataError` for a pipe, device or socket among them."""
    stated: list[tuple[str, int]] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stated.append((path.relative_to(folder).as_posix(), path.stat().st_size))
        elif path.exists() and not path.is_dir():
            raise DataError(f"'{path}' is a pipe, device or socket, not a file. Remove it from the copy.")
    return f"copy-{hashlib.sha256(repr(stated).encode()).hexdigest()[:16]}"


def _sentence(error: Exception) -> str:
    text = one_line(str(error), 300) or type(error).__name__
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _explain(repository: Repository, source: HubDataset, config: str | None, error: Exception) -> str:
    where = repository.name if repository.folder is None else f"'{repository.folder}'"
    part = source.split if config is None else f"{config}, {source.split}"
    advice = "" if repository.folder is not None else f" {_ADVICE.format(repository.name)}"
    return f"The dataset {where} ({part}) cannot be read: {type(error).__name__}: {one_line(str(error), 300)}{advice}"
