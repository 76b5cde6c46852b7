"""Quantize the linears of a vision tower to 8 bits, with smoothed inputs (SmoothQuant, arXiv:2211.10438).

N images, P tokens, D width, S side of the image in pixels

The outputs of a norm differ much between channels, and the largest value of a row sets the step size for all of them.
Dividing a channel by s and multiplying its column of the weight by s changes nothing before rounding, but moves part of
the difference to the weights:

    s = max|x|^α / max|W|^(1 - α) of each channel,   γ' = γ / s,   β' = β / s,   W' = W · s

As in llm-awq, the norms before q, k, v and before fc1 are smoothed; out and fc2 are quantized without smoothing;
attention, the patch embedding and the projector are not quantized.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vila_core.errors import ConfigError
from vila_core.towers.intern_vit import InternVitLayer
from vila_core.towers.radio import RadioBlock
from vila_core.towers.vit import EncoderLayer, VisionTower
from vila_quant.errors import QuantizationError
from vila_quant.kernels.fp8 import quantize_rows_fp8
from vila_quant.kernels.int8 import quantize_rows
from vila_quant.linears.eight_bit_linear import EightBitLinear

TowerMode = Literal["int8", "fp8"]
Alpha = float | Literal["search"]

ALPHAS = (None, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85)
"""Values that the search tries; None is no smoothing. The first of equally good ones wins."""

SMALLEST = 1e-5
"""Lower bound for weights and scales (as in llm-awq)."""


@dataclass(frozen=True)
class TowerBranch:
    """One residual branch of a layer: the module `name`, whose input is the output of `norm`.

    The linears `smoothed` read that input directly; `others` are quantized without smoothing. Names are relative to the
    branch.
    """

    name: str
    norm: str
    smoothed: tuple[str, ...]
    others: tuple[str, ...]


_SEPARATE = (
    TowerBranch("self_attn", "layer_norm1", ("q_proj", "k_proj", "v_proj"), ("out_proj",)),
    TowerBranch("mlp", "layer_norm2", ("fc1",), ("fc2",)),
)
_JOINT = (TowerBranch("attn", "norm1", ("qkv",), ("proj",)), TowerBranch("mlp", "norm2", ("fc1",), ("fc2",)))

BRANCHES: Mapping[type[nn.Module], tuple[TowerBranch, ...]] = {
    EncoderLayer: _SEPARATE,
    InternVitLayer: _JOINT,
    RadioBlock: _JOINT,
}
"""The supported layers: those of SigLIP and CLIP, InternViT, and RADIO."""


@dataclass(frozen=True)
class BranchLoss:
    """The loss of a branch: relative root mean square error of its output on the calibration images."""

    branch: str
    alpha: float | None
    error: float


@torch.no_grad()
def quantize_tower(
    tower: VisionTower,
    pixels_batches: Iterable[Tensor],
    mode: TowerMode = "int8",
    alpha: Alpha = "search",
    on_branch: Callable[[BranchLoss], None] | None = None,
) -> dict[str, Tensor]:
    """Quantize the linears of every layer that the tower runs.

    Each layer is calibrated on the outputs of unquantized layers. The hidden states of all images are kept in
    memory, in the dtype of the tower; the tower is unchanged on return.

    Args:
        tower: unquantized, on any device.
        pixels_batches: inputs of the tower, `[N, 3, S, S]` each.
        mode: "int8" (W8A8) or "fp8" (e4m3); both quantize activations per token.
        alpha: 0 leaves all differences to the activations, 1 moves them all to the weights (llm-awq uses 0.3); "search"
            chooses the one of `ALPHAS` with the least loss for each branch.
        on_branch: called with the loss of each branch, in order.

    Returns:
        All changed tensors by their names in the tower: `X.weight` int8 or e4m3 with `X.weight_scale` float32 `[N,
        1]`, and the smoothed norms in their own dtype.

    Raises:
        ConfigError: `alpha` is out of range, or the layers of this tower are not supported.
        QuantizationError: there are no images, or weights or activations are not finite (the layer is named).
    """
    if alpha != "search" and not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is {alpha}. Expected 0 to 1, or 'search'.")
    layers = tower_layers(tower)
    hidden, used = _first_hidden(tower, layers, pixels_batches)
    alphas = ALPHAS if alpha == "search" else (alpha,)
    changed: dict[str, Tensor] = {}
    for prefix, layer in layers.items():
        if prefix not in used:
            continue
        branches = BRANCHES[type(layer)]
        hidden, inputs, outputs = _run_layer(layer, branches, hidden)
        for branch in branches:
            tensors, loss = _quantize_branch(
                prefix, layer, branch, inputs[branch.name], outputs[branch.name], mode, alphas
            )
            changed |= tensors
            if on_branch is not None:
                on_branch(loss)
    return changed


def tower_layers(tower: VisionTower) -> dict[str, nn.Module]:
    """Return the layers that can be quantized, by name, in order. Raises `ConfigError` if there are none."""
    layers: dict[str, nn.Module] = {name: module for name, module in tower.named_modules() if type(module) in BRANCHES}
    if not layers:
        known = ", ".join(kind.__name__ for kind in BRANCHES)
        raise ConfigError(
            f"The vision tower '{tower.config.name}' ({type(tower).__name__}) cannot be quantized: it has none of the "
            f"layers {known}. Use --vision none."
        )
    return layers


def channel_maxima(batches: Sequence[Tensor]) -> Tensor:
    """Return the largest magnitude of each channel over all images and tokens: `[N, P, D]` each -> `[D]` float32."""
    return torch.stack([x.abs().flatten(0, -2).amax(0) for x in batches]).amax(0).float()


def smoothing_scales(maxima: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """Return s `[D]` for linears that read the same channels; the largest weight of each channel is over all linears.

    Args:
        maxima: largest magnitude of each channel, `[D]`.
        weights: `[N, D]` each.
        alpha: 0 to 1.
    """
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).to(maxima).clamp(min=SMALLEST)
    return (maxima.pow(alpha) / largest.pow(1 - alpha)).clamp(min=SMALLEST)


def quantize_linear(linear: nn.Linear, mode: TowerMode, scales: Tensor | None = None) -> EightBitLinear:
    """Return the linear with 8-bit weights and activations; the caller divides its input by `scales [K]`."""
    weight = linear.weight.float()
    weight = weight if scales is None else weight * scales
    has_bias = linear.bias is not None  # pyright: ignore[reportUnnecessaryComparison]
    module = EightBitLinear("w8a8" if mode == "int8" else "fp8", *weight.shape, bias=has_bias)
    module.weight, module.weight_scale = quantize_rows(weight) if mode == "int8" else quantize_rows_fp8(weight)
    module.bias = linear.bias
    module.reset_buffers(weight.device, linear.weight.dtype)
    return module


def _first_hidden(
    tower: VisionTower, layers: Mapping[str, nn.Module], batches: Iterable[Tensor]
) -> tuple[list[Tensor], set[str]]:
    """Return the first layer's input for each batch, and the names of the layers that run."""
    hidden: list[Tensor] = []
    used: set[str] = set()

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            used.add(name)
            if name == first:
                hidden.append(arguments[0])

        return record

    first = next(iter(layers))
    weight = next(tower.parameters())
    handles = [layer.register_forward_pre_hook(recorder(name)) for name, layer in layers.items()]
    try:
        for pixels in batches:
            tower(pixels.to(weight.device, weight.dtype))
    finally:
        for handle in handles:
            handle.remove()
    if not hidden:
        raise QuantizationError("There are no images to calibrate the vision tower on. Add some, or use --vision none.")
    return hidden, used


