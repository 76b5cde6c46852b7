"""Crafted checkpoints: every file and every config key of a model is replaced by something hostile."""

import gzip
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.core.checkpoint.conftest import build_checkpoint
from tests.fuzz.bounded import assert_bounded

import vila_core as vila
from vila_core.checkpoint import convert, open_checkpoint
from vila_core.checkpoint.description import describe
from vila_core.checkpoint.embedded import embedded_model

pytestmark = pytest.mark.slow

SEED = 12
HOSTILE: list[object] = [
    None, -1, 0, 1, 3, 1e308, -1e308, 1.5, 10**12, 2**31, "", "x", [], {}, True, [None], {"a": None}, "\ud800", "\0",
    "../../etc/passwd", "\x1b[31m", "x" * 100_000, [[[[[]]]]] * 10, [1] * 10_000,
]  # fmt: skip


def use(folder: Path) -> None:
    """Open, describe, load and answer."""
    describe(open_checkpoint(folder))
    model = vila.load(folder, device="cpu", dtype="float32", progress=False)
    template = None if model.tokenizer.chat_template is None else "Hello"
    if template:
        model.generate(template, max_new_tokens=2)


@pytest.fixture(scope="module", params=["vila-tiny", "clip_llama", "converted"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    if request.param == "vila-tiny":
        return shutil.copytree(embedded_model(), folder)
    if request.param == "converted":
        return convert(build_checkpoint(folder.with_name("from")), folder, "nvila").path
    return build_checkpoint(folder, request.param)


def copy(source: Path, target: Path) -> Path:
    """A copy with links to the weights, so that a hundred copies are cheap."""
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(source, target, copy_function=os.link)


def files_of(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)


SPECIAL: Mapping[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "sparse": make_sparse,
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"),
    "web page": lambda path: path.write_text("<!DOCTYPE html><html>Sign in</html>"),
    "zeros": lambda path: path.write_bytes(bytes(10_000)),
    "gzip": lambda path: path.write_bytes(gzip.compress(b"{}")),
    "noise": lambda path: path.write_bytes(random.Random(SEED).randbytes(5000)),
    "deep": lambda path: path.write_text("[" * 10**5),
    "deep object": lambda path: path.write_text('{"a":' * 5000 + "1" + "}" * 5000),
    "digits": lambda path: path.write_text('{"model_type": "llava_llama", "a": ' + "9" * 10**5 + "}"),
    "many keys": lambda path: path.write_text(json.dumps({str(n): n for n in range(10**6)})),
    "surrogates": lambda path: path.write_text(r'{"\ud800": "\udfff", "model_type": "\u0000"}'),
    "latin-1": lambda path: path.write_bytes('{"a": "é"}'.encode("latin-1")),
}


def test_every_file_as_something_else(source: Path, tmp_path: Path) -> None:
    def case(file: Path, make: Callable[[Path], object]) -> Callable[[], object]:
        def run() -> None:
            folder = copy(source, tmp_path / "copy")
            (folder / file).unlink()
            make(folder / file)
            use(folder)

        return run

    pairs = [(file, name) for file in files_of(source) for name in SPECIAL]
    chosen = random.Random(SEED).sample(pairs, min(len(pairs), 120))
    assert_bounded({f"{file} as {name}": case(file, SPECIAL[name]) for file, name in chosen})


def test_every_file_damaged(source: Path, tmp_path: Path) -> None:
    draw = random.Random(SEED)

    def case(file: Path, damage: Callable[[bytes], bytes]) -> Callable[[], object]:
        def run() -> None:
            folder = copy(source, tmp_path / "copy")
            data = (folder / file).read_bytes()
            (folder / file).unlink()
            (folder / file).write_bytes(damage(data))
            use(folder)

        return run

    def flip(position: float, bit: int) -> Callable[[bytes], bytes]:
        def damage(data: bytes) -> bytes:
            if not data:
                return data
            # Headers and the beginnings of files are hit more often.
            index = int(position**3 * len(data))
            return data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :]

        return damage

    cases: dict[str, Callable[[], object]] = {}
    for file in files_of(source):
        for share in (0.1, 0.5, 0.99):
            cases[f"{file} cut at {share}"] = case(file, lambda data, share=share: data[: int(len(data) * share)])
        for number in range(6):
            cases[f"{file} flip {number}"] = case(file, flip(draw.random(), draw.randrange(8)))
        cases[f"{file} with a tail"] = case(file, lambda data: data + b"\0garbage")
    assert_bounded(cases)


def changed(value: Any, path: tuple[Any, ...], new: object) -> Any:
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = changed(value[path[0]], path[1:], new)
    return copied


def key_paths(value: object, depth: int = 3) -> Iterator[tuple[Any, ...]]:
    if depth and isinstance(value, dict):
        for key, item in value.items():
            yield (key,)
            yield from ((key, *rest) for rest in key_paths(item, depth - 1))


CONFIGS = (
    "config.json", "llm/config.json", "vision_tower/config.json", "vision_tower/preprocessor_config.json",
    "mm_projector/config.json", "preprocessor_config.json", "vila_config.json", "tokenizer_config.json",
    "llm/tokenizer_config.json", "llm/generation_config.json", "generation_config.json",
)  # fmt: skip


def test_every_config_key_with_every_hostile_value(source: Path, tmp_path: Path) -> None:
    """A seeded sample of all pairs of key and value; opening is tried for each, loading for those that open."""
    draw = random.Random(SEED)
    pairs = [
        (file, path, value)
        for file in CONFIGS
        if (source / file).exists()
        for path in key_paths(json.loads((source / file).read_text()))
        for value in HOSTILE
    ]

    def case(file: str, path: tuple[Any, ...], value: object) -> Callable[[], object]:
        def run() -> None:
            folder = copy(source, tmp_path / "copy")
            content = json.loads((folder / file).read_text())
            (folder / file).unlink()
            (folder / file).write_text(json.dumps(changed(content, path, value)))
            use(folder)

        return run

    chosen = draw.sample(pairs, min(len(pairs), 200))
    assert_bounded({f"{file} {path} = {str(value)[:30]!a}": case(file, path, value) for file, path, value in chosen})


def header_file(header: object) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def one(**changes: object) -> dict[str, object]:
    return {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}


HEADERS: dict[str, bytes] = {
    **{f"shape {str(shape)[:30]}": header_file(one(shape=shape)) for shape in (
        [-1], [2**63], [2**31, 2**31, 2**31], [1.5], ["1"], [True], 3, None, "x", [0, 2**60], [1] * 1000, [[1]], {},
        [10**200], [1e308],
    )},
    **{f"offsets {offsets}": header_file(one(data_offsets=offsets)) for offsets in (
        [4, 0], [-4, 0], [0, 10**12], [2**64, 2**64 + 4], [0], [0, 4, 8], "04", None, [0.0, 4.5], [False, True],
    )},
    **{f"dtype {str(dtype)[:20]!a}": header_file(one(dtype=dtype)) for dtype in ("F3", "", None, 3, "\ud800", [])},
    **{f"metadata {str(value)[:20]}": header_file({"__metadata__": value}) for value in (
        3, [], {"a": 1}, {"a": None}, "x", {"a": {"b": "c"}},
    )},
    "no object": header_file([]),
    "entry is a list": header_file({"w": []}),
    "surrogate name": header_file({"\ud800": one()["w"]}),
    "null name": header_file({"\0": one()["w"]}),
    "control name": header_file({"\x1b[31m": one(shape=[9])["w"]}),
    "long name": header_file({"x" * 10**6: one(shape=[9])["w"]}),
    "twice": header_file(b'{"w":{"dtype":"F32"},"w":{"dtype":"F32"}}'),
    "deep": header_file(b'{"w":' * 10**5),
    "many": header_file({f"w{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(45_000)}),
    "too many": header_file({f"w{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(60_000)}),
    "length 2^64": b"\xff" * 8 + b"{}",
    "length 0": bytes(8),
    "short": b"\x02",
}  # fmt: skip


@pytest.mark.parametrize("place", ["vision_tower", "mm_projector"])
def test_headers(tmp_path: Path, place: str) -> None:
    source = build_checkpoint(tmp_path / "source")

    def case(data: bytes) -> Callable[[], object]:
        def run() -> None:
            folder = copy(source, tmp_path / "copy")
            path = folder / place / "model.safetensors"
            path.unlink()
            path.write_bytes(data)
            use(folder)

        return run

    assert_bounded({name: case(data) for name, data in HEADERS.items()})


SHARD_NAMES: list[object] = [
    "../secret", "/etc/passwd", "a\0b", "", ".", "..", "C:\\x", "..\\x", 3, None, [], "\ud800", "x" * 5000, "llm/x",
    "model.safetensors", "pipe", "folder", "missing.safetensors", "config.json", "\x1b[31m", "~root/x",
]  # fmt: skip


def test_shard_names_of_an_index(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "source")

    def case(name: object) -> Callable[[], object]:
        def run() -> None:
            folder = copy(source, tmp_path / "copy") / "llm"
            (folder / "model.safetensors").rename(folder / "kept")
            os.mkfifo(folder / "pipe")
            (folder / "folder").mkdir()
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
            use(folder.parent)

        return run

    assert_bounded({repr(name)[:40]: case(name) for name in SHARD_NAMES})


def test_files_that_a_conversion_carries_along(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "source")
    carried = (
        "README.md",
        "LICENSE",
        "NOTICE",
        "llm/generation_config.json",
        "llm/merges.txt",
        "llm/chat_template.jinja",
    )

    def case(file: str, make: Callable[[Path], object]) -> Callable[[], object]:
        def run() -> None:
            folder = copy(source, tmp_path / "copy")
            (folder / file).unlink(missing_ok=True)
            make(folder / file)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            convert(folder, tmp_path / "out", "vila")

        return run

    assert_bounded({f"{file} as {name}": case(file, make) for file in carried for name, make in SPECIAL.items()})
