"""Open a checkpoint, a folder or hub id, in any registered format."""

import os
import re
from pathlib import Path
from typing import cast

from vila_core.checkpoint.checkpoint import Checkpoint
from vila_core.checkpoint.embedded import EMBEDDED_MODELS, embedded_model
from vila_core.checkpoint.formats.vila import quantization_at
from vila_core.checkpoint.json_files import read_section
from vila_core.errors import CheckpointError, PluginError, shown
from vila_core.plugins.hookspecs import CheckpointFormat
from vila_core.plugins.loader import load_plugins
from vila_core.plugins.registration import Plugins

ADAPTER_CONFIG = "adapter_config.json"
NON_LORA_WEIGHTS = "non_lora_trainables.bin"
BASE_FILES = "base_files.json"
"""Files of a LoRA adapter: peft's config, the reference implementation's weights that were trained in full, and the
fingerprints of the weights that it was trained on, which `vila-train` writes."""


def open_checkpoint(
    path_or_hub_id: str | Path, *, revision: str | None = None, token: str | None = None, offline: bool = False
) -> Checkpoint:
    """Read the config and the index of the weights of a model, as `vila_core.checkpoint.open_checkpoint` does.

    Args:
        path_or_hub_id: a folder, or `owner/name` on the hub (downloaded to its cache first).
        revision: branch, tag or commit; only for a hub id.
        token: access token for gated and private repositories; only for a hub id.
        offline: use the hub's cache only.

    Raises:
        CheckpointError: there is no such checkpoint, its format is unknown, or its files are damaged.
    """
    path = find_folder(path_or_hub_id, revision=revision, token=token, offline=offline)
    if is_adapter(path):
        raise CheckpointError(
            f"{path} is a LoRA adapter, not a model. Open it with vila_core.checkpoint.open_checkpoint, "
            "which finds its base."
        )
    plugins = load_plugins()
    detected = [form for form in plugins.checkpoint_formats if form.detect(path)]
    if len(detected) > 1:
        names = ", ".join(form.name for form in detected)
        raise CheckpointError(
            f"{path} is claimed by several formats: {names}. Uninstall one of their plugins (see `vila plugins`)."
        )
    if not detected:
        raise _unknown_format(path, plugins)
    return read_as(detected[0], path)


def read_as(form: CheckpointFormat, path: Path) -> Checkpoint:
    """Read a folder of a known format. Raises `CheckpointError`; `PluginError` if the format returns something else."""
    checkpoint = cast("object", form.read(path))
    if not isinstance(checkpoint, Checkpoint):
        raise PluginError(f"The checkpoint format '{form.name}' read {shown(checkpoint)}; expected a Checkpoint.")
    return checkpoint


def find_folder(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    kind: str = "checkpoint",
) -> Path:
    """Return the folder at a path, or the snapshot of a hub id in the cache (downloading it unless `offline`).

    A name in `EMBEDDED_MODELS` is that model. An address (https://huggingface.co/owner/name, hf://owner/name) counts as
    the hub id in it. `kind` of folder ("checkpoint", "LoRA adapter") is for errors.
    """
    path = _expand(path_or_hub_id)
    if str(path_or_hub_id) in EMBEDDED_MODELS and not path.exists():
        path = embedded_model(str(path_or_hub_id))
    if os.path.exists(path):  # False for an impossible name
        if revision is not None:
            raise CheckpointError(f"'{path_or_hub_id}' is a folder; 'revision' is for hub ids. Leave it out.")
        if not path.is_dir():
            raise CheckpointError(
                f"'{path_or_hub_id}' is a file; expected the folder of a {kind} or a hub id such as 'owner/name'."
            )
        return path
    from vila_core.checkpoint.hub import OWNER, download, parse_hub_id

    found = parse_hub_id(path_or_hub_id) if isinstance(path_or_hub_id, str) else None
    if found is None:
        name = str(path_or_hub_id)
        hint = (
            f" Did you mean '{OWNER}/{name}'?" if name.lower().startswith(("nvila-", "vila1.5-", "longvila-")) else ""
        )
        embedded = f" Embedded models: {', '.join(EMBEDDED_MODELS)}." if kind == "checkpoint" else ""
        raise CheckpointError(
            f"No folder {shown(name, 300)}. Give the folder of a {kind} or a hub id such as 'owner/name'."
            f"{embedded}{hint}"
        )
    repo_id, stated = found
    if revision is not None and stated not in (None, revision):
        raise CheckpointError(
            f"'{path_or_hub_id}' names revision '{stated}', but 'revision' is '{revision}'. Drop one."
        )
    return download(repo_id, revision=revision or stated, token=token, offline=offline)


def _expand(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # "~name", and there is no such user
        return Path(path)


def is_adapter(folder: Path) -> bool:
    """Return whether a folder is an adapter without full weights; VILA puts a `config.json` into both."""
    if not any((folder / name).exists() for name in (ADAPTER_CONFIG, NON_LORA_WEIGHTS)):
        return False
    return not (folder / "llm").is_dir() and not any(folder.glob("model*.safetensors"))


def _unknown_format(path: Path, plugins: Plugins) -> CheckpointError:
    known = ", ".join(plugins.checkpoint_formats.names())
    if not any(path.iterdir()):
        return CheckpointError(f"{path} is empty. Expected a checkpoint in one of the formats {known}.")
    if not (path / "config.json").exists():
        return CheckpointError(f"{path} has no config.json. Expected a checkpoint in one of the formats {known}.")
    method = quantization_at(path)
    if method is not None:
        advice = (
            "Convert the checkpoint that it was made from"
            if "awq" in plugins.checkpoint_formats
            else "Install vila-quant"
        )
        return CheckpointError(f"{path} is quantized ({method}), which no registered format reads ({known}). {advice}.")
    model_type = read_section(path / "config.json").string("model_type", "")
    return CheckpointError(
        f"{path / 'config.json'} has model_type '{model_type}', which no format knows. "
        "Known: llava_* (vila), vila (vila-remote), nvila and nvila_lite (nvila), vila_u_llama (vila-u). "
        f"Registered formats: {known}.{_hint_of_name(path)}"
    )


def _hint_of_name(path: Path) -> str:
    """Return what to say of a folder that has VILA-U's name but not its parts."""
    if not re.search(r"vila-?u(-|$)", path.resolve().name.lower().replace("_", "-")):
        return ""
    return (
        " Its name says VILA-U, but it holds only a language model: a VILA-U checkpoint has the folders llm, "
        "vision_tower and mm_projector. Download the complete checkpoint, such as mit-han-lab/vila-u-7b-256."
    )
