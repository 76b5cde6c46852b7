"""Read decoder blocks from a checkpoint's files, one at a time, and convert them back to stored tensors.

N outputs, K inputs, D width
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from vila_core.checkpoint import Checkpoint, TensorEntry
from vila_core.checkpoint.tensors.dtypes import DTYPES
from vila_core.checkpoint.tensors.lora import Adapter
from vila_core.checkpoint.tensors.reading import read_tensors
from vila_core.config import DecoderConfig
from vila_core.errors import CheckpointError
from vila_core.language.decoder import Block
from vila_quant.awq.block import LINEARS, linear
from vila_quant.awq.method import QuantizedBlock
from vila_quant.errors import QuantizationError
from vila_quant.packing.autoawq import GemmTensors, pack_gemm, unpack_gemm
from vila_quant.packing.groupwise import GroupwiseWeight, fake_quantize
from vila_quant.quantizing.plan import LAYERS


class TensorReader:
    """Reads tensors by name, merges an adapter, and rejects values that are not finite.

    Args:
        checkpoint: unquantized, in files.
        overlay: an adapter to merge.
        device: device of the returned tensors.
    """

    def __init__(self, checkpoint: Checkpoint, overlay: Adapter | None, device: torch.device):
        self._checkpoint, self._overlay, self._device = checkpoint, overlay, device

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors in their stored dtype.

        Raises:
            CheckpointError: a tensor is missing.
            QuantizationError: a tensor has values that are not finite.
        """
        entries = self._checkpoint.weights.entries
        by_file: dict[object, dict[str, TensorEntry]] = {}
        for name in names:
            if name not in entries:
                raise CheckpointError(f"{self._checkpoint.path} has no tensor '{name}', though its config requires it.")
            by_file.setdefault(entries[name].file, {})[name] = entries[name]
        tensors: dict[str, Tensor] = {}
        for wanted in by_file.values():
            file = next(iter(wanted.values())).file
            for name, stored in read_tensors(file, wanted, self._device):
                tensor = self._overlay.apply(name, stored) if self._overlay else stored
                if not bool(torch.isfinite(tensor).all()):
                    raise QuantizationError(
                        f"{name} has values that are not finite. The checkpoint is damaged, or its training diverged."
                    )
                tensors[name] = tensor
        return tensors

    def block(self, config: DecoderConfig, layer: int, dtype: torch.dtype) -> Block:
        """Return a block with unquantized weights in `dtype`."""
        block = empty_block(config, layer)
        prefix = f"{LAYERS}.{layer}."
        tensors = self.read(f"{prefix}{name}" for name in block.state_dict())
        load_block(block, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, dtype)
        return block

    def stored_dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor in its file."""
        return DTYPES[self._checkpoint.weights.entries[name].dtype]


def empty_block(config: DecoderConfig, layer: int) -> Block:
    """Return a block on the meta device."""
    with torch.device("meta"):
        return Block(config, layer)


def load_block(block: Block, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Fill a block with unquantized tensors by name, in `dtype`. Raises `CheckpointError` for a wrong shape."""
    for name, wanted in block.state_dict().items():
        if tensors[name].shape != wanted.shape:
            raise CheckpointError(
                f"{name} has shape {list(tensors[name].shape)}; the config says {list(wanted.shape)}."
            )
    block.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    block.eval().requires_grad_(False)


def store_block(block: Block, found: QuantizedBlock, reader: TensorReader, layer: int) -> dict[str, Tensor]:
    """Return all tensors of a quantized block by canonical name, on the CPU, unquantized ones in their stored dtype."""
    prefix = f"{LAYERS}.{layer}."
    tensors: dict[str, Tensor] = {}
    for name, tensor in block.state_dict().items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module in found.weights:
            tensors |= gemm_tensors(f"{prefix}{module}", found.weights[module])
        else:
            tensors[prefix + name] = tensor.to("cpu", reader.stored_dtype(prefix + name))
    return tensors


def gemm_tensors(module: str, weight: GroupwiseWeight) -> dict[str, Tensor]:
    """Return an int4 linear's tensors by name, on the CPU. Raises `QuantizationError` if a scale overflows fp16."""
    packed = pack_gemm(weight)
    if not bool(torch.isfinite(packed.scales).all()):
        raise QuantizationError(f"{module}: a scale overflows fp16. Leave the layer out with --skip.")
    return {f"{module}.{name}": tensor.cpu() for name, tensor in vars(packed).items()}


def restore_block(
    tensors: Mapping[str, Tensor], config: DecoderConfig, layer: int, device: torch.device, dtype: torch.dtype
) -> Block:
    """Return the block saved by `store_block`, with dequantized weights."""
    prefix = f"{LAYERS}.{layer}."
    block = empty_block(config, layer)
    whole = {name.removeprefix(prefix): tensor.to(device) for name, tensor in tensors.items() if not _is_packed(name)}
    for name in LINEARS:
        if f"{prefix}{name}.qweight" in tensors:
            parts = {kind: tensors[f"{prefix}{name}.{kind}"].to(device) for kind in ("qweight", "qzeros", "scales")}
            weight = unpack_gemm(GemmTensors(**parts))
            whole[f"{name}.weight"] = GroupwiseWeight(
                weight.q, weight.scales.float(), weight.zeros.float(), weight.bits
            ).dequantize()
    load_block(block, whole, dtype)
    return block


def round_block(block: Block, names: Iterable[str], bits: int, group_size: int) -> None:
    """Round linears of a block to nearest, in place."""
    for name in names:
        weight = linear(block, name).weight
        weight.copy_(fake_quantize(weight.float(), bits, group_size))


def _is_packed(name: str) -> bool:
    return name.endswith((".qweight", ".qzeros", ".scales"))
