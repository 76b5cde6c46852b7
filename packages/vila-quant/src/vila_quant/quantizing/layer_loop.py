"""Quantize the blocks of the language model one by one: read, quantize, save, and run the calibration through.

B sequences, T tokens, D width
"""

import gc
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.cli.progress import Progress
from vila_core.device_memory import is_out_of_memory
from vila_core.language.decoder import Block
from vila_quant.awq.block import LINEARS, BlockInputs, linear, run_block
from vila_quant.awq.method import BlockOptions, BlockQuantizer, QuantizedBlock
from vila_quant.awq.scales import mean_squared_error
from vila_quant.errors import QuantizationError
from vila_quant.quantizing.blocks import TensorReader, restore_block, round_block, store_block
from vila_quant.quantizing.options import QuantizationOptions
from vila_quant.quantizing.plan import LAYERS, Plan
from vila_quant.quantizing.work_folder import WorkFolder

SEQUENCES_AT_ONCE = {"cuda": 16, "cpu": 4}
JUDGED_SEQUENCES = 4
"""Sequences used to measure the loss of a block."""


@dataclass
class LayerLoop:
    """Quantizes all blocks.

    Attributes:
        plan, options: what to quantize, and how.
        method: the search method.
        reader: reads the unquantized weights.
        work: stores finished blocks.
        device, dtype: of the computation.
        progress: receives progress.
        sequences_at_once: sequences per forward pass; halved when memory runs out.
    """

    plan: Plan
    options: QuantizationOptions
    method: BlockQuantizer
    reader: TensorReader
    work: WorkFolder
    device: torch.device
    dtype: torch.dtype
    progress: Progress
    sequences_at_once: int = 0

    def run(self, embeds: Tensor, block_inputs: BlockInputs) -> Tensor:
        """Quantize every block that is not finished; return the output of the last one, `[B, T, D]`.

        Raises:
            QuantizationError: weights or activations are not finite (the layer is named), or one sequence does not
                fit into memory.
        """
        self.sequences_at_once = self.sequences_at_once or SEQUENCES_AT_ONCE.get(self.device.type, 4)
        layers = self.plan.config.num_hidden_layers
        done = sum(self.work.has(step_name(layer)) for layer in range(layers))
        self.progress.start("Layers", layers, done)
        x = embeds
        for layer in range(layers):
            x = self._layer(layer, x, block_inputs)
        return x

    def _layer(self, layer: int, x: Tensor, block_inputs: BlockInputs) -> Tensor:
        while True:
            try:
                return self._attempt(layer, x, block_inputs)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.sequences_at_once == 1:
                    raise QuantizationError(
                        f"{LAYERS}.{layer} does not fit into the memory of {self.device}, one sequence at a time. "
                        f"Use a shorter --sequence-length{'' if self.device.type == 'cpu' else ', or --device cpu'}."
                    ) from error
            # Outside the handler, since the exception keeps the tensors of the failed frames alive.
            self.sequences_at_once //= 2
            x = x.cpu()
            gc.collect()
            torch.cuda.empty_cache()
            where = "." if self.device.type == "cpu" else "; the others stay in host memory."
            self.progress.warn(
                f"The memory of {self.device} is full at layer {layer}: continuing with {self.sequences_at_once} "
                f"sequences at a time{where}"
            )

    def _attempt(self, layer: int, x: Tensor, block_inputs: BlockInputs) -> Tensor:
        step = step_name(layer)
        whole = None
        if not self.work.has(step):
            whole = self.reader.block(self.plan.config, layer, self.dtype)
            after = None if self.method.follows_quantized else self._pass(whole, x, block_inputs)
            self._quantize(layer, whole, x, block_inputs)
            if after is not None:
                return after
        if not self.method.follows_quantized:
            return self._pass(self.reader.block(self.plan.config, layer, self.dtype), x, block_inputs)
        # Read back even if just saved, so that a resumed run sees the same bits.
        del whole
        return self._pass(self._restored(layer), x, block_inputs)

    def _restored(self, layer: int) -> Block:
        tensors = dict(self.work.tensors(step_name(layer)).shards(self.device))
        return restore_block(tensors, self.plan.config, layer, self.device, self.dtype)

    @torch.no_grad()
    def _quantize(self, layer: int, block: Block, x: Tensor, block_inputs: BlockInputs) -> None:
        """Quantize `block` in place, and save it with its loss."""
        started = time.perf_counter()
        name = f"{LAYERS}.{layer}"
        some = slice(0, min(JUDGED_SEQUENCES, self.sequences_at_once))
        judged, around = x[some].to(self.device), block_inputs.of(some)
        expected = run_block(block, judged, around)
        skip = self.plan.skipped[layer]
        nearest = self._lost_by_rounding(layer, block, judged, around, expected)
        options = BlockOptions(
            self.options.bits,
            self.options.group_size,
            skip,
            self.sequences_at_once,
            self.reader.stored_dtype(f"{name}.input_layernorm.weight"),
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                found = self.method.quantize_block(block, x, block_inputs, options)
            except QuantizationError as error:
                raise QuantizationError(f"{name}.{error}") from error
        for warning in caught:
            self.progress.warn(f"{name}.{warning.message}")
        tensors = store_block(block, found, self.reader, layer)
        restored = restore_block(tensors, self.plan.config, layer, self.device, self.dtype)
        lost = mean_squared_error(run_block(restored, judged, around), expected)
        power = float((expected - judged).float().pow(2).mean())
        record: dict[str, object] = {
            "mse_nearest": nearest,
            "mse": lost,
            "power": power,
            "parts": {part: list(losses) for part, losses in found.losses.items()},
            "seconds": time.perf_counter() - started,
        }
        if not all(torch.isfinite(torch.tensor([nearest, lost, power]))):
            raise QuantizationError(
                f"{name}: its outputs are not finite. Check the checkpoint and its dtype: fp16 overflows where bf16 "
                "does not."
            )
        if self.options.search_results:
            self.work.save(f"{step_name(layer)}-search", _search_tensors(found), {})
        self.work.save(step_name(layer), tensors, record)
        self.progress.advance(note=f"error {lost:.3g}, with plain rounding {nearest:.3g}")

    def _lost_by_rounding(
        self, layer: int, block: Block, x: Tensor, block_inputs: BlockInputs, expected: Tensor
    ) -> float:
        """Return the loss of rounding to nearest; the block is unchanged on return."""
        weights = {name: linear(block, name).weight for name in LINEARS if name not in self.plan.skipped[layer]}
        originals = {name: weight.clone() for name, weight in weights.items()}
        round_block(block, weights, self.options.bits, self.options.group_size)
        lost = mean_squared_error(run_block(block, x, block_inputs), expected)
        for name, weight in weights.items():
            weight.copy_(originals[name])
        return lost

    @torch.no_grad()
    def _pass(self, block: Block, x: Tensor, block_inputs: BlockInputs) -> Tensor:
        """Return the block's output for all sequences, on the device of `x`."""
        out = torch.empty_like(x)
        for start in range(0, len(x), self.sequences_at_once):
            rows = slice(start, start + self.sequences_at_once)
            out[rows] = run_block(block, x[rows].to(self.device), block_inputs.of(rows)).to(x.device)
        return out


def step_name(layer: int) -> str:
    """Return the name of a layer's step in the working folder."""
    return f"layer-{layer:03}"


def _search_tensors(found: QuantizedBlock) -> dict[str, Tensor]:
    kinds: Mapping[str, Mapping[str, Tensor]] = {"scale": found.scales, "clip": found.clips}
    return {f"{kind}:{key}": tensor.cpu() for kind, tensors in kinds.items() for key, tensor in tensors.items()}
