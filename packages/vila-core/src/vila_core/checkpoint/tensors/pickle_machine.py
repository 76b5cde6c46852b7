"""A pickle machine for state dicts: it builds containers, numbers, strings and descriptions of tensors, nothing else.

Python's own unpickler imports and calls what a file names. This one knows a fixed set of names, calls nothing, and
takes time and memory in proportion to the pickle's length. Torch is not needed.
Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py; names: torch/_utils.py, torch/storage.py.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from vila_core.errors import shown

MAX_OPERATIONS = 2_000_000
"""A state dict takes about 40 per tensor."""
_MAX_DIMENSIONS = 16
_MAX_SIZE = 2**48
_MAX_EXPANDED_BYTES = 16 * 1024 * 1024
"""Largest tensor that may repeat the numbers of a smaller storage, such as an expanded vector of positions."""


class UnsafePickleError(Exception):
    """The pickle names something other than tensors and plain values."""


class DamagedPickleError(Exception):
    """The pickle is cut, inconsistent or of unreasonable size."""


@dataclass(frozen=True)
class Storage:
    """A block of numbers: `key` names it in the file, `dtype` is None for bytes without a type."""

    key: str
    dtype: str | None
    nbytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage: `offset` and `stride` in elements."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Elements of the storage from the tensor's first to its last."""
        if not self.numel:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


@dataclass(frozen=True)
class OtherTensor:
    """A tensor that is not a dense block of numbers; `kind` completes "tensor x is ...": "sparse", "without data"."""

    kind: str


@dataclass(frozen=True)
class _Name:
    """A name that the pickle mentions, such as "torch.FloatStorage"."""

    text: str


ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4, "I16": 2,
    "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
    "C128": 16,
}  # fmt: skip

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "ComplexDoubleStorage": "C128",
}  # fmt: skip

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64",
    "complex128": "C128",
}  # fmt: skip

_OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "without data",
    "torch._utils._rebuild_qtensor": "quantized in torch's own format",
}

