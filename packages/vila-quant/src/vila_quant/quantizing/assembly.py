"""Assemble the quantized checkpoint from finished steps in the working folder and the unchanged weights."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vila_core.checkpoint import Checkpoint, TensorEntry, WeightIndex, Weights
from vila_core.checkpoint.conversion import writable_format
from vila_core.checkpoint.tensors.lora import Adapter, MergedWeights
from vila_quant.awq.method import QuantizedBlock
from vila_quant.quantizing.layer_loop import step_name
from vila_quant.quantizing.options import QuantizationOptions
from vila_quant.quantizing.plan import LAYERS, Plan
from vila_quant.quantizing.work_folder import WorkFolder

HEAD_STEP, VISION_STEP = "head", "vision"
"""Steps besides those of the layers (`step_name`)."""

SEARCH_RESULTS = "awq_search_results.pt"


def stage(
    checkpoint: Checkpoint,
    adapter: Adapter | None,
    plan: Plan,
    options: QuantizationOptions,
    work: WorkFolder,
    name: str,
) -> Path:
    """Write the quantized checkpoint into the working folder, under its final name; return its path."""
    layers = [step_name(layer) for layer in range(plan.config.num_hidden_layers)]
    steps = [work.tensors(step) for step in (*layers, HEAD_STEP, VISION_STEP) if work.has(step)]
    new = {name: entry for step in steps for name, entry in step.entries.items()}
    gone = {*new, *(f"{name.removesuffix('.qweight')}.weight" for name in new if name.endswith(".qweight"))}
    kept = WeightIndex({name: entry for name, entry in checkpoint.weights.entries.items() if name not in gone})
    rest = kept if adapter is None else MergedWeights(kept, adapter)
    staged = work.path / "out" / name
    shutil.rmtree(staged.parent, ignore_errors=True)
    writable_format(options.format).write(replace(checkpoint, weights=JoinedWeights((rest, *steps))), staged)
    if options.search_results:
        from vila_quant.quantizing.search_results import write_search_results

        blocks = {
            f"{LAYERS.removeprefix('llm.')}.{layer}": _found(work, layer)
            for layer in range(plan.config.num_hidden_layers)
        }
        write_search_results(blocks, staged / SEARCH_RESULTS)
    return staged


def _found(work: WorkFolder, layer: int) -> QuantizedBlock:
    """Return the saved search results of a layer."""
    tensors = dict(work.tensors(f"{step_name(layer)}-search").shards())
    by_kind = {
        kind: {name.removeprefix(f"{kind}:"): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}:")}
        for kind in ("scale", "clip")
    }
    return QuantizedBlock({}, by_kind["scale"], by_kind["clip"])


@dataclass(frozen=True)
class JoinedWeights:
    """The weights of several sources with disjoint names."""

    parts: tuple[Weights, ...]

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        return {name: entry for part in self.parts for name, entry in part.entries.items()}

    def shards(self, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor on `device`)."""
        return (pair for part in self.parts for pair in part.shards(device))

    def stream(self) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
        """Yield (name, its bytes in chunks)."""
        return (pair for part in self.parts for pair in part.stream())
