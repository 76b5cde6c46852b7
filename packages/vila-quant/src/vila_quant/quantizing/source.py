"""Find the unquantized weights to start from, and the adapter to merge into them, if any."""

from pathlib import Path

from vila_core.checkpoint.json_files import Section, read_section
from vila_core.checkpoint.lora import CONFIG_NAME, REST_NAME
from vila_core.checkpoint.opening import find_folder
from vila_core.errors import CheckpointError

BASE_KEY, BASE_REVISION_KEY = "base_model_name_or_path", "revision"
"""Keys under which peft records what an adapter was trained on."""


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
    if not _is_adapter(folder):
        return folder, lora
    if lora is not None:
        raise CheckpointError(
            f"{model} is a LoRA adapter, and so is --lora-path {lora}. Merge one of them first: "
            "vila convert --lora-path."
        )
    stated = read_section(folder / CONFIG_NAME) if (folder / CONFIG_NAME).exists() else Section({}, CONFIG_NAME)
    base = stated.string(BASE_KEY, "")
    if not base:
        raise CheckpointError(
            f"{model} is a LoRA adapter that does not name its base model ('{BASE_KEY}' in {CONFIG_NAME}). "
            f"Pass the base as MODEL, and --lora-path {model}."
        )
    pinned = stated.string(BASE_REVISION_KEY, "") or None
    is_local = Path(base).expanduser().exists()
    try:
        whole = find_folder(base, revision=None if is_local else pinned, token=token, offline=offline)
    except CheckpointError as error:
        raise CheckpointError(
            f"{model} is a LoRA adapter of '{base}' ('{BASE_KEY}' in {CONFIG_NAME}). {error} "
            f"If the base is elsewhere, pass it as MODEL, and --lora-path {model}."
        ) from error
    if _is_adapter(whole):
        raise CheckpointError(
            f"The base of {model}, {base}, is itself an adapter. Merge that first: vila convert --lora-path."
        )
    return whole, folder


def _is_adapter(folder: Path) -> bool:
    """Return whether a folder is an adapter without full weights; VILA puts a `config.json` into both."""
    if not any((folder / name).exists() for name in (CONFIG_NAME, REST_NAME)):
        return False
    return not (folder / "llm").is_dir() and not any(folder.glob("model*.safetensors"))
