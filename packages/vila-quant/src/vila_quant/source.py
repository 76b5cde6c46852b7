"""What a run starts from: whole weights, and the adapter to merge into them, if any."""

from pathlib import Path

from vila_core.checkpoint.json_files import read_section
from vila_core.checkpoint.lora import CONFIG_NAME, REST_NAME
from vila_core.errors import CheckpointError

BASE_KEY = "base_model_name_or_path"
"""Where peft writes what an adapter was trained on."""


def find_source(model: str | Path, lora: str | Path | None = None) -> tuple[str | Path, str | Path | None]:
    """Return the whole weights (folder or hub id) and the adapter, if any, that `model` and `lora` mean.

    An adapter's own folder, as training with LoRA leaves it, means the model that it names as its base, and itself.

    Raises:
        CheckpointError: the adapter names no base, or two adapters are given.
    """
    folder = Path(model).expanduser()
    if not _is_adapter(folder):
        return model, lora
    if lora is not None:
        raise CheckpointError(
            f"{folder} is a LoRA adapter, and so is --lora-path {lora}. Merge one of them first: vila convert --lora-path."
        )
    stated = read_section(folder / CONFIG_NAME) if (folder / CONFIG_NAME).exists() else None
    base = "" if stated is None else stated.string(BASE_KEY, "")
    if not base:
        raise CheckpointError(
            f"{folder} is a LoRA adapter that does not name its base model ('{BASE_KEY}' in {CONFIG_NAME}). "
            f"Give the base as MODEL, and --lora-path {folder}."
        )
    if _is_adapter(Path(base).expanduser()):
        raise CheckpointError(f"{folder} names {base} as its base, which is an adapter itself. Merge that first: vila convert --lora-path.")
    return base, folder


def _is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter and no whole weights; the reference puts a `config.json` into both."""
    if not any((folder / name).exists() for name in (CONFIG_NAME, REST_NAME)):
        return False
    return not (folder / "llm").is_dir() and not any(folder.glob("model*.safetensors"))