_KNOWN = (
    {f"torch.{name}" for name in (*_STORAGES, *_DTYPES)}
    | {"torch.storage.UntypedStorage", "torch.UntypedStorage", "collections.OrderedDict", "torch.Size", "torch.device"}
    | {f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3", "parameter")}
    | {"torch._utils._rebuild_parameter_with_state", "torch._tensor._rebuild_from_type_v2", "torch.Tensor"}
    | {"torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.serialization._get_layout", *_OTHER_TENSORS}
)
_MARK = object()


def read_pickle(data: memoryview, start: int = 0) -> tuple[object, int]:
    """Return the value of the pickle at `start` in `data`, and the position behind it.

    Containers are dicts, lists and tuples; tensors are `StoredTensor` or `OtherTensor`.

    Raises:
        UnsafePickleError: the pickle names anything but tensors and plain values.
        DamagedPickleError: it is cut or inconsistent, or too large.
    """
    machine = _Machine(data, start)
    try:
        return machine.run(), machine.position
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise DamagedPickleError(f"its pickle is damaged at byte {machine.position:,}") from error


class _Machine:
    def __init__(self, data: memoryview, start: int):
        self.data, self.position = data, start
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        for _ in range(MAX_OPERATIONS):
            code = bytes(self.take(1))
            if code == b".":
                return self.stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise UnsafePickleError(f"opcode {code!r} at byte {self.position - 1:,}")
            operation(self)
        raise DamagedPickleError(f"its pickle has more than {MAX_OPERATIONS:,} operations")

    def take(self, count: int) -> memoryview:
        found = self.data[self.position : self.position + count]
        if len(found) < count:
            raise DamagedPickleError("it ends inside its pickle: the file is truncated")
        self.position += count
        return found

    def skip(self, count: int) -> None:
        self.take(count)

    def unpack(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        text = bytes(self.data[self.position : self.position + 500])
        end = text.index(b"\n")
        self.position += end + 1
        return text[:end].decode()

    def text(self, length: int) -> None:
        self.stack.append(str(self.take(length), "utf-8"))

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.unpack("<B")), "little", signed=True))

    def since_mark(self) -> list[object]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise DamagedPickleError("its pickle has no mark")

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise IndexError
        self.stack[-count:] = [items]

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # hashing a nest of tuples can take for ever
                raise DamagedPickleError(f"a key is a {type(key).__name__}; expected names")
            cast(dict[object, object], target)[key] = value

    def append(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError
        cast(list[object], target).extend(items)

    def name(self, module: object, attribute: object) -> None:
        text = f"{module}.{attribute}"
        if text not in _KNOWN:
            raise UnsafePickleError(f"it names {shown(text)}")
        self.stack.append(_Name(text))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise UnsafePickleError("it calls something that is not a function of torch")
        self.stack.append(_call(function.text, cast(tuple[object, ...], arguments)))

    def build(self) -> None:
        """Attributes of a state dict or tensor (`_metadata`) are ignored."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict | StoredTensor):
            raise UnsafePickleError("it sets the state of an object that is not a tensor")

    def storage(self) -> None:
        match self.stack.pop():
            case ("storage", _Name(text), str(key), str(), int(numel), *views) if views in ([], [None]):
                kind = text.rpartition(".")[2]
                dtype = _STORAGES.get(kind)
                if (dtype is None and kind != "UntypedStorage") or not 0 <= numel < _MAX_SIZE:
                    raise DamagedPickleError(f"a storage has {shown(numel)} numbers of type '{kind}'")
                self.stack.append(Storage(key, dtype, numel * (ITEM_BYTES[dtype] if dtype else 1)))
            case other:
                raise UnsafePickleError(f"a persistent id is a {type(other).__name__} of unknown form")


def _call(name: str, arguments: tuple[object, ...]) -> object:
    """Return what one of torch's functions would make of its arguments."""
    if name in _OTHER_TENSORS:
        return OtherTensor(_OTHER_TENSORS[name])
    match name, arguments:
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (
            Storage() as storage, int(offset), tuple(shape), tuple(stride), *rest,
        ):  # fmt: skip
            if storage.dtype is None:
                raise TypeError
            metadata = rest[2] if len(rest) > 2 else None
            return OtherTensor("a conjugate or negative view") if metadata else _view(storage, offset, shape, stride)
        case "torch._utils._rebuild_tensor_v3", (
            Storage() as storage, int(offset), tuple(shape), tuple(stride), _, _, _Name(dtype), *rest,
        ):  # fmt: skip
            typed = replace(storage, dtype=_DTYPES[dtype.removeprefix("torch.")])
            return OtherTensor("a conjugate or negative view") if any(rest) else _view(typed, offset, shape, stride)
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (data, *_):
            return _tensor(data)
        case "torch._tensor._rebuild_from_type_v2", (_Name(function), _Name(), tuple(inner), *_):
            return _tensor(_call(function, cast(tuple[object, ...], inner)))
        case "collections.OrderedDict", ():
            return dict[object, object]()
        case "torch.Size", (tuple(sizes),):
            return cast(tuple[object, ...], sizes)
        case (("torch.device" | "torch.serialization._get_layout"), (str(text), *_)):
            return text
        case _:
            raise UnsafePickleError(f"it calls '{name}' in an unknown form")


def _tensor(value: object) -> StoredTensor | OtherTensor:
    if not isinstance(value, StoredTensor | OtherTensor):
        raise TypeError
    return value


def _view(storage: Storage, offset: int, shape: object, stride: object) -> StoredTensor:
    sizes, steps = _sizes(shape), _sizes(stride)
    assert storage.dtype is not None
    if len(sizes) != len(steps) or not 0 <= offset < _MAX_SIZE:
        raise DamagedPickleError(f"a tensor has {len(sizes)} sizes, {len(steps)} strides and offset {shown(offset)}")
    tensor = StoredTensor(storage, storage.dtype, sizes, steps, offset)
    item = ITEM_BYTES[tensor.dtype]
    numel = storage.nbytes // item
    if tensor.numel and tensor.offset + tensor.span > numel:
        raise DamagedPickleError(f"a tensor {shown(list(sizes))} leaves its storage of {numel:,} numbers")
    if tensor.numel > numel and tensor.numel * item > _MAX_EXPANDED_BYTES:
        raise DamagedPickleError(f"a tensor {shown(list(sizes))} repeats the {numel:,} numbers of its storage")
    return tensor


def _sizes(value: object) -> tuple[int, ...]:
    items = cast(tuple[object, ...], value)
    sizes = tuple(item for item in items if isinstance(item, int) and 0 <= item < _MAX_SIZE)
    if len(sizes) != len(items) or len(items) > _MAX_DIMENSIONS:
        raise DamagedPickleError(f"a tensor has sizes or strides {shown(items)}")
    return sizes


def _memoize(machine: _Machine, key: int) -> None:
    machine.memo[key] = machine.stack[-1]


def _push(value: Callable[[_Machine], object]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value(machine))


_OPERATIONS: Mapping[bytes, Callable[[_Machine], None]] = {
    b"\x80": lambda machine: _require_protocol(machine.unpack("<B")),
    b"\x95": lambda machine: machine.skip(8),  # a frame only says how much to read ahead
    b"(": _push(lambda _: _MARK),
    b"}": _push(lambda _: {}),
    b"]": _push(lambda _: []),
    b")": _push(lambda _: ()),
    b"N": _push(lambda _: None),
    b"\x88": _push(lambda _: True),
    b"\x89": _push(lambda _: False),
    b"K": _push(lambda machine: machine.unpack("<B")),
    b"M": _push(lambda machine: machine.unpack("<H")),
    b"J": _push(lambda machine: machine.unpack("<i")),
    b"G": _push(lambda machine: machine.unpack(">d")),
    b"\x8a": _Machine.long,
    b"X": lambda machine: machine.text(machine.unpack("<I")),
    b"\x8c": lambda machine: machine.text(machine.unpack("<B")),
    b"q": lambda machine: _memoize(machine, machine.unpack("<B")),
    b"r": lambda machine: _memoize(machine, machine.unpack("<I")),
    b"\x94": lambda machine: _memoize(machine, len(machine.memo)),
    b"h": _push(lambda machine: machine.memo[machine.unpack("<B")]),
    b"j": _push(lambda machine: machine.memo[machine.unpack("<I")]),
    b"t": lambda machine: machine.stack.append(tuple(machine.since_mark())),
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"s": lambda machine: machine.set_items(_pop(machine, 2)),
    b"u": lambda machine: machine.set_items(machine.since_mark()),
    b"a": lambda machine: machine.append(_pop(machine, 1)),
    b"e": lambda machine: machine.append(machine.since_mark()),
    b"c": lambda machine: machine.name(machine.line(), machine.line()),
    b"\x93": lambda machine: machine.name(*_pop(machine, 2)),
    b"R": _Machine.reduce,
    b"b": _Machine.build,
    b"Q": _Machine.storage,
}
"""By opcode. Left out: all that imports, calls or duplicates in other ways (INST, OBJ, NEWOBJ, EXT, DUP, LONG4 ...)."""


def _pop(machine: _Machine, count: int) -> list[object]:
    items = machine.stack[-count:]
    del machine.stack[-count:]
    if len(items) < count:
        raise IndexError
    return items


def _require_protocol(version: int) -> None:
    if version > 5:
        raise DamagedPickleError(f"its pickle has protocol {version}")
