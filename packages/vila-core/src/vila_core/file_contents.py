"""Detects files that are not what they should be: devices, folders, or content saved in place of the wanted file."""

import re
import stat
from collections.abc import Callable
from dataclasses import dataclass

LFS_PREFIX = b"version https://git-lfs.github.com/spec/"
_OLD_LFS_PREFIX = b"version https://hawser.github.com/spec/"

_SPECIAL_KINDS: dict[Callable[[int], bool], str] = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def special_kind(mode: int) -> str | None:
    """Return what is there instead of a regular file, such as "a device", or None. `mode` is that of `os.stat`."""
    if stat.S_ISREG(mode):
        return None
    return next((name for is_kind, name in _SPECIAL_KINDS.items() if is_kind(mode)), "a special file")


@dataclass(frozen=True)
class FoundContent:
    """Content of the wrong kind: `what` it is, and what to do (None: nothing more specific than the caller's)."""

    what: str
    advice: str | None = None


_HTML = re.compile(
    rb"(?:\s|<!--.{0,500}?-->|<\?xml[^>]{0,200}>)*<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL
)
_ERROR_BODY = re.compile(
    rb"""\s*(?:
    \{\s*"error"\s*:\s*"[^"\n]*"\s*\} | (?:404:?\s*)?Not\ Found | Entry\ not\ found | Repository\ not\ found
    | Invalid\ username\ or\ password\.? | Access\ to\ (?:model|dataset)\ [^\n]{1,400} | Unauthorized | Forbidden
    )\s*""",
    re.VERBOSE,
)
"""Whole bodies that hubs and web servers send instead of a file."""

_ARCHIVES = {
    b"\x1f\x8b": ("a gzip file", "Unpack it first (gunzip)."),
    b"PK\x03\x04": ("a zip archive", "Unpack it first (unzip)."),
    b"PK\x05\x06": ("an empty zip archive", None),
    b"BZh": ("a bzip2 file", "Unpack it first (bunzip2)."),
    b"\xfd7zXZ\x00": ("an xz file", "Unpack it first (unxz)."),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "Unpack it first (unzstd)."),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "Unpack it first."),
    b"Rar!\x1a\x07": ("a RAR archive", "Unpack it first."),
}


def describe_stand_in(prefix: bytes) -> FoundContent | None:
    """Return what a file that begins with `prefix` stands in for, None if it may be the file itself.

    Known: pointers of Git LFS, git-xet and git-annex, web pages, errors of a download server, AppleDouble files.
    """
    text = prefix.removeprefix(b"\xef\xbb\xbf")
    if text.startswith((LFS_PREFIX, _OLD_LFS_PREFIX)):
        return FoundContent("a Git LFS pointer, not the file itself", "Run: git lfs pull")
    if text.startswith(b"# xet version"):
        return FoundContent("a git-xet pointer, not the file itself", "Run: git xet checkout")
    if re.match(rb"\.?[^\n]{0,300}/annex/objects/", text):
        return FoundContent("a git-annex pointer, not the file itself", "Run: git annex get")
    if _HTML.match(text):
        return FoundContent(
            "a web page (HTML), such as a login or error page that was saved in the file's place",
            "Download the file itself (hf download, or the link named 'download').",
        )
    if _ERROR_BODY.fullmatch(text):
        start = text.decode("utf-8", "replace").strip().splitlines()[0][:80]
        return FoundContent(f"the error message of a download ({start!r})", "Download the file again.")
    if text.startswith(b"\x00\x05\x16\x07"):
        return FoundContent("the metadata of a macOS file (AppleDouble), not the file itself")
    return None


def describe_archive(prefix: bytes) -> FoundContent | None:
    """Return the kind of compressed file or archive that begins with `prefix`; None for any other file."""
    for magic, (what, advice) in _ARCHIVES.items():
        if prefix.startswith(magic):
            return FoundContent(what, advice)
    return FoundContent("a tar archive", "Unpack it first (tar xf).") if prefix[257:262] == b"ustar" else None
