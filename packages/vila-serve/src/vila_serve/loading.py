"""Loads the model that a server serves."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import vila_core
from vila_core.errors import warn
from vila_core.language.page_size import PAGE_SIZE
from vila_serve.answering.process import Task
from vila_serve.observability.logs import log_to_stderr
from vila_serve.settings import ServeSettings

if TYPE_CHECKING:
    from vila_core import Vila

log = logging.getLogger(__name__)


def load_model(settings: ServeSettings, progress: bool | Callable[[int, int], None] = False) -> "Vila":
    """Load the model of the settings, and answer once, which makes its KV cache.

    Raises:
        CheckpointError, ConfigError: as `vila_core.load` does.
    """
    from vila_core.checkpoint.embedded import EMBEDDED_MODEL  # imported here because of torch

    devices = None if settings.device_map in (None, "auto") else settings.device_map.split(",")
    model = vila_core.load(
        settings.model_path or EMBEDDED_MODEL,
        device=settings.device,
        device_map=devices or settings.device_map,
        dtype=settings.dtype,
        chat_template=None if settings.conv_mode == "auto" else settings.conv_mode,
        revision=settings.revision,
        offline=settings.offline,
        lora=settings.lora_path,
        engine=vila_core.EngineConfig(
            max_batch=settings.max_batch,
            max_queue=settings.max_batch + settings.max_queue,
            cache_bytes=settings.cache_bytes,
            kv_cache_dtype=settings.kv_cache_dtype,
        ),
        progress=progress,
    )
    model.generate("Hello", max_new_tokens=1)
    held = model.engine.stats().pages * PAGE_SIZE
    most = model.config.language_model.max_length
    if settings.max_context is not None and settings.max_context > most:
        warn(f"--max-context is {settings.max_context:,}, but the model's context holds {most:,} tokens, which counts.")
    context = min(settings.max_context or sys.maxsize, most)
    if held < context:
        warn(
            f"The KV cache holds {held:,} tokens, but a request may have {context:,} (--max-context): longer ones are "
            "refused. Give it more memory (--cache-bytes), use --kv-cache-dtype fp8 or a smaller or quantized model, "
            f"or set --max-context to {held:,} or less."
        )
    return model


def warm_up(model: "Vila") -> None:
    """Warm a model up, so that the first clients need not wait for that, and write its progress to the log."""
    log.info("Warming up on %s%s", model.device, ": --no-warm-up skips it" if model.device.type == "cuda" else "")
    begin = time.perf_counter()
    model.warm_up()
    log.info("Warmed up in %.1f s", time.perf_counter() - begin)


def loading_task(settings: ServeSettings, plugin_files: Sequence[Path] = ()) -> Task:
    """Return what the engine's process does: load the model of the settings, warm it up and answer with it."""
    return Task(
        load=partial(load_model, settings),
        max_context=settings.max_context,
        plugin_files=tuple(path.absolute() for path in plugin_files),
        set_up=partial(log_to_stderr, settings.log_level, settings.log_format),
        warm_up=warm_up if settings.warm_up else None,
    )
