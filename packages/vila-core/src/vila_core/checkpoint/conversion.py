"""Write checkpoints: convert one on disk to another format, or save a model in memory."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.checkpoint.checkpoint import Checkpoint, RawParts
from vila_core.checkpoint.formats.tokenizer_files import read_chat_template, require_tokenizer
from vila_core.checkpoint.json_files import read_json
from vila_core.checkpoint.lora import merge_adapter, open_checkpoint
from vila_core.checkpoint.opening import read_as
from vila_core.config import VilaConfig
from vila_core.errors import CheckpointError, ConfigError
from vila_core.plugins.hookspecs import CheckpointFormat
from vila_core.plugins.loader import load_plugins

if TYPE_CHECKING:
    import torch

RECORD = ".vila_convert.json"
"""In the written folder: which conversion it is the result of."""


def convert(
    source: str | Path | Checkpoint,
    out: str | Path,
    format: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    lora: str | Path | None = None,
    max_shard_bytes: int | None = None,
) -> Checkpoint:
    """Write `source` to the new folder `out` in another format, read it back and return it.

    Tensors are copied as bytes and keep their dtypes; memory holds one chunk. A failed write leaves nothing behind.
    If `out` is the complete result of the same conversion, nothing is written.

    Args:
        source: a folder, a hub id, or an opened checkpoint; a LoRA adapter stands for its base and is merged into it.
        out: a folder that does not exist yet, or is empty.
        format: name of a registered format.
        revision: branch, tag or commit; only for a hub id.
        token: access token for gated and private repositories; only for a hub id.
        offline: use the hub's cache only.
        lora: folder or hub id of a LoRA adapter to merge into the weights.
        max_shard_bytes: largest safetensors file; None is the format's own limit (5 GB).

    Raises:
        CheckpointError: the format is unknown, read-only or cannot represent the model; `out` is not empty; the disk
            is full.
    """
    _require_positive(max_shard_bytes)
    target = writable_format(format)
    out = Path(out).expanduser()
    checkpoint = (
        source
        if isinstance(source, Checkpoint)
        else open_checkpoint(source, revision=revision, token=token, offline=offline)
    )
    request = describe_conversion(checkpoint, lora, format, max_shard_bytes)
    if is_converted(out, request):
        return read_as(target, out)
    if lora is not None:
        checkpoint = merge_adapter(checkpoint, lora, token=token, offline=offline)
    target.write(checkpoint, out, max_shard_bytes=max_shard_bytes)
    with contextlib.suppress(OSError):  # only for running the same conversion again
        (out / RECORD).write_text(json.dumps({"conversion": request}) + "\n", encoding="utf-8")
    return read_as(target, out)


def describe_conversion(
    checkpoint: Checkpoint, lora: str | Path | None, format: str, max_shard_bytes: int | None
) -> str:
    """Return a fingerprint of a conversion: the source's files by name, size and time, and all settings."""
    digest = hashlib.sha256(repr((format, max_shard_bytes, str(lora) if lora else None)).encode(errors="replace"))
    adapters = [Path(adapter) for adapter in (checkpoint.adapter, lora) if adapter is not None]
    for folder in (checkpoint.path, *adapters):
        for file in sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []:
            status = file.stat()
            digest.update(f"{file.relative_to(folder)} {status.st_size} {status.st_mtime_ns}".encode(errors="replace"))
    return digest.hexdigest()


def is_converted(out: Path, request: str) -> bool:
    """Return whether the folder `out` is the complete result of the same conversion, as `describe_conversion` names it.

    The folder gets its name only when it is complete.
    """
    if not os.path.isfile(out / RECORD):  # False for an impossible name
        return False
    try:
        return read_json(out / RECORD).get("conversion") == request
    except CheckpointError:
        return False


def save_checkpoint(
    tensors: "Mapping[str, torch.Tensor]",
    config: VilaConfig,
    tokenizer_path: str | Path,
    out: str | Path,
    *,
    format: str = "vila",
    base: Checkpoint | None = None,
    dtype: "torch.dtype | None" = None,
    max_shard_bytes: int | None = None,
) -> Checkpoint:
    """Write a model in memory to the new folder `out`, read it back and return it.

    Args:
        tensors: the network's state dict (canonical names), on any device.
        config: the network's config, written to the keys that the format has.
        tokenizer_path: folder with the tokenizer's files, which are copied.
        out: a folder that does not exist yet, or is empty.
        format: name of a registered format.
        base: the checkpoint that training started from; its other config keys and its license are kept.
        dtype: floating-point tensors are cast to it while writing; None keeps their dtypes.
        max_shard_bytes: largest safetensors file; None is the format's own limit (5 GB).

    Raises:
        CheckpointError: as `convert` does.
    """
    from vila_core.checkpoint.tensors.memory import MemoryWeights

    _require_positive(max_shard_bytes)
    target = writable_format(format)
    tokenizer_path = Path(tokenizer_path)
    require_tokenizer(tokenizer_path)
    # The position embeddings in memory are already resized to the network's image size.
    tower = config.vision_tower.model_copy(update={"pretrained_image_size": None})
    stored_as = {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}
    checkpoint = Checkpoint(
        path=base.path if base else tokenizer_path,
        format=base.format if base else "vila",
        config=config.model_copy(update={"vision_tower": tower, **stored_as}),
        weights=MemoryWeights(tensors, dtype),
        tokenizer_path=tokenizer_path,
        raw_config=base.raw_config if base else {},
        license=base.license if base else None,
        chat_template=read_chat_template(tokenizer_path),
        raw_parts=base.raw_parts if base else RawParts(),
    )
    out = Path(out).expanduser()
    target.write(checkpoint, out, max_shard_bytes=max_shard_bytes)
    return read_as(target, out)


def writable_format(name: str) -> CheckpointFormat:
    """Return the registered format `name`. Raises `CheckpointError` if there is none."""
    try:
        return load_plugins().checkpoint_formats.get(name)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _require_positive(max_shard_bytes: int | None) -> None:
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise CheckpointError(f"max_shard_bytes is {max_shard_bytes}; expected at least 1.")
