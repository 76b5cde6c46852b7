"""A dataset repository on the hub, or a copy of it in a folder: reading its tables and unpacking its media."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vila_eval.errors import DataError

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
                f"The media of {self.name} cannot be fetched: {error} {_ADVICE.format(self.name)}"
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
        with _written_whole(folder) as unfinished:
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
            f"The dataset {source.repository} cannot be reached: {error} {_ADVICE.format(source.repository)}"
        ) from error
    return str(info.sha)


def _digest_of_names(folder: Path) -> str:
    """Identify a copy by the names and sizes of its files."""
    stated = [
        (path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return f"copy-{hashlib.sha256(repr(stated).encode()).hexdigest()[:16]}"


def _explain(repository: Repository, source: HubDataset, config: str | None, error: Exception) -> str:
    where = repository.name if repository.folder is None else f"'{repository.folder}'"
    part = source.split if config is None else f"{config}, {source.split}"
    advice = "" if repository.folder is not None else f" {_ADVICE.format(repository.name)}"
    return f"The dataset {where} ({part}) cannot be read: {type(error).__name__}: {error}{advice}"


# ------------------------------------------------------------------------------------------------ archives


def unpack(archives: Sequence[Path], target: Path) -> None:
    """Unpack zip and tar archives (joining parts) into the new folder `target`, atomically. Raises `DataError`."""
    with _written_whole(target) as unfinished:
        for name, parts in _joined(archives).items():
            try:
                with _concatenated(parts, unfinished) as file:
                    if ".zip" in name:
                        with zipfile.ZipFile(file) as archive:
                            archive.extractall(unfinished)  # which drops absolute paths and ".."
                    else:
                        with tarfile.open(fileobj=file) as archive:
                            archive.extractall(unfinished, filter="data")
            except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
                raise DataError(
                    f"The archive '{name}' cannot be unpacked: {error}. Delete it and fetch it again."
                ) from error


def _joined(archives: Sequence[Path]) -> dict[str, list[Path]]:
    """Group the parts of split archives: "v.tar.part.aa", "v.tar.part.ab" -> "v.tar"."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(archives):
        stem = path.name.partition(".part")[0]
        groups.setdefault(str(path.with_name(stem)), []).append(path)
    return groups


@contextmanager
def _concatenated(parts: Sequence[Path], scratch: Path) -> Generator[BinaryIO]:
    if len(parts) == 1:
        with parts[0].open("rb") as file:
            yield file
        return
    joined = scratch / ".joined"
    with joined.open("w+b") as file:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, file)
        file.seek(0)
        yield file
    joined.unlink()


@contextmanager
def _written_whole(folder: Path) -> Generator[Path]:
    """Yield a temporary folder that is renamed to `folder` on success and removed on failure."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        yield unfinished
        if folder.exists():  # another process was faster
            shutil.rmtree(unfinished)
        else:
            unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
