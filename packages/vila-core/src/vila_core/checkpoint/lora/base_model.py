"""Open a model that may be given as a LoRA adapter, which names the model it was trained on."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.checkpoint import opening
from vila_core.checkpoint.checkpoint import Checkpoint, require_mergeable
from vila_core.checkpoint.fingerprints import changed_file, weight_fingerprints
from vila_core.checkpoint.json_files import Section, read_json, read_section
from vila_core.checkpoint.opening import ADAPTER_CONFIG, BASE_FILES, find_folder, is_adapter
from vila_core.checkpoint.tensors.headers import TensorEntry
from vila_core.errors import CheckpointError, shown

if TYPE_CHECKING:
    import torch

    from vila_core.checkpoint.tensors.lora import MergedWeights

BASE_KEY, BASE_REVISION_KEY = "base_model_name_or_path", "revision"
"""Keys under which peft records what an adapter was trained on."""


def open_checkpoint(
    path_or_hub_id: str | Path, *, revision: str | None = None, token: str | None = None, offline: bool = False
) -> Checkpoint:
    """Read the config and the index of the weights. No tensors are loaded, and no code of the checkpoint is run.

    A LoRA adapter stands for its base model with the adapter merged into the weights as they are read.

    Args:
        path_or_hub_id: a folder, or `owner/name` on the hub (downloaded to its cache first).
        revision: branch, tag or commit; only for a hub id.
        token: access token for gated and private repositories; only for a hub id.
        offline: use the hub's cache only.

    Raises:
        CheckpointError: there is no such checkpoint, its format is unknown, its files are damaged, or it is an adapter
            whose base is not found.
    """
    folder, adapter = find_source(path_or_hub_id, revision=revision, token=token, offline=offline)
    checkpoint = opening.open_checkpoint(folder)
    if adapter is None:
        return checkpoint
    require_mergeable(checkpoint)
    return replace(checkpoint, weights=AdaptedWeights(checkpoint, Path(adapter)), adapter=Path(adapter))


def merge_adapter(
    checkpoint: Checkpoint, lora: str | Path, *, token: str | None = None, offline: bool = False
) -> Checkpoint:
    """Return `checkpoint` with the LoRA adapter in the folder or hub id `lora` merged into its weights.

    Raises:
        CheckpointError: the weights are quantized or have an adapter already, or the adapter is damaged or of another
            model.
    """
    from vila_core.checkpoint.lora.adapter_files import open_adapter
    from vila_core.checkpoint.tensors.lora import MergedWeights

    require_mergeable(checkpoint)
    if checkpoint.adapter is not None:
        raise _two_adapters(checkpoint.adapter, lora)
    adapter = open_adapter(lora, checkpoint, token=token, offline=offline)
    return replace(checkpoint, weights=MergedWeights(checkpoint.weights, adapter))


@dataclass(frozen=True)
class AdaptedWeights:
    """The weights of a checkpoint with an adapter merged in, which is read with the first tensor."""

    base: Checkpoint
    adapter: Path

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        return self.base.weights.entries

    def shards(self, device: "torch.device | str" = "cpu") -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield (name, merged tensor on `device`)."""
        return self._merged().shards(device)

    def stream(self) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
        """Yield (name, the merged tensor's bytes)."""
        return self._merged().stream()

    def _merged(self) -> "MergedWeights":
        from vila_core.checkpoint.lora.adapter_files import open_adapter
        from vila_core.checkpoint.tensors.lora import MergedWeights

        return MergedWeights(self.base.weights, open_adapter(self.adapter, self.base))


def find_source(
    model: str | Path,
    lora: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> tuple[Path, str | Path | None]:
    """Return the folder of the unquantized weights and the adapter, if any, for `model` and `lora`.

    If `model` is an adapter (a folder of LoRA training, or a hub repository), the weights are those of the base
    model it names.

    Args:
        model: folder or hub id of an unquantized model or an adapter; hub repositories are downloaded to the cache.
        lora: folder or hub id of an adapter.
        revision: branch, tag or commit of `model`; for an adapter's base, the revision stated by the adapter.
        token: access token for the hub.
        offline: only use what is in the hub's cache.

    Raises:
        CheckpointError: the model is missing, the adapter's base is unknown, missing or no longer the one that it was
            trained on, or there are two adapters.
    """
    folder = find_folder(model, revision=revision, token=token, offline=offline)
    if not is_adapter(folder):
        return folder, lora
    if lora is not None:
        raise _two_adapters(model, lora)
    stated = (
        read_section(folder / ADAPTER_CONFIG) if (folder / ADAPTER_CONFIG).exists() else Section({}, ADAPTER_CONFIG)
    )
    base = stated.string(BASE_KEY, "")
    if not base:
        raise CheckpointError(
            f"{model} is a LoRA adapter that does not name its base model ('{BASE_KEY}' in {ADAPTER_CONFIG}). "
            f"Pass the base as MODEL, and --lora-path {model}."
        )
    pinned = stated.string(BASE_REVISION_KEY, "") or None
    try:
        whole = find_folder(base, revision=None if os.path.exists(base) else pinned, token=token, offline=offline)
    except CheckpointError as error:
        raise CheckpointError(
            f"{model} is a LoRA adapter of '{base}' ('{BASE_KEY}' in {ADAPTER_CONFIG}). {error} "
            f"If the base is elsewhere, pass it as MODEL, and --lora-path {model}."
        ) from None
    if is_adapter(whole):
        raise CheckpointError(
            f"The base of {model}, {base}, is itself an adapter. Merge that first: vila convert --lora-path."
        )
    _require_same_base(folder, whole)
    return whole, folder


def _require_same_base(adapter: Path, base: Path) -> None:
    """Raise `CheckpointError` if the weights in `base` are not those that the adapter notes."""
    if not (adapter / BASE_FILES).exists():
        return
    before, now = read_json(adapter / BASE_FILES), weight_fingerprints(opening.open_checkpoint(base))
    if (changed := changed_file(before, now)) is not None:
        raise CheckpointError(
            f"{adapter} is an adapter of {base}, but {shown(changed)} there is not the one that it was trained on. "
            f"Put that file back; or, to use the adapter with the present weights, pass {base} as MODEL, and "
            f"--lora-path {adapter}."
        )


def _two_adapters(model: str | Path, lora: str | Path) -> CheckpointError:
    return CheckpointError(
        f"{model} is a LoRA adapter, and so is --lora-path {lora}. Merge one of them first: vila convert --lora-path."
    )
