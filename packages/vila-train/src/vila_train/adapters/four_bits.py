"""QLoRA: frozen linears in NF4 (Dettmers et al. 2023), by bitsandbytes."""

from collections.abc import Sequence

import torch
from torch import nn

from vila_core.model import VilaModel
from vila_core.plugins.lazy import optional_import


def require_bitsandbytes() -> None:
    """Raise `MissingDependencyError` if bitsandbytes is not installed."""
    with optional_import("QLoRA", "vila-train[qlora]", "bitsandbytes"):
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]


def quantize_linears(network: VilaModel, names: Sequence[str]) -> None:
    """Replace the linears `names` by 4-bit ones: NF4 with quantized constants, computing in bfloat16.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    require_bitsandbytes()
    import bitsandbytes  # pyright: ignore[reportMissingImports]

    for name in names:
        linear = network.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        has_bias = linear.bias is not None  # pyright: ignore[reportUnnecessaryComparison]
        packed = bitsandbytes.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=has_bias,
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
        )
        packed.weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        if has_bias:
            packed.bias = linear.bias
        packed.to(linear.weight.device)  # quantizes
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, packed)
