"""Read TinyChat's linears as AutoAWQ's: the same integers, scales and zeros, repacked one linear at a time.

N outputs, K inputs, G = K / 128 groups
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vila_core.checkpoint import Checkpoint, TensorEntry, WeightIndex
from vila_core.checkpoint.tensors.copying import tensor_bytes
from vila_core.checkpoint.tensors.dtypes import DTYPE_NAMES, DTYPES
from vila_core.checkpoint.tensors.pickles import load_pickle
from vila_core.config import DecoderConfig
from vila_core.errors import CheckpointError, ConfigError
from vila_core.plugins.loader import load_plugins
from vila_quant.formats.layers import GROUPWISE_TENSORS
from vila_quant.packing.autoawq import GemmTensors, pack_gemm, unpack_gemm
from vila_quant.packing.tinychat import (
    GROUP_SIZE,
    INTERLEAVE,
    TinyChatTensors,
    pack_tinychat,
    padded_groups,
    unpack_tinychat,
)

PREFIX = "llm."
TINYCHAT_TENSORS = {"qweight": "I16", "scales": "F16", "scaled_zeros": "F16"}
"""The tensors of a linear in the file, and their dtypes."""

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class TinyChatWeights:
    """The language model in TinyChat's file, and the unquantized `rest` of the model.

    Attributes:
        file: `NAME-w4-g128-awq-v2.pt`, a state dict of the language model.
        rest: tensors of the other parts.
        entries: all tensors by canonical name, quantized ones in AutoAWQ's form.
        linears: names of the quantized linears in the file.
    """

    file: Path
    rest: WeightIndex
    entries: Mapping[str, TensorEntry]
    linears: frozenset[str]

    def shards(self, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
        """Yield (canonical name, tensor on `device`); the file is memory-mapped, and one linear is repacked at a time.

        Raises:
            CheckpointError: a file changed or cannot be read, or a linear's zeros are not in 0 … 15.
        """
        for name, tensor in self._language_model():
            yield name, tensor.to(device, copy=True)
        yield from self.rest.shards(device)

    def stream(self) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
        """Yield (canonical name, its bytes). Raises `CheckpointError` as `shards` does."""
        for name, tensor in self._language_model():
            yield name, iter([tensor_bytes(tensor)])
        yield from self.rest.stream()

    def _language_model(self) -> Iterator[tuple[str, Tensor]]:
        tensors = load_pickle(self.file)
        for key, tensor in tensors.items():
            module, _, kind = key.rpartition(".")
            if module not in self.linears or kind not in TINYCHAT_TENSORS:
                if PREFIX + key in self.entries:
                    yield PREFIX + key, tensor
            elif kind == "qweight":
                gemm = self._repacked(module, tensors)
                yield from zip(
                    (f"{PREFIX}{module}.{name}" for name in GROUPWISE_TENSORS),
                    (gemm.qweight, gemm.qzeros, gemm.scales),
                    strict=True,
                )

    def _repacked(self, module: str, tensors: Mapping[str, Tensor]) -> GemmTensors:
        try:
            return pack_gemm(
                unpack_tinychat(TinyChatTensors(*(tensors[f"{module}.{kind}"] for kind in TINYCHAT_TENSORS)))
            )
        except CheckpointError as error:
            raise CheckpointError(f"{self.file}, layer '{module}': {error}") from None


def index_tinychat(file: Path, rest: WeightIndex) -> TinyChatWeights:
    """Index the tensors of TinyChat's `file` and of the `rest` of the model, without reading them.

    Raises:
        CheckpointError: the file is missing or damaged, contains anything but tensors, has version 1, or a tensor of a
            linear is missing or has a wrong dtype or shape.
    """
    tensors = load_pickle(file)
    for key, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{file}: tensor '{key}' has dtype {tensor.dtype}, which is not supported.")
    found = {
        key: TensorEntry(file, key, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), None)
        for key, tensor in tensors.items()
    }
    if HEAD in tensors and EMBEDDING in tensors and tensors[HEAD].data_ptr() == tensors[EMBEDDING].data_ptr():
        del found[HEAD]  # a tied model's head, which a state dict contains twice
    linears = {key.removesuffix(".qweight"): entry for key, entry in found.items() if key.endswith(".qweight")}
    if not linears:
        raise CheckpointError(f"{file} has no tensor 'qweight': it is not what llm-awq writes with --dump_quant.")
    entries: dict[str, TensorEntry] = {}
    for key, entry in found.items():
        module, _, kind = key.rpartition(".")
        if module not in linears or kind not in TINYCHAT_TENSORS:
            entries[PREFIX + key] = entry
        elif kind == "qweight":
            entries |= _gemm_entries(file, module, found)
    return TinyChatWeights(file, rest, {**entries, **rest.entries}, frozenset(linears))


def _gemm_entries(file: Path, module: str, found: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Check a linear's tensors in the file, and return the entries of the repacked ones."""
    qweight = found[f"{module}.qweight"]
    if qweight.dtype == "I32":
        raise CheckpointError(
            f"{file} is TinyChat's version 1 ('{module}.qweight' is int32). Repack it with llm-awq's "
            "offline-weight-repacker.py."
        )
    if len(qweight.shape) != 2 or 0 in qweight.shape or qweight.shape[1] % GROUP_SIZE:
        raise CheckpointError(
            f"{file}: '{module}.qweight' has shape {list(qweight.shape)}; expected [N/4, K], K a multiple of 128."
        )
    outputs, inputs = INTERLEAVE * qweight.shape[0], qweight.shape[1]
    if outputs % 8:
        raise CheckpointError(f"{file}: '{module}' has {outputs} outputs; expected a multiple of 8.")
    groups = inputs // GROUP_SIZE
    shapes = {"qweight": qweight.shape, **dict.fromkeys(("scales", "scaled_zeros"), (padded_groups(groups), outputs))}
    for kind, dtype in TINYCHAT_TENSORS.items():
        entry = found.get(f"{module}.{kind}")
        if entry is None or entry.dtype != dtype or entry.shape != shapes[kind]:
            got = "is missing" if entry is None else f"is {entry.dtype} {list(entry.shape)}"
            raise CheckpointError(f"{file}: '{module}.{kind}' {got}; expected {dtype} {list(shapes[kind])}.")
    gemm = {
        "qweight": ("I32", (inputs, outputs // 8)),
        "qzeros": ("I32", (groups, outputs // 8)),
        "scales": ("F16", (groups, outputs)),
    }
    return {
        f"{PREFIX}{module}.{kind}": TensorEntry(file, f"{module}.{kind}", dtype, shape, None)
        for kind, (dtype, shape) in gemm.items()
    }


def state_dict(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return TinyChat's state dict of the quantized language model, in the order of the model's modules.

    Unquantized tensors keep their dtypes; TinyChat casts to fp16 when it loads them.

    Raises:
        CheckpointError: a layer's zeros cannot be recovered from TinyChat's form.
    """
    tensors: dict[str, Tensor] = {}
    for name, chunks in checkpoint.weights.stream():
        if name.startswith(PREFIX):
            entry = checkpoint.weights.entries[name]
            content = torch.frombuffer(bytearray(b"".join(chunks)), dtype=DTYPES[entry.dtype])
            tensors[name.removeprefix(PREFIX)] = content.reshape(entry.shape)
    config = checkpoint.config.language_model
    if isinstance(config, DecoderConfig) and config.tie_word_embeddings:
        tensors[HEAD] = tensors[EMBEDDING]  # TinyChat unties the model when it loads it
    with torch.device("meta"):
        network = load_plugins().language_models.get(config.name).build(config)
    ordered: dict[str, Tensor] = {}
    for key in [*network.state_dict(), *tensors]:
        module, _, kind = key.rpartition(".")
        if kind == "weight" and f"{module}.qweight" in tensors:
            gemm = GemmTensors(*(tensors.pop(f"{module}.{name}") for name in GROUPWISE_TENSORS))
            try:
                packed = pack_tinychat(unpack_gemm(gemm))
            except ConfigError as error:
                raise CheckpointError(f"Layer '{module}' of {checkpoint.path}: {error}") from None
            ordered |= {f"{module}.{name}": vars(packed)[name] for name in TINYCHAT_TENSORS}
        elif key in tensors:
            ordered[key] = tensors.pop(key)
    return ordered
