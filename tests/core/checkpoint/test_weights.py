"""Safetensors headers, indexes and pickles: valid files read as in other libraries, damaged ones are refused."""

import json
import pickle
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vila_core.checkpoint import WeightIndex, open_checkpoint
from vila_core.checkpoint.tensors.headers import read_header
from vila_core.checkpoint.tensors.index import index_folder
from vila_core.errors import CheckpointError

Make = Callable[..., Path]


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.uint8],
    ids=str,
)
def test_tensors_are_those_that_safetensors_reads(tmp_path: Path, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(1)
    shapes = {"matrix": (5, 7), "scalar": (), "empty": (0, 3), "odd": (3,), "deep": (2, 3, 1, 5)}
    tensors = {name: torch.randint(0, 2, shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    index = WeightIndex(index_folder(tmp_path))
    read = dict(index.shards())
    expected = load_file(tmp_path / "model.safetensors")
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(
            read[name].view(torch.uint8) if tensor.dim() else read[name],
            tensor.view(torch.uint8) if tensor.dim() else tensor,
        )
        assert (
            b"".join(bytes(chunk) for key, chunks in index.stream() for chunk in chunks if key == name)
            == tensor.flatten().view(torch.uint8).numpy().tobytes()
        )


def test_tensors_outlive_their_file(tmp_path: Path):
    save_file({"a": torch.arange(4.0)}, tmp_path / "model.safetensors")
    tensor = WeightIndex(index_folder(tmp_path)).read("a")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert tensor.tolist() == [0, 1, 2, 3]


def sharded(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {f"layer.{i}": torch.full((2, i + 1), float(i)) for i in range(5)}
    names = list(tensors)
    for number, part in enumerate((names[:2], names[2:]), start=1):
        save_file({name: tensors[name] for name in part}, folder / f"model-{number:05}-of-00002.safetensors")
    weight_map = {name: f"model-{1 if name in names[:2] else 2:05}-of-00002.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


def test_shards_are_read_one_after_the_other(tmp_path: Path):
    tensors = sharded(tmp_path)
    index = WeightIndex(index_folder(tmp_path))
    assert len(index.files) == 2
    assert {name: tensor.tolist() for name, tensor in index.shards()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_links_into_a_cache_are_followed(tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "blobs" / "123")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(Path("..") / "blobs" / "123")
    assert WeightIndex(index_folder(tmp_path / "snapshot")).read("a").tolist() == [1, 1]


DAMAGED = {
    "truncated data": lambda path: write_raw(path, {"a": entry(0, 16, [4])}, bytes(15)),
    "data left over": lambda path: write_raw(path, {"a": entry(0, 16, [4])}, bytes(17)),
    "no header": lambda path: path.write_bytes(b"\x01\x02"),
    "huge header": lambda path: write_raw(path, b"{}", length=2**63),
    "header longer than file": lambda path: write_raw(path, b"{}", length=1000),
    "header cut": lambda path: write_raw(path, b'{"a": {"dty'),
    "header is a list": lambda path: write_raw(path, b"[]"),
    "header is no text": lambda path: write_raw(path, b"\xff\xfe{}"),
    "entry is a number": lambda path: write_raw(path, {"a": 3}),
    "unknown dtype": lambda path: write_raw(path, {"a": entry(0, 16, [4], "F33")}, bytes(16)),
    "negative shape": lambda path: write_raw(path, {"a": entry(0, 16, [-4])}, bytes(16)),
    "fractional shape": lambda path: write_raw(
        path, b'{"a": {"dtype": "F32", "shape": [4.5], "data_offsets": [0, 18]}}', bytes(18)
    ),
    "shape not as long as data": lambda path: write_raw(path, {"a": entry(0, 16, [5])}, bytes(16)),
    "overlap": lambda path: write_raw(path, {"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}, bytes(24)),
    "gap": lambda path: write_raw(path, {"a": entry(0, 16, [4]), "b": entry(20, 36, [4])}, bytes(36)),
    "negative offset": lambda path: write_raw(path, {"a": entry(-16, 0, [4])}, bytes(16)),
    "offset is NaN": lambda path: write_raw(
        path, b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [NaN, 4]}}', bytes(4)
    ),
    "numbers beyond 64 bits": lambda path: write_raw(path, {"a": entry(0, 2**70, [2**68])}, bytes(8)),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED, ids=str)
def test_damaged_safetensors_are_refused_by_name(tmp_path: Path, damage: str):
    path = tmp_path / "model.safetensors"
    DAMAGED[damage](path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(path)


def test_truncated_checkpoint(make_checkpoint: Make):
    folder = make_checkpoint()
    path = folder / "llm" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"llm/model\.safetensors.*truncated"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "..\\outside.safetensors"]
)
def test_index_cannot_leave_its_folder(tmp_path: Path, name: str):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="plain name"):
        index_folder(folder)


def test_wrong_index(tmp_path: Path):
    sharded(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"weight_map": content["weight_map"] | {"layer.9": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"'layer\.9'"):
        index_folder(tmp_path)
    path.write_text(json.dumps({"weight_map": {"layer.0": "model-00003-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match="model-00003-of-00002"):
        index_folder(tmp_path)
    path.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(CheckpointError, match="names no tensor"):
        index_folder(tmp_path)


def test_folder_without_weights(make_checkpoint: Make):
    folder = make_checkpoint()
    (folder / "vision_tower" / "model.safetensors").rename(folder / "vision_tower" / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"vision_tower holds no weights.*model\.safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_plain_pickles_are_read(make_checkpoint: Make, zipped: bool):
    folder = make_checkpoint()
    stored = open_checkpoint(folder).weights
    whole = dict(stored.shards())
    whole_bytes = {name: b"".join(bytes(chunk) for chunk in chunks) for name, chunks in stored.stream()}
    path = folder / "llm" / "model.safetensors"
    torch.save(load_file(path), folder / "llm" / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    path.unlink()
    pickled = open_checkpoint(folder).weights
    read = dict(pickled.shards())
    assert read.keys() == whole.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in whole.items())
    assert {name: b"".join(bytes(chunk) for chunk in chunks) for name, chunks in pickled.stream()} == whole_bytes


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> object:
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickle_with_code_is_refused_and_never_run(make_checkpoint: Make, tmp_path: Path, writer: str):
    folder = make_checkpoint()
    (folder / "llm" / "model.safetensors").unlink()
    proof, path = tmp_path / "it-ran", folder / "llm" / "pytorch_model.bin"
    content = {"model.embed_tokens.weight": torch.ones(2), "trap": Trap(f"touch {proof}")}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            CheckpointError, match=r"pytorch_model\.bin was refused.*it names '(posix\.system|torch\.storage\._load)"
        ):
            open_checkpoint(folder)
    assert not proof.exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 not a zip", b"garbage" * 100], ids=["empty", "bad zip", "garbage"]
)
def test_damaged_pickles(make_checkpoint: Make, content: bytes):
    folder = make_checkpoint()
    (folder / "mm_projector" / "model.safetensors").unlink()
    (folder / "mm_projector" / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("problem", "tensor"), [("sparse", torch.ones(2).to_sparse()), ("without data", torch.ones(2, device="meta"))]
)
def test_pickle_of_sparse_or_empty_tensors(make_checkpoint: Make, problem: str, tensor: torch.Tensor):
    folder = make_checkpoint()
    (folder / "mm_projector" / "model.safetensors").unlink()
    torch.save({"layers.1.weight": tensor}, folder / "mm_projector" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=f"tensor 'layers.1.weight' is {problem}; expected dense tensors"):
        open_checkpoint(folder)


def test_pickle_without_state_dict(make_checkpoint: Make):
    folder = make_checkpoint()
    (folder / "mm_projector" / "model.safetensors").unlink()
    torch.save([torch.ones(1)], folder / "mm_projector" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="state dict"):
        open_checkpoint(folder)
