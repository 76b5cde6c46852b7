"""Reading LoRA adapters in peft's format, and the `non_lora_trainables.bin` of the reference implementation."""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from vila_core.checkpoint.checkpoint import Checkpoint
from vila_core.checkpoint.json_files import Section, read_section
from vila_core.checkpoint.opening import find_folder
from vila_core.checkpoint.tensors.headers import TensorEntry, read_header
from vila_core.checkpoint.tensors.lora import Adapter, LoraFactors, bias_name
from vila_core.checkpoint.tensors.pickles import load_pickle
from vila_core.checkpoint.tensors.reading import read_tensors
from vila_core.errors import CheckpointError

CONFIG_NAME = "adapter_config.json"
REST_NAME = "non_lora_trainables.bin"

_FACTORS = re.compile(
    r"(.*)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.(weight|bias))?"
)
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
_REWRITING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that change the base weights, so that A and B alone do not determine the result."""


# ------------------------------------------------------------------------------------------------ reading


def open_adapter(
    path_or_hub_id: str | Path,
    checkpoint: Checkpoint,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Adapter:
    """Read an adapter (folder or hub id) and match it with the weights of `checkpoint`.

    Raises:
        CheckpointError: there is no adapter, its kind is not supported, or a tensor fits no weight of the checkpoint.
    """
    folder = find_folder(path_or_hub_id, revision=revision, token=token, offline=offline)
    has_config, has_rest = (folder / CONFIG_NAME).exists(), (folder / REST_NAME).exists()
    if not has_config and not has_rest:
        raise CheckpointError(f"{folder} contains no adapter: expected {CONFIG_NAME} (peft's format) or {REST_NAME}.")
    adapter = Adapter(folder)
    known = checkpoint.weights.entries
    unmatched: list[str] = []
    if has_rest:
        unmatched += _read_rest(adapter, known)
    if has_config:
        unmatched += _read_factors(adapter, known)
    if unmatched:
        shown = ", ".join(unmatched[:10]) + (f" and {len(unmatched) - 10} more" if len(unmatched) > 10 else "")
        raise CheckpointError(f"{folder} does not fit {checkpoint.path}: {shown}. Give the adapter's own base model.")
    return adapter


def _read_rest(adapter: Adapter, known: Mapping[str, TensorEntry]) -> list[str]:
    return [
        problem
        for key, tensor in load_pickle(adapter.path / REST_NAME).items()
        for problem in _replace(adapter, key, tensor, known)
    ]


def _read_factors(adapter: Adapter, known: Mapping[str, TensorEntry]) -> list[str]:
    """Fill the adapter from peft's files; return a problem for each tensor that does not fit."""
    config = read_section(adapter.path / CONFIG_NAME)
    _require_supported(config)
    problems: list[str] = []
    for key, tensor in _adapter_tensors(adapter.path).items():
        found = _FACTORS.fullmatch(key)
        if found is None:
            problems += _replace(adapter, key, tensor, known)
            continue
        module, kind, suffix = found.groups()
        name = _canonical(f"{module}.weight", known)
        if name is None:
            problems.append(f"{key} matches no weight")
            continue
        factors = adapter.factors.setdefault(name, LoraFactors(math.nan))
        factors.is_embedding |= "embedding" in kind
        if suffix == "bias":
            factors.b_bias = tensor
        elif kind.endswith("_A"):
            factors.a = tensor
            factors.scale = _scale(config, _strip(module), tensor.shape[0])
        elif kind.endswith("_B"):
            factors.b = tensor
        else:
            factors.magnitude = tensor
    return problems + [
        problem for name, factors in adapter.factors.items() for problem in _misfit(name, factors, known)
    ]


