"""LoRA adapters in peft's format, and the reference's `non_lora_trainables.bin`, merged into weights as they load.

    W' = W + s B A                        LoRA (Hu et al. 2021); s = alpha / r, rank-stabilised: alpha / sqrt(r)
    W' = m (W + s B A) / |W + s B A|      DoRA (Liu et al. 2024); the norm is of each output row

r rank, O output width, I input width; `A [r, I]`, `B [O, r]`, `W [O, I]`, `m [O]`.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vila_core.checkpoint.checkpoint import Checkpoint, Weights
from vila_core.checkpoint.json_files import Section, read_section
from vila_core.checkpoint.opening import find_folder
from vila_core.checkpoint.tensors.copying import tensor_bytes
from vila_core.checkpoint.tensors.headers import TensorEntry, read_header
from vila_core.checkpoint.tensors.pickles import load_pickle
from vila_core.checkpoint.tensors.reading import read_tensors
from vila_core.errors import CheckpointError

CONFIG_NAME = "adapter_config.json"
REST_NAME = "non_lora_trainables.bin"

_FACTORS = re.compile(
    r"(.*)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.(weight|bias))?"
)
_UNSUPPORTED = ("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config", "target_parameters",
                "trainable_token_indices", "use_bdlora", "use_qalora")  # fmt: skip
_REWRITING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that change the base weights, so that A and B alone do not say the result."""


@dataclass
class _Factors:
    """What one weight's adapter consists of; `scale` is s."""

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
    """An adapter that is read and matched with a checkpoint: a `WeightOverlay`. `names` are the weights it changes."""

    path: Path
    factors: dict[str, _Factors] = field(default_factory=dict[str, _Factors])
    replaced: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    @property
    def names(self) -> frozenset[str]:
        biases = {_bias_of(name) for name, factors in self.factors.items() if factors.b_bias is not None}
        return frozenset({*self.factors, *self.replaced, *biases})

    def apply(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the merged weight `name`, computed in fp32, in the dtype and on the device of `tensor`."""
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
        return merged.to(tensor.dtype)


def _merge(weight: torch.Tensor, factors: _Factors) -> torch.Tensor:
    merged = weight + factors.delta(weight.device).reshape(weight.shape)
    if factors.magnitude is None:
        return merged
    norm = torch.linalg.norm(merged, dim=1)
    return merged * (factors.magnitude.to(merged).flatten() / norm)[:, None]


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
        CheckpointError: no adapter there, one of another kind, or tensors that fit no weight of the checkpoint.
    """
    folder = find_folder(path_or_hub_id, revision=revision, token=token, offline=offline)
    has_config, has_rest = (folder / CONFIG_NAME).exists(), (folder / REST_NAME).exists()
    if not has_config and not has_rest:
        raise CheckpointError(f"{folder} holds no adapter: expected {CONFIG_NAME} (peft's format) or {REST_NAME}.")
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
    """Fill the adapter from peft's files; return what fits nothing."""
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
            problems.append(f"{key} is for no weight of it")
            continue
        factors = adapter.factors.setdefault(name, _Factors(math.nan))
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
            f"{config.source}: 'init_lora_weights' is '{start}', which changes the base weights. Convert it to plain LoRA with peft first."
        )


def _scale(config: Section, module: str, rank: int) -> float:
    alpha = config.number("lora_alpha", 8.0)
    patterns = config.section("alpha_pattern") if "alpha_pattern" in config else Section({}, config.source)
    for pattern in patterns.values:
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error:
            raise CheckpointError(
                f"{config.source}: 'alpha_pattern' has {pattern!r}, which is no regular expression."
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
    """Take a tensor that was trained as a whole; return what is wrong with it."""
    name = _canonical(
        key.replace(".modules_to_save.", ".").replace(".base_layer.", ".").replace(".original_module.", "."), known
    )
    if name is None:
        return [f"{key} is no weight of it"]
    if tuple(tensor.shape) != known[name].shape:
        return [f"{key} has shape {list(tensor.shape)}, expected {list(known[name].shape)}"]
    adapter.replaced[name] = tensor
    return []


def _misfit(name: str, factors: _Factors, known: Mapping[str, TensorEntry]) -> list[str]:
    if factors.a is None or factors.b is None:
        return [f"{name} has only one of its two factors"]
    shape = known[name].shape
    rows, columns = factors.b.flatten(1).shape[0], factors.a.flatten(1).shape[1]
    if factors.is_embedding:
        rows, columns = columns, rows
    if rows != shape[0] or columns != math.prod(shape[1:]) or factors.a.shape[0] != factors.b.shape[1]:
        return [f"{name} has factors {list(factors.b.shape)} x {list(factors.a.shape)}, expected weight {list(shape)}"]
    if factors.magnitude is not None and (len(shape) != 2 or factors.magnitude.numel() != shape[0]):
        return [f"{name} has {factors.magnitude.numel()} magnitudes for shape {list(shape)}"]
    if factors.b_bias is not None and _bias_of(name) not in known:
        return [f"{name} has a bias in its adapter but none of its own"]
    return []


def _bias_of(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def _strip(name: str) -> str:
    """Return a name without the wrappers of peft."""
    for prefix in ("base_model.model.", "base_model."):
        name = name.removeprefix(prefix)
    return name.replace(".base_layer", "")


def _canonical(name: str, known: Collection[str]) -> str | None:
    """Return the weight of the checkpoint that `name` means.

    The reference wraps its towers once more (`vision_tower.vision_tower.`); an adapter of the language model alone has no `llm.`.
    """
    name = _strip(name).replace("vision_tower.vision_tower.", "vision_tower.")
    for candidate in (name, f"llm.{name}", name.removeprefix("model."), f"llm.{name.removeprefix('model.')}"):
        if candidate in known:
            return candidate
    return None


# ------------------------------------------------------------------------------------------------ saving


@dataclass(frozen=True)
class MergedWeights:
    """The weights of a checkpoint with an adapter merged in: for writing a whole model, tensor by tensor."""

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