_Recorded = dict[str, list[Tensor]]


def _run_layer(
    layer: nn.Module, branches: Sequence[TowerBranch], hidden: Sequence[Tensor]
) -> tuple[list[Tensor], _Recorded, _Recorded]:
    """Return the layer's outputs, and the inputs and outputs of each branch, one tensor per batch."""
    inputs: _Recorded = {branch.name: [] for branch in branches}
    outputs: _Recorded = {branch.name: [] for branch in branches}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name].append(arguments[0])
            outputs[name].append(output)

        return record

    handles = [layer.get_submodule(branch.name).register_forward_hook(recorder(branch.name)) for branch in branches]
    try:
        return [layer(x) for x in hidden], inputs, outputs
    finally:
        for handle in handles:
            handle.remove()


def _quantize_branch(
    prefix: str,
    layer: nn.Module,
    branch: TowerBranch,
    inputs: Sequence[Tensor],
    expected: Sequence[Tensor],
    mode: TowerMode,
    alphas: Sequence[float | None],
) -> tuple[dict[str, Tensor], BranchLoss]:
    module = layer.get_submodule(branch.name)
    name = f"{prefix}.{branch.name}"
    weights = [_linear(module, linear).weight for linear in branch.smoothed]
    maxima = channel_maxima(inputs)
    if not all(
        bool(torch.isfinite(tensor).all()) for tensor in (maxima, *module.parameters(), channel_maxima(expected))
    ):
        raise QuantizationError(
            f"{name}: weights or activations are not finite. Check the checkpoint, or calibrate in another dtype."
        )
    best: tuple[nn.Module, Tensor | None, BranchLoss] | None = None
    for alpha in alphas:
        scales = None if alpha is None else smoothing_scales(maxima, weights, alpha)
        candidate = copy.deepcopy(module)
        for linear in (*branch.smoothed, *branch.others):
            own = scales if linear in branch.smoothed else None
            candidate.set_submodule(linear, quantize_linear(_linear(module, linear), mode, own))
        smoothed = inputs if scales is None else [(x / scales).to(x.dtype) for x in inputs]
        loss = BranchLoss(name, alpha, relative_error([candidate(x) for x in smoothed], expected))
        if best is None or loss.error < best[2].error:
            best = candidate, scales, loss
    assert best is not None, "no alpha to try"
    candidate, scales, loss = best
    tensors = {
        f"{name}.{linear}.{buffer}": tensor
        for linear in (*branch.smoothed, *branch.others)
        for buffer, tensor in candidate.get_submodule(linear).named_buffers()
    }
    if scales is not None:
        norm = layer.get_submodule(branch.norm)
        tensors |= {
            f"{prefix}.{branch.norm}.{key}": (value / scales).to(value.dtype) for key, value in norm.named_parameters()
        }
    return {key: tensor.detach() for key, tensor in tensors.items()}, loss


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the root mean square error relative to the expected values, over all batches, in float32."""
    difference = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(actual, expected, strict=True))
    power = sum(float(b.float().square().sum()) for b in expected)
    return (difference / max(power, torch.finfo(torch.float32).tiny)) ** 0.5


def _linear(module: nn.Module, name: str) -> nn.Linear:
    linear = module.get_submodule(name)
    assert isinstance(linear, nn.Linear), f"{name} is {type(linear).__name__}"
    return linear
