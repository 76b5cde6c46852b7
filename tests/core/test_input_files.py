"""Files that others made are opened by one function, which never waits and names what it refuses."""

import gzip
import io
import os
import socket
import tarfile
import zipfile
from pathlib import Path

import pytest

from vila_core.errors import CheckpointError, ConfigError, MediaError, VilaError, listed, printable, shown
from vila_core.file_names import require_file_name
from vila_core.input_files import (
    Content,
    check_input,
    copy_input,
    open_input,
    open_regular_file,
    read_input,
    read_input_text,
)

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daa\nsize 12345\n"
)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # socket paths are short
        server.bind(path.name)


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)


SPECIAL = {
    "folder": (Path.mkdir, "is a folder"),
    "pipe": (os.mkfifo, "is a named pipe"),
    "socket": (make_socket, "is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "terminal": (lambda path: path.symlink_to("/dev/tty"), "is a device|cannot be read"),
    "sparse": (make_sparse, "has 1,000,000,000,000 bytes, more than the 100"),
    "loop": (lambda path: path.symlink_to(path), "is a symbolic link that leads back to itself"),
    "dangling": (lambda path: path.symlink_to("blobs/abc"), "symbolic link to 'blobs/abc', which does not exist"),
    "missing": (lambda path: None, "is missing"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_files_are_refused_without_waiting(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = SPECIAL[kind]
    make(tmp_path / "file")
    with pytest.raises(MediaError, match=message):
        read_input(tmp_path / "file", max_bytes=100, error=MediaError, advice="Choose another file.")


@pytest.mark.parametrize("kind", [kind for kind in SPECIAL if kind != "sparse"])
def test_code_that_handles_os_errors_gets_one(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SPECIAL[kind][0](tmp_path / "file")
    with pytest.raises(OSError):
        open_regular_file(tmp_path / "file")


def test_a_regular_file_opens_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    file, size = open_regular_file(tmp_path / "file")
    with file:
        assert (file.read(), size) == (b"abc", 3)


@pytest.mark.parametrize("path", ["a\0b", "a" * 5000, "\ud800"])
def test_impossible_names_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"possible file name|cannot be read|is missing"):
        read_input(tmp_path / path, max_bytes=100)


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "b")
    return buffer.getvalue()


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


STAND_INS = {
    LFS_POINTER: "is a Git LFS pointer, not the file itself. Run: git lfs pull",
    b"\xef\xbb\xbf" + LFS_POINTER: "Git LFS pointer",
    LFS_POINTER.replace(b"\n", b"\r\n"): "Git LFS pointer",
    b"# xet version 0\nfilesize = 3\n": "git-xet pointer",
    b"/annex/objects/SHA256E-s3--abc\n": "git-annex pointer",
    b"../../.git/annex/objects/Kj/0x/SHA256E-s3": "git-annex pointer",
    b"<!DOCTYPE html>\n<html><body>Sign in": r"web page \(HTML\)",
    b"\n\n<!-- cached -->\n<HTML lang='en'>": r"web page \(HTML\)",
    b"<?xml version='1.0'?><!doctype HTML>": r"web page \(HTML\)",
    b'{"error":"Repository not found"}': "error message of a download",
    b"404: Not Found": "error message of a download",
    b"Entry not found": "error message of a download",
    b"Access to model meta-llama/Llama is restricted and you are not in the authorized list.": "error message of a do",
    b"\x00\x05\x16\x07" + bytes(100): "AppleDouble",
    gzip.compress(b"{}"): "is a gzip file. Unpack it first",
    zip_bytes(): "is a zip archive",
    tar_bytes(): "is a tar archive",
    b"\xfd7zXZ\x00": "is an xz file",
}


@pytest.mark.parametrize("data", STAND_INS, ids=lambda data: STAND_INS[data])
def test_what_stands_in_for_a_file_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=STAND_INS[data]):
        check_input(tmp_path / "model.safetensors", max_bytes=10**6)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"error": "it failed", "id": 3}\n{}', b"404,3\n", b"<|im_start|>", b"version 1", b"<htmlx>"]
)
def test_other_content_is_read(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(data)
    assert read_input(tmp_path / "data", max_bytes=100) == data


def test_archives_are_read_where_a_format_is_one(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(zip_bytes())
    assert read_input(tmp_path / "data.zip", max_bytes=1000, content=Content.ARCHIVE) == zip_bytes()
    (tmp_path / "data.zip").write_bytes(LFS_POINTER)
    with pytest.raises(CheckpointError, match="LFS"):
        open_input(tmp_path / "data.zip", max_bytes=1000, content=Content.ARCHIVE)


@pytest.mark.parametrize("suffix", [".part", ".incomplete", ".crdownload", ".aria2"])
def test_unfinished_downloads_are_named(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"model.safetensors{suffix}").write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match=f"model.safetensors{suffix}' is an unfinished download"):
        check_input(tmp_path / "model.safetensors", max_bytes=100)
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    if suffix == ".aria2":  # which gives a file its full size first
        with pytest.raises(CheckpointError, match="is an unfinished download"):
            check_input(tmp_path / "model.safetensors", max_bytes=100)
    else:
        check_input(tmp_path / "model.safetensors", max_bytes=100)


def test_links_to_regular_files_are_followed_as_in_the_hub_cache(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "config.json").symlink_to("blob")
    copy_input(tmp_path / "config.json", tmp_path / "copy", max_bytes=2)
    assert (tmp_path / "copy").read_text() == "{}"
    assert not (tmp_path / "copy").is_symlink()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_with_and_without_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("Grüße\u2028\r\n".encode(encoding))
    assert read_input_text(tmp_path / "text", max_bytes=100) == "Grüße\u2028\r\n"


def test_other_encodings_are_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(CheckpointError, match="not text in UTF-8: byte 2 is 0xfc"):
        read_input_text(tmp_path / "text", max_bytes=100)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", " ", "...", "../../x", "a/b", "/etc", "a\\b", "C:x", "~root", "a\0b", "a\nb", "\x1b[31m", "\ud800",
     "a" * 201, "é" * 101],
)  # fmt: skip
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^--model-name is "):
        require_file_name(name, "--model-name")


