"""From the bytes of a data file to text: byte order marks, encodings, and formats that are no text."""

from __future__ import annotations

import codecs
from pathlib import Path

from vila_eval.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

_WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".xlsb", ".ods", ".numbers")
_SIGNATURES = (
    (b"PK\x03\x04", "a workbook or zip archive"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x1f\x8b", "compressed"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3", "a database"),
)
_ADVICE = "Save it as 'CSV UTF-8', or export it as JSONL."


def refuse_known_formats(path: Path, head: bytes) -> None:
    """Raise `DataError` for files of other kinds that users pass as data files, by their name or first bytes."""
    suffix = path.suffix.lower()
    if suffix in _WORKBOOKS:
        raise DataError(f"'{path}' is a spreadsheet workbook, which cannot be read. {_ADVICE}")
    if suffix in (".parquet", ".arrow", ".feather"):
        raise DataError(
            f"'{path}': a data file is .json, .jsonl, .csv or .tsv. Put {suffix[1:]} files into a folder and name it "
            "with HubDataset and --data, or export the table as JSONL."
        )
    if suffix in (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar"):
        raise DataError(f"'{path}' is compressed. Unpack it first.")
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"'{path}' is a Git LFS pointer, not the data. Run: git lfs pull")
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            raise DataError(f"'{path}' is {kind}, not text. {_ADVICE}")
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise DataError(f"'{path}' is a web page, not data. Download the file itself.")


def decode_text(content: bytes, path: Path) -> str:
    """Decode a file's bytes: UTF-8, or what its byte order mark says. The mark is not part of the text.

    Raises:
        DataError: the bytes are in another encoding; the message names the line.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), (b"", "utf-8"))
    if not mark and (guess := _looks_like_utf_16(content)):
        raise DataError(f"The data file '{path}' looks like {guess} without a byte order mark. Save it as UTF-8.")
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, len(mark) + error.start) + 1
        byte = error.object[error.start] if encoding == "utf-8" else None
        shown = f" (byte 0x{byte:02x})" if byte is not None else ""
        raise DataError(
            f"The data file '{path}', line {line}, is not {encoding.upper()}{shown}. "
            "Save it as UTF-8 (in a spreadsheet: 'CSV UTF-8'), or convert it: iconv -f LATIN1 -t UTF-8 FILE."
        ) from None


def _looks_like_utf_16(content: bytes) -> str | None:
    head = content[:1024]
    even, odd = head[0::2], head[1::2]
    if len(head) >= 8 and odd.count(0) > len(odd) * 0.6 and not even.count(0):
        return "UTF-16 (little-endian)"
    if len(head) >= 8 and even.count(0) > len(even) * 0.6 and not odd.count(0):
        return "UTF-16 (big-endian)"
    return None
