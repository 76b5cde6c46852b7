"""Reading LoRA adapters in peft's format, and the `non_lora_trainables.bin` of the reference implementation."""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from vila_core.checkpoint.checkpoint import Checkpoint
from vila_core.checkpoint.json_files import Section, read_section
from vila_core.checkpoint.lora.settings import LoraSettings
from vila_core.checkpoint.opening import ADAPTER_CONFIG, NON_LORA_WEIGHTS, find_folder
from vila_core.checkpoint.tensors.headers import TensorEntry, read_header
from vila_core.checkpoint.tensors.lora import Adapter, LoraFactors, bias_name
from vila_core.checkpoint.tensors.pickles import load_pickle
from vila_core.checkpoint.tensors.reading import read_tensors
from vila_core.errors import CheckpointError, listed

_FACTORS = re.compile(
    r"(.*)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.(weight|bias))?"
)
_KINDS = ("LORA", "LN_TUNING")
_WRAPPERS = (".modules_to_save.", ".ln_tuning_layers.", ".base_layer.", ".original_module.")
"""What peft puts into the names of tensors that were trained in full."""
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
    folder = find_folder(path_or_hub_id, revision=revision, token=token, offline=offline, kind="LoRA adapter")
    has_config, has_rest = (folder / ADAPTER_CONFIG).exists(), (folder / NON_LORA_WEIGHTS).exists()
    if not has_config and not has_rest:
        raise CheckpointError(
            f"{folder} contains no adapter: expected {ADAPTER_CONFIG} (peft's format) or {NON_LORA_WEIGHTS}."
        )
    adapter = Adapter(folder)
    known = checkpoint.weights.entries
    unmatched: list[str] = []
    if has_rest:
        unmatched += _read_rest(adapter, known)
    if has_config:
        unmatched += _read_factors(adapter, known)
    if unmatched:
        message = f"{folder} does not fit {checkpoint.path}: {listed(unmatched)}. Give the adapter's own base model."
        raise CheckpointError(message).with_details(unmatched)
    return adapter


def _read_rest(adapter: Adapter, known: Mapping[str, TensorEntry]) -> list[str]:
    return [
        problem
        for key, tensor in load_pickle(adapter.path / NON_LORA_WEIGHTS).items()
        for problem in _replace(adapter, key, tensor, known)
    ]


def _read_factors(adapter: Adapter, known: Mapping[str, TensorEntry]) -> list[str]:
    """Fill the adapter from peft's files; return a problem for each tensor that does not fit."""
    config = read_section(adapter.path / ADAPTER_CONFIG)
    _require_supported(config)
    settings = LoraSettings(config)
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
        elif not tensor.is_floating_point() or (tensor.ndim < 2 and kind.endswith(("_A", "_B")) and suffix != "bias"):
            problems.append(f"{key} has {tensor.ndim} dimensions and dtype {tensor.dtype}, expected a matrix of floats")
        else:
            factors = adapter.factors.setdefault(name, LoraFactors(math.nan))
            factors.is_embedding |= "embedding" in kind
            if suffix == "bias":
                factors.b_bias = tensor
            elif kind.endswith("_A"):
                factors.a = tensor
                problems += _set_scale(factors, key, settings, _strip(module), tensor.shape[0])
            elif kind.endswith("_B"):
                factors.b = tensor
            else:
                factors.magnitude = tensor
    return problems + [
        problem
        for name, factors in adapter.factors.items()
        for problem in _misfit(name, factors, known, uses_dora=settings.uses_dora)
    ]


def _set_scale(factors: LoraFactors, key: str, settings: LoraSettings, module: str, rank: int) -> list[str]:
    stated = settings.rank(module)
    if rank < 1 or stated not in (None, rank):
        return [f"{key} has rank {rank}" + ("" if stated is None else f", {ADAPTER_CONFIG} states {stated}")]
    factors.scale = settings.scale(module, rank)
    return []


def _require_supported(config: Section) -> None:
    kind = config.string("peft_type", "LORA")
    if kind.upper() not in _KINDS:
        raise CheckpointError(
            f"{config.source}: 'peft_type' is '{kind}'; only LORA (with rsLoRA and DoRA) and LN_TUNING can be merged."
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


def _adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "adapter_model.safetensors"
    if file.exists():
        return dict(read_tensors(file, read_header(file)))
    if (folder / "adapter_model.bin").exists():
        return load_pickle(folder / "adapter_model.bin")
    raise CheckpointError(f"{folder} has {ADAPTER_CONFIG} but neither adapter_model.safetensors nor adapter_model.bin.")


def _replace(adapter: Adapter, key: str, tensor: torch.Tensor, known: Mapping[str, TensorEntry]) -> list[str]:
    """Add a tensor that was trained in full; return what is wrong with it."""
    plain = key
    for wrapper in _WRAPPERS:
        plain = plain.replace(wrapper, ".")
    name = _canonical(plain, known)
    if name is None:
        return [f"{key} matches no weight"]
    if not tensor.is_floating_point():
        return [f"{key} has dtype {tensor.dtype}, expected floats"]
    if tuple(tensor.shape) != known[name].shape:
        return [f"{key} has shape {list(tensor.shape)}, expected {list(known[name].shape)}"]
    adapter.replaced[name] = tensor
    return []


def _misfit(name: str, factors: LoraFactors, known: Mapping[str, TensorEntry], *, uses_dora: bool) -> list[str]:
    """Return what is wrong with the factors of the weight `name`, at most one problem."""
    if factors.a is None or factors.b is None:
        return [f"{name} has only one of the two LoRA factors"]
    shape = known[name].shape
    if len(shape) < 2:
        return [f"{name} has {len(shape)} dimensions in the checkpoint; LoRA changes matrices"]
    rows, columns = factors.b.flatten(1).shape[0], factors.a.flatten(1).shape[1]
    if factors.is_embedding:
        rows, columns = columns, rows
    if rows != shape[0] or columns != math.prod(shape[1:]) or factors.a.shape[0] != factors.b.flatten(1).shape[1]:
        return [f"{name} has factors {list(factors.b.shape)} x {list(factors.a.shape)}, expected weight {list(shape)}"]
    if factors.magnitude is not None and (len(shape) != 2 or factors.magnitude.numel() != shape[0]):
        return [f"{name} has {factors.magnitude.numel()} magnitudes for shape {list(shape)}"]
    if uses_dora and factors.magnitude is None:
        return [f"{name} has no magnitudes, but {ADAPTER_CONFIG} states 'use_dora'"]
    if factors.b_bias is None:
        return []
    if bias_name(name) not in known:
        return [f"{name} has a bias in the adapter but none in the checkpoint"]
    if tuple(factors.b_bias.shape) != known[bias_name(name)].shape:
        return [f"{name} has a bias {list(factors.b_bias.shape)}, expected {list(known[bias_name(name)].shape)}"]
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