@pytest.mark.parametrize("name", ["NVILA-8B", ".hidden", "v1.5 (my run)", "模型", "a..b", "run:b"])
def test_ordinary_names_are_accepted(name: str) -> None:
    assert require_file_name(name, "--model-name") == name


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("two\r\n  lines", "two lines"),
        ("\ud800 \u202e \u2028 \x85 \0", r"\ud800 \u202e \u2028 \x85 \x00"),
        ("模型 é 🙂\u200d", "模型 é 🙂\u200d"),
    ],
)
def test_messages_are_one_printable_line(text: str, line: str) -> None:
    assert printable(text) == line
    assert str(VilaError(text)) == line


def test_long_messages_keep_their_beginning_and_their_advice() -> None:
    message = str(VilaError(f"The file {'x' * 10**6} is bad. Download it again."))
    assert len(message) <= 1000
    assert message.startswith("The file x")
    assert message.endswith("Download it again.")


def test_lists_are_cut_at_three_and_kept_whole_for_debugging() -> None:
    assert listed("ab") == "a, b"
    assert listed(map(str, range(217))) == "0, 1, 2 and 214 more"
    assert VilaError("x").with_details(["a\x1b", "b"]).details == "a\\x1b\nb"


@pytest.mark.parametrize(
    "value", ["x" * 10**7, 10**5000, [[1] * 1000] * 1000, {"a": "x" * 10**6}, b"\0" * 1000], ids=type
)
def test_values_are_shown_briefly(value: object) -> None:
    assert len(shown(value)) <= 420
