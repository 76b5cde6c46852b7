"""Open a model that may be given as a LoRA adapter, which names the model it was trained on."""

import os
from pathlib import Path

from vila_core.checkpoint.checkpoint import Checkpoint
from vila_core.checkpoint.json_files import Section, read_section
from vila_core.checkpoint.opening import ADAPTER_CONFIG, find_folder, is_adapter, open_checkpoint
from vila_core.errors import CheckpointError

BASE_KEY, BASE_REVISION_KEY = "base_model_name_or_path", "revision"
"""Keys under which peft records what an adapter was trained on."""


def open_model(
    model: str | Path,
    lora: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> tuple[Checkpoint, str | Path | None]:
    """Open a model or the base of an adapter; return it and the adapter, if any. Arguments as for `find_source`.

    Raises:
        CheckpointError: as `find_source` and `open_checkpoint` do.
    """
    folder, adapter = find_source(model, lora, revision=revision, token=token, offline=offline)
    return open_checkpoint(folder), adapter


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
        CheckpointError: the model is missing, the adapter's base is unknown or missing, or there are two adapters.
    """
    folder = find_folder(model, revision=revision, token=token, offline=offline)
    if not is_adapter(folder):
        return folder, lora
    if lora is not None:
        raise CheckpointError(
            f"{model} is a LoRA adapter, and so is --lora-path {lora}. Merge one of them first: "
            "vila convert --lora-path."
        )
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
    return whole, folder
