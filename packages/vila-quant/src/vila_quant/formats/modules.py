"""Replace linears by quantized ones in a network on the meta device, before its weights are loaded."""

from collections.abc import Mapping

import torch
from torch import nn

from vila_core.errors import CheckpointError
from vila_core.language.decoder import Decoder
from vila_quant.formats.config import AwqConfig
from vila_quant.formats.layers import EightBitLayer, GroupwiseLayer, QuantizedLayers
from vila_quant.kernels.kernel import LinearShape
from vila_quant.linears.decoding import CompiledDecodeStep
from vila_quant.linears.eight_bit_linear import EightBitLinear
from vila_quant.linears.groupwise_linear import GroupwiseLinear

HEAD = "llm.lm_head"


def replace_modules(network: nn.Module, layers: QuantizedLayers, config: AwqConfig | None = None) -> None:
    """Replace the linears that `layers` names.

    Args:
        network: its module names are the canonical names.
        layers: quantized layers of the checkpoint.
        config: the checkpoint's config; if given, unquantized linears of the language model that it does not name
            are an error.

    Raises:
        CheckpointError: the network has no such linear, its shape differs, or the config contradicts the tensors.
    """
    modules = dict(network.named_modules())
    for layer in (*layers.groupwise, *layers.eight_bits):
        bias = _find_linear(modules, layer).bias is not None  # pyright: ignore[reportUnnecessaryComparison]
        module = (
            _groupwise(layer, bias)
            if isinstance(layer, GroupwiseLayer)
            else EightBitLinear(layer.scheme, layer.outputs, layer.inputs, bias=bias)
        )
        parent, _, attribute = layer.name.rpartition(".")
        setattr(modules[parent], attribute, module)  # a tied model has None there, which `set_submodule` refuses
    for module in network.modules():
        if isinstance(module, Decoder):
            module.use_step(CompiledDecodeStep(module))
    if config is not None:
        _check_whole(network, config)


def _find_linear(modules: Mapping[str, nn.Module], layer: GroupwiseLayer | EightBitLayer) -> nn.Linear:
    """Return the linear that `layer` replaces; for a tied model's head, a new one with the embedding's shape."""
    found = modules.get(layer.name)
    if found is None and layer.name == HEAD:
        # A quantized head stored beside a tied embedding is used as the head.
        embeddings = [
            module for name, module in modules.items() if name.startswith("llm.") and isinstance(module, nn.Embedding)
        ]
        found = (
            nn.Linear(embeddings[0].embedding_dim, embeddings[0].num_embeddings, bias=False)
            if len(embeddings) == 1
            else None
        )
    if not isinstance(found, nn.Linear):
        kind = "no module" if found is None else f"a {type(found).__name__}"
        raise CheckpointError(
            f"'{layer.name}' is quantized in the checkpoint, but {kind} in the model. The config is for another model."
        )
    fewer_tokens = layer.name == HEAD and layer.outputs < found.out_features  # see `Decoder.logits`
    if layer.inputs != found.in_features or (layer.outputs != found.out_features and not fewer_tokens):
        raise CheckpointError(
            f"'{layer.name}' has {layer.outputs} outputs and {layer.inputs} inputs in the checkpoint; "
            f"its config says {found.out_features} and {found.in_features}."
        )
    return found


def _groupwise(layer: GroupwiseLayer, bias: bool) -> nn.Module:
    module = GroupwiseLinear(LinearShape(layer.outputs, layer.inputs, layer.group_size), bias=bias)
    if layer.scales_dtype == "BF16":
        module.scales = module.scales.to(torch.bfloat16)
    return module


def _check_whole(network: nn.Module, config: AwqConfig) -> None:
    """Raise `CheckpointError` for an unquantized linear of the language model that the config does not name."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("llm.") and name != HEAD and config.names(name) is None:
            raise CheckpointError(
                f"{config.source}: 'modules_to_not_convert' does not name '{name}', which is not quantized. "
                "The config belongs to another checkpoint, or was changed."
            )
