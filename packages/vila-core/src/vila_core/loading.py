"""Loads a model from a checkpoint."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import torch
from pydantic import ValidationError

from vila_core.checkpoint import Checkpoint, estimate, load_weights, open_adapter, open_checkpoint
from vila_core.checkpoint.checkpoint import require_mergeable
from vila_core.checkpoint.embedded import EMBEDDED_MODEL
from vila_core.checkpoint.tensors.lora import Adapter
from vila_core.config import PreprocessConfig, VilaConfig
from vila_core.device_choice import choose_device, choose_dtype
from vila_core.device_memory import is_out_of_memory
from vila_core.display.loading_bar import loading_bar
from vila_core.engine.limits import EngineConfig
from vila_core.engine.runner_choice import require_cache_dtype
from vila_core.errors import CheckpointError, ConfigError, first_problem, shown, unknown_name, warn
from vila_core.language.decoder import Decoder
from vila_core.language.divided import DividedDecoder
from vila_core.language.fused_step import warn_if_not_captured
from vila_core.language.split import SplitDecoder
from vila_core.language.tensor_parallel import TensorParallelDecoder
from vila_core.load_settings import OTHER_NAMES, PreprocessSettings, takes_preprocess_settings
from vila_core.media import MediaLimits
from vila_core.model import VilaModel
from vila_core.placement import DeviceMap, check_device_map, plan_split, ran_out_of_memory, require_memory
from vila_core.runtime import Vila
from vila_core.template_choice import choose_template
from vila_core.tensor_placement import plan_shares
from vila_core.tokenizer import Tokenizer
from vila_core.towers.captured import use_fused_tower

_PATH = (str, PathLike)
_TYPES: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "path": (_PATH, "a folder or hub id"),
    "lora": (_PATH, "a folder or hub id"),
    "device": ((str, int, torch.device), "auto, cpu, cuda or cuda:N"),
    "dtype": ((str, torch.dtype), "auto, float32, bfloat16 or float16"),
    **dict.fromkeys(("chat_template", "revision", "token"), ((str,), "a text")),
    "offline": ((bool,), "True or False"),
    "limits": ((MediaLimits,), "vila_core.media.MediaLimits"),
    "engine": ((EngineConfig,), "vila_core.EngineConfig"),
    "progress": ((bool, Callable), "True, False or a function"),
}
_MAY_BE_NONE = ("path", "lora", "device", "dtype", "chat_template", "revision", "token", "limits", "engine")


@takes_preprocess_settings
def load(
    path: str | Path | None = None,
    *,
    device: str | torch.device | None = "auto",
    device_map: str | Sequence[str | torch.device] | None = None,
    dtype: str | torch.dtype | None = "auto",
    chat_template: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    lora: str | Path | None = None,
    limits: MediaLimits | None = None,
    engine: EngineConfig | None = None,
    progress: bool | Callable[[int, int], None] = True,
    **overrides: Unpack[PreprocessSettings],
) -> Vila:
    """Load a model from a folder or from the Hugging Face hub.

        model = vila_core.load("Efficient-Large-Model/NVILA-8B", num_video_frames=16)

    Args:
        path: folder or hub id of a checkpoint in any registered format; "vila-tiny" (or None, with a warning) is
            the embedded demo model, which only knows drawn shapes; "vila-tiny-u" is one that also draws them.
        device: "cuda", "cpu", "cuda:1", …; "auto" uses a GPU if there is one.
        device_map: "auto" splits a model that one GPU cannot hold by layers, over as few GPUs as hold it; a list of
            devices uses those. "tensor" lets all GPUs compute every token together, which decodes faster; "tensor:" and
            their names, such as "tensor:cuda:0,cuda:1", uses those.
        dtype: "float32", "bfloat16" or "float16" (or "fp32", "bf16", "fp16"); "auto" uses the checkpoint's dtype, or
            float32 for a small model on a CPU.
        chat_template: name of a registered template; None for the checkpoint's template.
        revision: branch, tag or commit on the hub.
        token: access token for a private repository.
        offline: use only files in the cache.
        lora: folder or hub id of a LoRA adapter in peft's format, merged into the weights as they load.
        limits: limits on the size of media.
        engine: how many prompts are answered at once, and the memory for the KV cache.
        progress: show a bar on a terminal or in a notebook if loading takes longer than two seconds (the environment
            variable TQDM_DISABLE=1 turns it off); a function is called with the bytes read and those of all weights.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, unsafe or does not match its config.
        ConfigError: an override, device or dtype is unknown or out of range, or there is too little memory.
    """
    _check_types(path=path, lora=lora, revision=revision, token=token, offline=offline)
    _check_types(device=device, dtype=dtype, chat_template=chat_template, limits=limits, engine=engine)
    _check_types(progress=progress)
    if path is None:
        warn(
            "Using the embedded demo model, which only knows drawn shapes. Name a model: load('owner/name') in Python, "
            f"-m on the command line. Naming '{EMBEDDED_MODEL}' hides this warning."
        )
    checkpoint = open_checkpoint(
        EMBEDDED_MODEL if path is None else path, revision=revision, token=token, offline=offline
    )
    adapter = None
    if lora is not None:
        require_mergeable(checkpoint)
        adapter = open_adapter(lora, checkpoint, revision=revision, token=token, offline=offline)
    return load_checkpoint(
        checkpoint,
        device=device,
        device_map=device_map,
        dtype=dtype,
        chat_template=chat_template,
        adapter=adapter,
        limits=limits,
        engine=engine,
        progress=progress,
        overrides=overrides,
    )


def load_checkpoint(
    checkpoint: Checkpoint,
    *,
    device: str | torch.device | None = "auto",
    device_map: str | Sequence[str | torch.device] | None = None,
    dtype: str | torch.dtype | None = "auto",
    chat_template: str | None = None,
    adapter: Adapter | None = None,
    limits: MediaLimits | None = None,
    engine: EngineConfig | None = None,
    progress: bool | Callable[[int, int], None] = True,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> Vila:
    """Load a model from an opened checkpoint; the arguments are those of `load`, which see.

    Raises:
        CheckpointError, ConfigError: as `load` does.
    """
    _check_types(device=device, dtype=dtype, chat_template=chat_template, limits=limits, engine=engine)
    _check_types(progress=progress)
    tokenizer = Tokenizer.from_folder(checkpoint.tokenizer_path)
    # A LLaMA checkpoint has no embedding rows for the media tokens, so the network adds them.
    vocab_size = max(checkpoint.config.language_model.vocab_size, len(tokenizer))
    tokenizer.require_ids_below(vocab_size)
    language_model = checkpoint.config.language_model.model_copy(update={"vocab_size": vocab_size})
    preprocess = override_preprocess(checkpoint.config, overrides)
    config = checkpoint.config.model_copy(update={"preprocess": preprocess, "language_model": language_model})
    template = choose_template(chat_template, config.chat_template, tokenizer)
    placed = _choose_devices(checkpoint, device, device_map, dtype)
    target, is_split = placed.devices[0], len(placed.devices) > 1
    chosen_dtype = choose_dtype(dtype, config, estimate(checkpoint).parameters, target)
    with torch.device("meta"):
        network = _build(config, tokenizer, checkpoint.path)
        if checkpoint.quantization is not None:
            checkpoint.quantization.replace_modules(network)
    require_cache_dtype(network.llm, engine or EngineConfig(), is_split=is_split)
    if not is_split:
        require_memory(checkpoint, target, chosen_dtype)
    try:
        with loading_bar(sum(entry.nbytes for entry in checkpoint.weights.entries.values()), progress) as on_read:
            load_weights(
                network,
                checkpoint,
                device=target,
                dtype=chosen_dtype,
                vocab_size=vocab_size,
                place=placed.device_of if is_split else None,
                adapter=adapter,
                on_read=on_read,
            )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ran_out_of_memory(checkpoint, chosen_dtype) from None
    network.eval().requires_grad_(False)
    if isinstance(network.llm, Decoder):
        warn_if_not_captured(network.llm.config, target, chosen_dtype)
        if is_split:
            network.llm = divide(network.llm, placed)
    use_fused_tower(network.vision_tower, chosen_dtype)
    return Vila(
        network,
        tokenizer,
        template,
        config=config,
        limits=limits or MediaLimits(),
        checkpoint=checkpoint,
        engine=engine,
    )


def divide(decoder: Decoder, placed: DeviceMap) -> DividedDecoder:
    """Return `decoder`, whose blocks lie where `placed` says, as one that runs on several devices."""
    if placed.shares_blocks:
        return TensorParallelDecoder(decoder, placed.devices)
    return SplitDecoder(decoder, placed.counts)


def _choose_devices(
    checkpoint: Checkpoint,
    device: str | torch.device | None,
    device_map: str | Sequence[str | torch.device] | None,
    dtype: str | torch.dtype | None,
) -> DeviceMap:
    """Return where the parts of the model go. Raises `ConfigError` if they fit nowhere, or for a wrong argument."""
    if device_map is None:
        return DeviceMap((choose_device(device),), ())
    if device not in (None, "auto"):
        raise ConfigError("Both device and device_map are given. Use device= for one device, device_map= for several.")
    chosen = check_device_map(device_map)
    first = choose_device("auto" if chosen.names == "auto" or not chosen.names else chosen.names[0])
    chosen_dtype = choose_dtype(dtype, checkpoint.config, estimate(checkpoint).parameters, first)
    if chosen.shares_blocks:
        return plan_shares(checkpoint, chosen.names, chosen_dtype, choose_device)
    return plan_split(checkpoint, chosen.names, chosen_dtype, choose_device)


def _check_types(**arguments: object) -> None:
    """Check the types of arguments of `load`. Raises `ConfigError`."""
    for name, value in arguments.items():
        types, expected = _TYPES[name]
        if not isinstance(value, types) and not (value is None and name in _MAY_BE_NONE):
            raise ConfigError(f"load: {name} is {shown(value)}; expected {expected}.")


def _build(config: VilaConfig, tokenizer: Tokenizer, path: Path) -> VilaModel:
    """Build the network that a checkpoint's config describes. Raises `CheckpointError` if it describes none."""
    try:
        return VilaModel(config, tokenizer)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def override_preprocess(config: VilaConfig, overrides: Mapping[str, Any]) -> PreprocessConfig:
    """Return the preprocessing config of the model with `overrides` applied.

    Raises:
        ConfigError: a field is unknown, a value is invalid, or the model does not support it.
    """
    for name in overrides:
        if name not in PreprocessConfig.model_fields:
            arguments = inspect.signature(load).parameters
            raise ConfigError(unknown_name("argument of load", name, arguments, OTHER_NAMES))
    try:
        preprocess = PreprocessConfig.model_validate({**config.preprocess.model_dump(), **overrides})
    except ValidationError as error:
        raise ConfigError(f"{first_problem(error).with_value}.") from None
    if preprocess.image_aspect_ratio == "dynamic_s2" and config.dynamic_s2 is None:
        raise ConfigError(
            "image_aspect_ratio 'dynamic_s2' needs a model that was trained with dynamic S2, and this one was not."
        )
    return preprocess
