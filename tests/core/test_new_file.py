"""Files are written completely or not at all."""

import errno
import os
from pathlib import Path

import pytest

from vila_core.errors import OutputError
from vila_core.new_file import make_folder, new_file, open_log, umask, write_file


def test_a_file_appears_with_its_whole_content(tmp_path: Path) -> None:
    write_file(tmp_path / "a.txt", "grün\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "grün\r\n".encode()
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask()
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, raised: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises((OutputError, KeyboardInterrupt)) as caught, new_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise raised
    if isinstance(caught.value, OutputError):
        assert "the disk is full" in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_impossible_paths_are_one_line_errors(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (
        tmp_path / "none" / "a",
        tmp_path / "folder",
        tmp_path / ("x" * 300),
        Path("/proc/version"),
        Path("a\0b"),
    ):
        with pytest.raises(OutputError) as caught:
            write_file(path, "text")
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "folder").iterdir())
    with pytest.raises(OutputError):
        make_folder(Path("/dev/null/x"))


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "link to a device", "folder"])
def test_only_files_are_replaced(kind: str, tmp_path: Path) -> None:
    path, pipe = tmp_path / "out", tmp_path / "pipe"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(pipe)
        path.symlink_to(pipe if "pipe" in kind else "/dev/null")
    before = path.lstat().st_ino
    with pytest.raises(OutputError, match=r"it is a (named pipe|device|folder), not a file"):
        write_file(path, "text")
    assert path.lstat().st_ino == before
    assert {file.name for file in tmp_path.iterdir()} <= {"out", "pipe"}


def test_a_link_to_a_file_is_replaced_and_the_file_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_file(tmp_path / "link", "new")
    assert ((tmp_path / "link").read_text(), (tmp_path / "file").read_text()) == ("new", "old")


def test_other_errors_of_the_block_pass_through(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), new_file(tmp_path / "a"):
        raise ValueError("mine")
    assert not list(tmp_path.iterdir())


def test_lines_of_a_log_are_in_the_file_at_once(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    with open_log(tmp_path / "log") as file:
        file.write("grün\n")
        assert (tmp_path / "log").read_bytes() == "before\ngrün\n".encode()
    with open_log(tmp_path / "new"):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~umask()


@pytest.mark.parametrize("kind", ["pipe", "read pipe", "device", "folder"])
def test_a_log_is_no_pipe(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = None
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if kind == "read pipe" else None
    with pytest.raises(OutputError, match=r"cannot be written: it is a (named pipe|device|folder), not a file"):
        open_log(path)
    if reader is not None:
        os.close(reader)
