"""Archives of datasets: unpacked whole into their own folder, or refused in one line."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vila_eval.data.archives import SLACK_MEMBERS, unpack
from vila_eval.errors import DataError


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(*members: tarfile.TarInfo, content: bytes = b"", mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def patched(content: bytes, offset_in_local: int, offset_in_directory: int, value: int) -> bytes:
    """Set a 16-bit field in the header and the directory entry of a zip archive's first member."""
    changed = bytearray(content)
    struct.pack_into("<H", changed, offset_in_local, value)
    struct.pack_into("<H", changed, changed.index(b"PK\x01\x02") + offset_in_directory, value)
    return bytes(changed)


def tar_bomb() -> bytes:
    """20 GB of zeros in a tar header, which is never written out."""
    block = tarred(member("x"))[:512]
    huge = member("huge")
    huge.size = 20 * 2**30
    return gzip.compress(huge.tobuf() + block, 1)


def long_header() -> bytes:
    """A name of 7 GB."""
    named = member("name", tarfile.GNUTYPE_LONGNAME)
    named.size = 7 * 2**30
    return gzip.compress(named.tobuf() + b"a" * 4096, 1)


ONE = {"a.txt": b"text" * 100}
REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "encrypted": ("a.zip", lambda: patched(zipped(ONE), 6, 8, 1), "is encrypted"),
    "an unknown method": ("a.zip", lambda: patched(zipped(ONE), 8, 10, 93), "method"),
    "damaged zip data": ("a.zip", lambda: zipped(ONE).replace(zipped(ONE)[40:44], b"\xff\xff\xff\xff", 1), "cannot be"),
    "half a zip": ("a.zip", lambda: zipped(ONE)[:50], "not a zip file"),
    "a zip bomb": ("a.zip", lambda: zipped({f"{n}": bytes(2**26) for n in range(5)}), "unpacks to more than"),
    "many members": (
        "a.tar.gz",
        lambda: tarred(*(member(f"{n}") for n in range(SLACK_MEMBERS + 2000)), mode="w:gz"),
        "more than .* members",
    ),
    "a tar bomb": ("a.tar.gz", tar_bomb, "unpacks to more than"),
    "a long header": ("a.tar.gz", long_header, "header of"),
    "half a tar": (
        "a.tar.gz",
        lambda: tarred(member("a"), content=b"x" * 10**5, mode="w:gz")[:80],
        "cannot be unpacked",
    ),
    "no tar": ("a.tar", lambda: b"no archive at all" * 100, "cannot be unpacked"),
    "empty": ("a.zip", lambda: b"", "cannot be unpacked"),
    "a path that leads out": ("a.tar", lambda: tarred(member("../../out")), "outside"),
    "a link that leads out": ("a.tar", lambda: tarred(member("l", tarfile.SYMTYPE, "../../../etc/passwd")), "outside"),
    "a device": ("a.tar", lambda: tarred(member("d", tarfile.CHRTYPE)), "special file"),
    "a pipe": ("a.tar", lambda: tarred(member("p", tarfile.FIFOTYPE)), "special file"),
    "a long name": ("a.zip", lambda: zipped({"x" * 300: b""}), "too long"),
    "a file that is a folder": ("a.zip", lambda: zipped({"a/b": b"1", "a": b"2"}), "cannot be unpacked"),
    "a Git LFS pointer": ("a.zip", lambda: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_archives_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    file, make, message = REFUSED[name]
    path = tmp_path / "copy" / file
    path.parent.mkdir()
    path.write_bytes(make())
    with pytest.raises(DataError, match=message) as raised:
        unpack([path], tmp_path / "media")
    assert "\n" not in str(raised.value)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["copy"]  # nothing is left, inside or outside


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_compression_of_tar_and_split_archives_are_unpacked(kind: str, tmp_path: Path) -> None:
    content = tarred(member("videos/a.mp4"), content=os.urandom(100_000), mode=kind)
    for number, start in enumerate(range(0, len(content), 40_000)):
        (tmp_path / f"v.tar.part.a{number}").write_bytes(content[start : start + 40_000])
    unpack(sorted(tmp_path.glob("v.*")), tmp_path / "media")
    assert (tmp_path / "media/videos/a.mp4").stat().st_size == 100_000


def test_zip_paths_stay_inside_and_nested_archives_stay_packed(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"../../out.txt": b"1", "/abs.txt": b"2", "inner.zip": zipped(ONE)}))
    unpack([tmp_path / "a.zip"], tmp_path / "media")
    assert sorted(path.name for path in (tmp_path / "media").rglob("*")) == ["abs.txt", "inner.zip", "out.txt"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(ONE))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="VILA_EVAL_CACHE"):
        unpack([tmp_path / "a.zip"], tmp_path / "cache" / "media")
