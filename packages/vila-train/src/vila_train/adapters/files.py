"""Adapter files as peft and VILA write them, which `vila_core` opens, and adapters merged into weights.

adapter_config.json         peft's settings, and which model the adapter was trained on
adapter_model.safetensors   LoRA factors, or normalization layers
base_files.json             fingerprints of that model's weights, if they are known
non_lora_trainables.bin     weights of other parts that were trained in full
"""

import io
from collections.abc import Mapping
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor

from vila_core.checkpoint.new_folder import new_folder, write_json
from vila_core.checkpoint.opening import BASE_FILES, NON_LORA_WEIGHTS
from vila_core.checkpoint.tensors.lora import Adapter, LoraFactors
from vila_core.errors import listed
from vila_core.model import VilaModel
from vila_train.adapters.installation import ADAPTER_NAME, lora_settings, norm_names
from vila_train.config import AdapterConfig
from vila_train.errors import TrainingError

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""peft names tensors as if the model were wrapped twice."""
NORM = "ln_tuning_layers"


def save_adapter(
    network: VilaModel,
    config: AdapterConfig,
    base: str | Path,
    folder: Path,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    base_files: Mapping[str, str] | None = None,
) -> None:
    """Write what was trained to `folder`, which `vila_core.load` opens, completely or not at all.

    Args:
        network: with adapters of `install`; says what is trained.
        config: of the adapters.
        base: the model that was trained on, a folder or hub id; recorded in the files.
        folder: a folder that does not exist yet, or is empty.
        tensors: the network's state dict, if its parameters are sharded.
        base_files: `weight_fingerprints` of the model that was trained on.

    Raises:
        CheckpointError: `folder` is not empty, or cannot be written.
    """
    tensors = network.state_dict() if tensors is None else tensors
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    norms = set(norm_names(network, config.parts)) if config.method == "norms" else set[str]()
    adapter: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name in trained:
        tensor = tensors[name].detach().cpu().contiguous()
        module, _, kind = name.rpartition(".")
        if module in norms:
            adapter[f"{PREFIX}{module}.{NORM}.{kind}"] = tensor
        elif ".lora_" in name:
            adapter[PREFIX + _peft_name(name)] = tensor
        else:
            rest[PREFIX + name] = tensor
    with new_folder(folder) as partial:
        # Written by Python, which raises an OSError if the disk is full.
        (partial / WEIGHTS).write_bytes(save(adapter, metadata={"format": "pt"}))
        if rest:
            content = io.BytesIO()
            torch.save(rest, content)
            (partial / NON_LORA_WEIGHTS).write_bytes(content.getbuffer())
        if base_files is not None:
            write_json(partial / BASE_FILES, base_files)
        _settings(network, config, base).save_pretrained(str(partial))


def _peft_name(name: str) -> str:
    """Return what files call a parameter of an adapter."""
    plain = name.replace(f".{ADAPTER_NAME}", "")
    return plain.removesuffix(".weight") if ".lora_magnitude_vector" in plain else plain


def merged_tensors(network: VilaModel, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the state dict of the network without adapters, with what they learned merged into the weights (in fp32).

    Args:
        network: with adapters of `install`, or without.
        tensors: its state dict, if its parameters are sharded.

    Raises:
        CheckpointError: a merged weight is not finite.
        TrainingError: a weight is quantized (QLoRA): merge the adapter's files into the unquantized model.
    """
    tensors = network.state_dict() if tensors is None else tensors
    layers = {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}
    quantized = [name for name in layers if not tensors[f"{name}.base_layer.weight"].is_floating_point()]
    if quantized:
        raise TrainingError(
            f"{listed(quantized)} is in 4 bits. Save the adapter and merge it into the unquantized model: "
            "vila convert --lora-path."
        )
    adapter = Adapter(
        Path("the trained adapter"), {f"{name}.weight": _factors(name, layers, tensors) for name in layers}
    )
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items() if ".lora_" not in name}
    return {name: adapter.apply(name, tensor) for name, tensor in plain.items()}


def _factors(name: str, layers: Mapping[str, LoraLayer], tensors: Mapping[str, Tensor]) -> LoraFactors:
    return LoraFactors(
        layers[name].scaling[ADAPTER_NAME],
        a=tensors[f"{name}.lora_A.{ADAPTER_NAME}.weight"].detach(),
        b=tensors[f"{name}.lora_B.{ADAPTER_NAME}.weight"].detach(),
        magnitude=tensors.get(f"{name}.lora_magnitude_vector.{ADAPTER_NAME}.weight"),
    )


def _settings(network: VilaModel, config: AdapterConfig, base: str | Path) -> peft.PeftConfig:
    """Return what peft needs to know of the adapter."""
    if config.method == "norms":
        settings = peft.LNTuningConfig(target_modules=norm_names(network, config.parts))
    else:
        names = [name for name, module in network.named_modules() if isinstance(module, LoraLayer)]
        settings = lora_settings(config, names)
    settings.base_model_name_or_path = str(base)
    settings.inference_mode = True
    return settings
