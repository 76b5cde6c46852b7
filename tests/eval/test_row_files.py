"""Data files as spreadsheets, pandas and editors write them: read as meant, or refused by name."""

import codecs
import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from vila_eval.data.row_files import read_rows
from vila_eval.errors import DataError

COLUMNS = ("id", "text")
ONE: list[dict[str, Any]] = [{"id": "1", "text": "a"}]


def read(folder: Path, name: str, content: bytes) -> list[dict[str, Any]]:
    path = folder / name
    path.write_bytes(content)
    return read_rows(path, COLUMNS)


SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""What `str.splitlines` takes for line ends, beside those that are."""

TABLES: dict[str, tuple[str, bytes, list[dict[str, Any]]]] = {
    "byte order mark": ("a.csv", codecs.BOM_UTF8 + b"id,text\n1,a\n", ONE),
    "byte order mark before quotes": ("a.csv", codecs.BOM_UTF8 + b'"id","text"\r\n"1","a"\r\n', ONE),
    "two byte order marks": ("a.csv", codecs.BOM_UTF8 * 2 + b"id,text\n1,a\n", ONE),
    "UTF-16": ("a.csv", "id;text\r\n1;a\r\n".encode("utf-16"), ONE),
    "UTF-16, big-endian": ("a.tsv", codecs.BOM_UTF16_BE + "id\ttext\n1\ta\n".encode("utf-16-be"), ONE),
    "UTF-32": ("a.csv", "id,text\n1,a\n".encode("utf-32"), ONE),
    "JSONL with a byte order mark": ("a.jsonl", codecs.BOM_UTF8 + b'{"id": "1", "text": "a"}', ONE),
    "JSON with a byte order mark": ("a.json", codecs.BOM_UTF8 + b'[{"id": "1", "text": "a"}]', ONE),
    "semicolons": ("a.csv", b"id;text\n1;a, b\n", [{"id": "1", "text": "a, b"}]),
    "tabs": ("a.csv", b"id\ttext\n1\ta\n", ONE),
    "bars": ("a.csv", b"id|text\n1|a\n", ONE),
    "commas in a .tsv": ("a.tsv", b"id,text\n1,a\n", ONE),
    "Excel's separator line": ("a.csv", b"sep=;\r\nid;text\r\n1;a\r\n", ONE),
    "upper case suffix": ("A.CSV", b"id,text\n1,a\n", ONE),
    "commas at the end": ("a.csv", b"id,text,,\n1,a,,\n", ONE),
    "more commas than the header": ("a.csv", b"id,text\n1,a,,,\n", ONE),
    "empty lines and rows": ("a.csv", b"\r\nid,text\r\n\r\n,\r\n1,a\r\n \r\n,\r\n", ONE),
    "spaces around names": ("a.csv", b"id , text\n1,a\n", ONE),
    "pandas' index": ("a.csv", b",id,text\n0,1,a\n", ONE),
    "carriage returns alone": ("a.csv", b"id,text\r1,a\r", ONE),
    "a quoted line end": ("a.csv", b'id,text\r\n1,"a\r\nb"\r\n', [{"id": "1", "text": "a\r\nb"}]),
    "a quote inside a word": ("a.csv", b'id,text\n1,5" pipe\n', [{"id": "1", "text": '5" pipe'}]),
    "empty lines in JSONL": ("a.jsonl", b'\r\n{"id": "1", "text": "a"}\r\n\r\n', ONE),
    "NaN of pandas": ("a.jsonl", b'{"id": "1", "text": NaN}', [{"id": "1", "text": None}]),
    "numbers as ids": ("a.jsonl", b'{"id": 1, "text": "a"}', [{"id": 1, "text": "a"}]),
    "nothing": ("a.csv", b"", []),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_spreadsheets_write_is_read(name: str, tmp_path: Path) -> None:
    file, content, rows = TABLES[name]
    assert read(tmp_path, file, content) == rows


@pytest.mark.parametrize("separator", SEPARATORS, ids=lambda one: f"U+{ord(one):04X}")
def test_unicode_line_separators_are_text(separator: str, tmp_path: Path) -> None:
    text = f"one{separator}two"
    row = {"id": "1", "text": text}
    line = json.dumps(row, ensure_ascii=False)  # which escapes the control characters among them
    assert read(tmp_path, "a.jsonl", f"{line}\n{line}\r\n".encode()) == [row, row]
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t"), ("b.csv", ";")):
        table = f'id{delimiter}text\n1{delimiter}{text}\n2{delimiter}"{text}"\n'
        assert read(tmp_path, name, table.encode()) == [row, {"id": "2", "text": text}]


def test_cells_have_no_limit_and_the_process_keeps_its_own(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (row,) = read(tmp_path, "a.csv", b"id,text\n1," + b"x" * 400_000)
    assert len(row["text"]) == 400_000
    assert csv.field_size_limit() == before


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "Latin-1": ("a.csv", b"id,text\n1,a\n2,caf\xe9\n", r"line 3, is not UTF-8 \(byte 0xe9\).*CSV UTF-8"),
    "Latin-1 JSONL": ("a.jsonl", b'{"id": "1", "text": "caf\xe9"}', "line 1, is not UTF-8"),
    "half a UTF-16 character": ("a.csv", codecs.BOM_UTF16_LE + b"i\x00d", "is not UTF-16-LE"),
    "UTF-16 without a mark": ("a.csv", "id,text\n1,a\n".encode("utf-16-le"), "UTF-16.*without a byte order mark"),
    "ragged, too long": ("a.csv", b"id,text\n1,a,b\n", "line 2 has 3 values and the header 2"),
    "ragged, too short": ("a.csv", b"id,text\n1\n", "line 2 has 1 values and the header 2"),
    "an open quote": ("a.csv", b'id,text\n1,"a\n2,b\n', "no closing quote"),
    "text after a quote": ("a.csv", b'id,text\n1,"a" b\n', "line 2:.*twice"),
    "a column twice": ("a.csv", b"id,text,text\n1,a,b\n", "names the column 'text' twice"),
    "a value without a name": ("a.csv", b"id,text,\n1,a,b\n", "column 3, which has no name"),
    "a workbook": ("a.xlsx", b"PK\x03\x04", "spreadsheet workbook.*CSV UTF-8"),
    "a workbook under another name": ("a.csv", b"PK\x03\x04", "not text"),
    "Parquet": ("a.parquet", b"PAR1", "HubDataset"),
    "compressed": ("a.jsonl.gz", b"\x1f\x8b", "Unpack it"),
    "a Git LFS pointer": ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a web page": ("a.json", b"<!DOCTYPE html><html>", "web page"),
    "a list in JSONL": ("a.jsonl", b'[\n{"id": 1}\n]', "name it .json"),
    "lines in JSON": ("a.json", b'{"id": 1}\n{"id": 2}', "name it .jsonl"),
    "a number in JSONL": ("a.jsonl", b"1\n", "line 1 holds a int"),
    "a number in a list": ("a.json", b"[1]", "item 1 is a int"),
    "one object": ("a.json", b"{}", "list of objects"),
    "infinity": ("a.jsonl", b'{"id": Infinity}', "Infinity is not a JSON number"),
    "nested": ("a.jsonl", b"[" * 100_000, "nested too deeply"),
    "digits": ("a.jsonl", b'{"id": ' + b"9" * 5000 + b"}", "5000 digits"),
    "another kind": ("a.yaml", b"", r"expected a \.json, \.jsonl, \.csv or \.tsv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file, content, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as raised:
        read(tmp_path, file, content)
    assert "\n" not in str(raised.value)


def test_special_files_are_neither_read_nor_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with (tmp_path / "sparse.jsonl").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    for name, message in {
        "pipe": "pipe",
        "folder": "folder",
        "sparse": "more than the 536,870,912",
        "device": "device",
        "loop": "leads back to itself",
        "missing": "is missing",
        "null\0": "not a possible file name",
    }.items():
        with pytest.raises(DataError, match=message):
            read_rows(tmp_path / f"{name}.jsonl")
