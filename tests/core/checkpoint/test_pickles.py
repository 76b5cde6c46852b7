"""torch's files are read as torch reads them, without running any of them; bombs and tricks are refused."""

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vila_core.checkpoint.tensors.pickle_machine import MAX_OPERATIONS
from vila_core.checkpoint.tensors.pickles import load_pickle, read_pickle_header, unpickle
from vila_core.errors import CheckpointError


def with_attribute() -> nn.Parameter:
    parameter = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    parameter.note = "kept by torch"  # pyright: ignore[reportAttributeAccessIssue]
    return parameter


BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
STATE: dict[str, Tensor] = {
    **{
        f"of {dtype}": torch.arange(5).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32)
    },
    **{f"of {dtype}": torch.arange(5).to(dtype) for dtype in (torch.int16, torch.int8, torch.uint8, torch.bool)},
    "of uint16": torch.arange(5, dtype=torch.int32).to(torch.uint16),
    "of float8": torch.arange(5).to(torch.float8_e4m3fn),
    "transposed": BASE.T,
    "sliced": BASE[1:3, ::2],
    "tied": BASE,
    "expanded": torch.ones(1).expand(3, 4),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "parameter": nn.Parameter(torch.ones(2, 2)),
    "with an attribute": with_attribute(),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_are_those_that_torch_saved(tmp_path: Path, zipped: bool, protocol: int) -> None:
    content = nn.Module().state_dict() | STATE  # an OrderedDict with `_metadata`
    torch.save(content, tmp_path / "a.bin", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    read, header = load_pickle(tmp_path / "a.bin"), read_pickle_header(tmp_path / "a.bin")
    assert read.keys() == STATE.keys() == header.keys()
    for name, expected in STATE.items():
        assert read[name].dtype == expected.dtype, name
        assert torch.equal(read[name].float(), expected.detach().float()), name
        assert header[name].shape == tuple(expected.shape), name


def test_containers_and_values_are_read(tmp_path: Path) -> None:
    content = {"scale": [("a", ("b", "c"), torch.ones(3))], "clip": [], "n": [1, -5, 2**40, 1.5, None, True, "é"]}
    torch.save(content, tmp_path / "a.pt")
    read = unpickle(tmp_path / "a.pt")
    assert isinstance(read, dict)
    assert read["n"] == content["n"]
    assert torch.equal(read["scale"][0][2], torch.ones(3))


def zipped(
    pickle_bytes: bytes, members: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("a/data.pkl", pickle_bytes)
        for name, data in {"a/version": b"3\n", "a/byteorder": b"little", **(members or {})}.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def tensor_pickle(shape: str, stride: str, numel: str = "K\x03", offset: str = "K\x00", tail: str = "") -> bytes:
    """A state dict {"w": tensor} with `shape` and `stride` given in pickle opcodes."""
    return (
        "\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
        f"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu{numel}tQ"
        f"{offset}({shape}t({stride}t\x89ccollections\nOrderedDict\n)R{tail}tRs."
    ).encode("latin-1")


STORAGE = {"a/data/0": bytes(12)}
BILLION = "J\x00\xca\x9a\x3b"
LAUGHS = b"\x80\x02)" + b"".join(b"q%c(h%ch%ct" % (index, index, index) for index in range(60))


class Getattr:
    def __reduce__(self) -> object:
        return getattr, (1, "real")


class Reconstructed:
    def __reduce_ex__(self, protocol: int) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch._utils._get_obj if hasattr(torch._utils, "_get_obj") else eval, ("1",)


CRAFTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "code": (lambda: saved({"a": Getattr()}), "refused.*names '.*getattr'"),
    "eval": (lambda: saved({"a": Reconstructed()}), "refused.*names"),
    "a container class": (lambda: saved({"a": collections.Counter("ab")}), "refused.*names 'collections.Counter'"),
    "a whole module": (lambda: saved(nn.Linear(2, 2)), r"refused.*opcode b'\\x81'|refused.*names 'torch.nn.modules"),
    "numpy": (lambda: saved({"a": torch.ones(2).numpy()}), "refused.*names '.*numpy"),
    "conjugate": (lambda: saved({"a": torch.ones(2, dtype=torch.complex64).conj()}), "conjugate or negative view"),
    "negative": (lambda: saved({"a": torch.ones(2, dtype=torch.complex64).conj().imag}), "conjugate or negative view"),
    "nested": (lambda: saved({"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}), "is nested"),
    "quantized": (lambda: saved({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}), "refused"),
    "compressed pickle": (lambda: zipped(bytes(10**7), compression=zipfile.ZIP_DEFLATED), "'a/data.pkl' is compressed"),
    "big pickle": (lambda: zipped(b"\x80\x02" + b"]" * 17_000_000), "17,000,002 bytes, too many"),
    "big version": (lambda: zipped(b".", {"a/version": bytes(10**6)}), "'version' has 1,000,000 bytes"),
    "big byteorder": (lambda: zipped(b".", {"a/byteorder": bytes(2000)}), "'byteorder' has 2,000 bytes"),
    "big-endian": (lambda: zipped(b"\x80\x02}.", {"a/byteorder": b"big"}), "byte order is b'big'"),
    "many members": (lambda: zipped(b".", {f"a/{n}": b"" for n in range(100_001)}), "100,004 members"),
    "TorchScript": (lambda: zipped(b"\x80\x02}.", {"a/constants.pkl": b""}), "refused.*TorchScript"),
    "no pickle": (lambda: zipped(b"").replace(b"data.pkl", b"data.txt"), "no 'data.pkl'"),
    "comment": (lambda: zipped(b"\x80\x02}.") + b"x", "truncated"),
    "prefix": (lambda: b"PK\x03\x04" + zipped(b"\x80\x02}."), "damaged directory"),
    "truncated": (lambda: saved(STATE)[:-100], "truncated"),
    "missing storage": (lambda: zipped(tensor_pickle("K\x03", "K\x01")), "storage '0' is missing"),
    "short storage": (lambda: zipped(tensor_pickle("K\x04", "K\x01", "K\x04"), STORAGE), "shorter than its tensors"),
    "expanded": (lambda: zipped(tensor_pickle(f"{BILLION}K\x03", "K\x00K\x01"), STORAGE), "repeats the 3 numbers"),
    "beyond": (lambda: zipped(tensor_pickle("K\x04", "K\x01"), STORAGE), "leaves its storage"),
    "wide stride": (lambda: zipped(tensor_pickle("K\x02", BILLION), STORAGE), "leaves its storage"),
    "negative stride": (lambda: zipped(tensor_pickle("K\x02", "J\xff\xff\xff\xff"), STORAGE), r"strides \(-1"),
    "negative offset": (lambda: zipped(tensor_pickle("K\x02", "K\x01", offset="J\xff\xff\xff\xff"), STORAGE), "-1"),
    "negative storage": (lambda: zipped(tensor_pickle("K\x01", "K\x01", "J\xff\xff\xff\xff"), STORAGE), "has -1"),
    "huge size": (lambda: zipped(tensor_pickle("\x8a\x09" + "\xff" * 8 + "\x00", "K\x00"), STORAGE), "sizes"),
    "unequal": (lambda: zipped(tensor_pickle("K\x01K\x01", "K\x01"), STORAGE), "2 sizes, 1 strides"),
    "text as size": (lambda: zipped(tensor_pickle("X\x01\x00\x00\x00a", "K\x01"), STORAGE), "sizes or strides"),
    "many dimensions": (lambda: zipped(tensor_pickle("K\x01" * 65, "K\x01" * 65), STORAGE), "sizes or strides"),
    "memo of 4 billion": (lambda: zipped(b"\x80\x02}r\xff\xff\xff\xff."), "expected names mapped|^$"),
    "text of 4 GB": (lambda: zipped(b"\x80\x02X\xff\xff\xff\xffabc."), "truncated"),
    "bytearray of 2^63": (lambda: zipped(b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f."), "refused.*opcode"),
    "LONG4": (lambda: zipped(b"\x80\x02\x8b\xff\xff\xff\x7f."), "refused.*opcode"),
    "DUP": (lambda: zipped(b"\x80\x02]" + b"2a" * 1000 + b"."), "refused.*opcode"),
    "a million lists": (lambda: zipped(b"\x80\x02" + b"]" * (MAX_OPERATIONS + 1) + b"."), "operations"),
    "a list in itself": (lambda: zipped(b"\x80\x02]q\x00h\x00a."), "list; expected a state dict|nests"),
    "laughs": (lambda: zipped(LAUGHS + b"."), "nests too deeply"),
    "laughs as a key": (lambda: zipped(LAUGHS + b"}h\x3bNs."), "key is a tuple"),
    "deep": (lambda: zipped(b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."), "nests too deeply"),
    "no stop": (lambda: zipped(b"\x80\x02}"), "truncated"),
    "empty stack": (lambda: zipped(b"\x80\x02."), "damaged at byte"),
    "persistent id": (lambda: zipped(b"\x80\x02K\x01Q."), "persistent id"),
    "tar": (lambda: b"a" + bytes(256) + b"ustar" + bytes(500), "damaged|not a torch file"),
    "old magic alone": (lambda: pickle.dumps(0x1950A86A20F9469CFC6C, 2), "truncated"),
    "old, cut": (lambda: saved(STATE, _use_new_zipfile_serialization=False)[:-9], "truncated"),
    "a plain pickle": (lambda: pickle.dumps({"a": 1}), "magic number"),
    "empty": (lambda: b"", "is empty"),
    "safetensors": (lambda: struct.pack("<Q", 2) + b"{}", "damaged|refused"),
    "LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 3\n", "Git LFS pointer"),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused(name: str, tmp_path: Path) -> None:
    make, message = CRAFTED[name]
    (tmp_path / "a.bin").write_bytes(make())
    if name == "memo of 4 billion":  # harmless here: the memo is a dictionary
        assert load_pickle(tmp_path / "a.bin") == {}
        return
    with pytest.raises(CheckpointError, match=message):
        load_pickle(tmp_path / "a.bin")


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """A directory of overlapping members, as in a zip bomb that does not nest."""
    data = zipped(b"\x80\x02}.", {"a/data/0": bytes(5000)})
    start, directory = data.index(b"PK\x01\x02"), data[data.index(b"PK\x01\x02") : -22]
    last = directory[directory.rindex(b"PK\x01\x02") :]
    renamed = [last.replace(b"a/data/0", b"a/data/%c" % (65 + index)) for index in range(20)]
    grown = directory + b"".join(renamed)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 24, 24, len(grown), start, 0)
    (tmp_path / "a.bin").write_bytes(data[:start] + grown + end)
    with pytest.raises(CheckpointError, match="overlap"):
        load_pickle(tmp_path / "a.bin")
