"""LoRA adapters: merging their tensors into the weights of a checkpoint.

    W' = W + s B A                        LoRA (Hu et al. 2021); s = alpha / r, rank-stabilized: alpha / sqrt(r)
    W' = m (W + s B A) / |W + s B A|      DoRA (Liu et al. 2024); one norm per output row

r rank, O output width, I input width; `A [r, I]`, `B [O, r]`, `W [O, I]`, `m [O]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vila_core.checkpoint.tensors.copying import tensor_bytes
from vila_core.errors import CheckpointError

if TYPE_CHECKING:
    from vila_core.checkpoint.checkpoint import Weights
    from vila_core.checkpoint.tensors.headers import TensorEntry


@dataclass
class LoraFactors:
    """The adapter tensors of one weight; `scale` is s."""

    scale: float
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    b_bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None
    is_embedding: bool = False

    def delta(self, device: torch.device) -> torch.Tensor:
        """Return s B A in fp32: `[O, I]` for a linear, `[I, O]` for an embedding (whose weight is transposed)."""
        assert self.a is not None
        assert self.b is not None
        a, b = self.a.to(device, torch.float32), self.b.to(device, torch.float32)
        product = b.flatten(1) @ a.flatten(1) * self.scale
        return product.T if self.is_embedding else product


@dataclass
class Adapter:
    """An adapter matched with a checkpoint.

    Attributes:
        path: folder of the adapter.
        factors: LoRA tensors by the name of the weight that they change.
        replaced: weights that were trained in full, by name.
    """

    path: Path
    factors: dict[str, LoraFactors] = field(default_factory=dict[str, LoraFactors])
    replaced: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    @property
    def names(self) -> frozenset[str]:
        """Names of the weights that the adapter changes."""
        biases = {bias_name(name) for name, factors in self.factors.items() if factors.b_bias is not None}
        return frozenset({*self.factors, *self.replaced, *biases})

    def apply(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the merged weight `name`, computed in fp32, in the dtype and on the device of `tensor`.

        Raises:
            CheckpointError: a merged value is not finite.
        """
        if name not in self.names:
            return tensor
        merged = self.replaced.get(name, tensor).to(tensor.device, torch.float32)
        if name in self.factors:
            merged = _merge(merged, self.factors[name])
        weight = name.removesuffix("bias") + "weight"
        if name.endswith(".bias") and weight in self.factors:
            factors = self.factors[weight]
            if factors.b_bias is not None:
                merged = merged + factors.scale * factors.b_bias.to(merged)
        return self._checked(name, merged.to(tensor.dtype))

    def _checked(self, name: str, merged: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(merged).all():
            raise CheckpointError(
                f"{self.path} makes {name} infinite or NaN in {str(merged.dtype).removeprefix('torch.')}. "
                "Check the adapter's tensors and lora_alpha."
            )
        return merged


def _merge(weight: torch.Tensor, factors: LoraFactors) -> torch.Tensor:
    merged = weight + factors.delta(weight.device).reshape(weight.shape)
    if factors.magnitude is None:
        return merged
    norm = torch.linalg.norm(merged, dim=1)
    return merged * (factors.magnitude.to(merged).flatten() / norm)[:, None]


def bias_name(weight: str) -> str:
    """Return the name of the bias that belongs to the weight `weight`."""
    return weight.removesuffix("weight") + "bias"


@dataclass(frozen=True)
class MergedWeights:
    """The weights of a checkpoint with an adapter merged in, for writing the merged model tensor by tensor."""

    base: Weights
    adapter: Adapter

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        return self.base.entries

    def shards(self, device: torch.device | str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, merged tensor on `device`)."""
        for name, tensor in self.base.shards(device):
            yield name, self.adapter.apply(name, tensor)

    def stream(self) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
        """Yield (name, the merged tensor's bytes)."""
        for name, tensor in self.shards():
            yield name, iter([tensor_bytes(tensor)])
