"""Hostile data files, tables and archives: rows, or a one-line error."""

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.eval.test_archives import REFUSED as ARCHIVES
from tests.eval.test_archives import zipped
from tests.eval.test_row_files import REFUSED, TABLES
from tests.fuzz.bounded import assert_bounded

from vila_eval.data.archives import unpack
from vila_eval.data.row_files import read_rows
from vila_eval.data.sources import DataOptions, HubDataset

pytestmark = pytest.mark.slow


def mutated(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content or b"x")
    for _ in range(chance.randint(1, 5)):
        position = chance.randrange(len(changed) + 1)
        kind = chance.random()
        if kind < 0.3:
            del changed[position : position + chance.randint(1, 10)]
        elif kind < 0.7:
            changed[position:position] = chance.choice(
                [
                    b'"',
                    b",",
                    b"\n",
                    b"\r",
                    b"\0",
                    b"\xff",
                    b"\xed\xa0\x80",
                    b"[",
                    b"{",
                    b"\\ud800",
                    b"NaN",
                    b";",
                    b"\x1b",
                ]
            )
        elif changed:
            changed[position % len(changed)] = chance.randrange(256)
    return bytes(changed)


def giants() -> Iterator[tuple[str, bytes]]:
    yield "wide.csv", b"id,text," + b",".join(b"c%d" % n for n in range(100_000)) + b"\n1,a" + b"," * 100_000
    yield "quotes.csv", b"id,text\n1," + b'"' * 1_000_001
    yield "open.csv", b'id,text\n1,"' + b"a\n" * 3_000_000
    yield "delimiters.csv", b",;|\t" * 500_000
    yield "long.jsonl", b'{"id": "' + b"x" * 20_000_000 + b'"}'
    yield "deep.json", b"[" * 900 + b"]" * 900
    yield "deep.jsonl", b'{"a":' * 900 + b"1" + b"}" * 900
    yield "keys.jsonl", json.dumps({f"k{n}": n for n in range(200_000)}).encode()
    yield "lines.jsonl", b"\n" * 5_000_000
    yield "names.csv", b"a\x1b[31m\n,\x00,,\n"


def test_data_files(tmp_path: Path) -> None:
    chance = random.Random(3)
    cases: dict[str, Callable[[], object]] = {}

    def case(name: str, file: str, content: bytes) -> None:
        path = tmp_path / f"{len(cases)}-{file}"
        path.write_bytes(content)
        cases[name] = partial(read_rows, path, ("id", "text"))

    for source in (TABLES, REFUSED):
        for name, (file, content, _) in source.items():
            case(name, file, content)
            for number in range(8):
                case(f"{name}, mutation {number}", file, mutated(content, chance))
    for file, content in giants():
        case(f"giant {file}", file, content)
    assert_bounded(cases)


def test_archives(tmp_path: Path) -> None:
    chance = random.Random(4)
    cases: dict[str, Callable[[], object]] = {}

    def case(name: str, file: str, content: bytes) -> None:
        folder = tmp_path / str(len(cases))
        folder.mkdir()
        (folder / file).write_bytes(content)
        cases[name] = partial(unpack, [folder / file], folder / "media")

    good = {"a.zip": zipped({"a/b.txt": b"text" * 1000, "c.txt": b""})}
    for name, (file, make, _) in ARCHIVES.items():
        case(name, file, content := make())
        for number in range(3 if len(content) < 10**5 else 0):
            case(f"{name}, mutation {number}", file, mutated(content, chance))
    for number in range(60):
        case(f"zip, mutation {number}", "a.zip", mutated(good["a.zip"], chance))
    case("zeros", "a.tar.gz", gzip.compress(bytes(2**28), 1))
    case("nested gzip", "a.tar.gz", gzip.compress(gzip.compress(bytes(2**26)), 1))
    case("members", "a.zip", zipped({f"{n}": b"" for n in range(30_000)}))
    assert_bounded(cases)


def test_copies_of_hub_datasets(tmp_path: Path) -> None:
    """Tables that are damaged, or that are no files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": ["1"], "text": ["a"]})
    pq.write_table(table, tmp_path / "good.parquet")
    good = (tmp_path / "good.parquet").read_bytes()
    chance = random.Random(5)
    cases: dict[str, Callable[[], object]] = {}

    def case(name: str, make: Callable[[Path], object]) -> None:
        copy = tmp_path / str(len(cases)) / "acme/shapes/data"
        copy.mkdir(parents=True)
        make(copy / "test-00000-of-00001.parquet")
        source = HubDataset("acme/shapes", "test", {"id": "string", "text": "string"})
        options = DataOptions(tmp_path / str(len(cases)) / "cache", mirror=copy.parents[2])
        cases[name] = lambda: source.open(options)[0]

    case("good", lambda path: path.write_bytes(good))
    case("empty", lambda path: path.write_bytes(b""))
    case("half", lambda path: path.write_bytes(good[: len(good) // 2]))
    case("text", lambda path: path.write_bytes(b"no table"))
    case("a pipe", os.mkfifo)
    case("a folder", lambda path: path.mkdir())
    case("nothing", lambda path: None)
    for number in range(12):
        changed = mutated(good, chance)
        case(f"mutation {number}", lambda path, changed=changed: path.write_bytes(changed))
    assert_bounded(cases)