def _require_supported(config: Section) -> None:
    kind = config.string("peft_type", "LORA")
    if kind.upper() != "LORA":
        raise CheckpointError(
            f"{config.source}: 'peft_type' is '{kind}'; only LORA (with rsLoRA and DoRA) can be merged."
        )
    for key in _UNSUPPORTED:
        if config.values.get(key):
            raise CheckpointError(
                f"{config.source}: '{key}' is set, which is not supported. Merge the adapter with peft itself."
            )
    start = config.values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_REWRITING_INITS):
        raise CheckpointError(
            f"{config.source}: 'init_lora_weights' is '{start}', which changes the base weights. "
            "Convert the adapter to plain LoRA with peft first."
        )


def _scale(config: Section, module: str, rank: int) -> float:
    alpha = config.number("lora_alpha", 8.0)
    patterns = config.section("alpha_pattern") if "alpha_pattern" in config else Section({}, config.source)
    for pattern in patterns.values:
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error:
            raise CheckpointError(
                f"{config.source}: 'alpha_pattern' has {pattern!r}, which is not a valid regular expression."
            ) from None
        if matches:
            alpha = patterns.number(pattern)
            break
    return alpha / (math.sqrt(rank) if config.boolean("use_rslora", False) else rank)


def _adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "adapter_model.safetensors"
    if file.exists():
        return dict(read_tensors(file, read_header(file)))
    if (folder / "adapter_model.bin").exists():
        return load_pickle(folder / "adapter_model.bin")
    raise CheckpointError(f"{folder} has {CONFIG_NAME} but neither adapter_model.safetensors nor adapter_model.bin.")


# ------------------------------------------------------------------------------------------------ matching


def _replace(adapter: Adapter, key: str, tensor: torch.Tensor, known: Mapping[str, TensorEntry]) -> list[str]:
    """Add a tensor that was trained in full; return what is wrong with it."""
    name = _canonical(
        key.replace(".modules_to_save.", ".").replace(".base_layer.", ".").replace(".original_module.", "."), known
    )
    if name is None:
        return [f"{key} matches no weight"]
    if tuple(tensor.shape) != known[name].shape:
        return [f"{key} has shape {list(tensor.shape)}, expected {list(known[name].shape)}"]
    adapter.replaced[name] = tensor
    return []


def _misfit(name: str, factors: LoraFactors, known: Mapping[str, TensorEntry]) -> list[str]:
    if factors.a is None or factors.b is None:
        return [f"{name} has only one of the two LoRA factors"]
    shape = known[name].shape
    rows, columns = factors.b.flatten(1).shape[0], factors.a.flatten(1).shape[1]
    if factors.is_embedding:
        rows, columns = columns, rows
    if rows != shape[0] or columns != math.prod(shape[1:]) or factors.a.shape[0] != factors.b.shape[1]:
        return [f"{name} has factors {list(factors.b.shape)} x {list(factors.a.shape)}, expected weight {list(shape)}"]
    if factors.magnitude is not None and (len(shape) != 2 or factors.magnitude.numel() != shape[0]):
        return [f"{name} has {factors.magnitude.numel()} magnitudes for shape {list(shape)}"]
    if factors.b_bias is not None and bias_name(name) not in known:
        return [f"{name} has a bias in the adapter but none in the checkpoint"]
    return []


def _strip(name: str) -> str:
    """Return `name` without the prefixes that peft's wrappers add."""
    for prefix in ("base_model.model.", "base_model."):
        name = name.removeprefix(prefix)
    return name.replace(".base_layer", "")


def _canonical(name: str, known: Collection[str]) -> str | None:
    """Return the name of the checkpoint's weight that an adapter calls `name`, None if there is none.

    The reference implementation wraps towers twice (`vision_tower.vision_tower.`). An adapter of only the language
    model has no `llm.` prefix.
    """
    name = _strip(name).replace("vision_tower.vision_tower.", "vision_tower.")
    for candidate in (name, f"llm.{name}", name.removeprefix("model."), f"llm.{name.removeprefix('model.')}"):
        if candidate in known:
            return candidate
    return None
