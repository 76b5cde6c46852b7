"""Crafted torch files: mutated archives and pickles are read or refused, without running, waiting or growing."""

import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.core.checkpoint.test_pickles import CRAFTED, STATE, saved
from tests.fuzz.bounded import assert_bounded

from vila_core.checkpoint.tensors.pickles import load_pickle, unpickle

pytestmark = pytest.mark.slow

SEED = 12


def read(path: Path, data: bytes) -> Callable[[], object]:
    def run() -> None:
        path.write_bytes(data)
        for tensor in load_pickle(path).values():
            tensor.float().sum()
        unpickle(path)

    return run


def test_crafted_files(tmp_path: Path) -> None:
    assert_bounded({name: read(tmp_path / "a.bin", make()) for name, (make, _) in CRAFTED.items()})


def repacked(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with its pickle changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            target.writestr(member.filename, change(content) if member.filename.endswith("data.pkl") else content)
    return buffer.getvalue()


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One to three changes: flips, cuts, repeats, swaps and insertions."""
    for _ in range(draw.randint(1, 3)):
        at, length = draw.randrange(len(data)), draw.randint(1, 40)
        match draw.randrange(5):
            case 0:
                data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[at + length :]
            case 2:
                data = data[:at] + data[at : at + length] * draw.randint(2, 50) + data[at:]
            case 3:
                data = data[:at] + draw.randbytes(length) + data[at + length :]
            case _:
                data = data[:at] + draw.choice([b"\xff\xff\xff\xff", b"\x00" * 8, b"\x7f" * 8]) + data[at + 4 :]
        data = data or b"x"
    return data


SMALL = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16).expand(2, 3)}


@pytest.mark.parametrize("layer", ["pickle in the archive", "archive", "before torch 1.6"])
def test_mutated_files(tmp_path: Path, layer: str) -> None:
    draw = random.Random(SEED)
    cases: dict[str, Callable[[], object]] = {}
    for number in range(1500):
        data = saved(STATE if number % 2 else SMALL, _use_new_zipfile_serialization=layer != "before torch 1.6")
        wrong = (
            repacked(data, lambda content: mutated(content, draw))
            if layer.startswith("pickle")
            else mutated(data, draw)
        )
        cases[f"{layer} {number}"] = read(tmp_path / "a.bin", wrong)
    assert_bounded(cases)
