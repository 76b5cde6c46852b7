"""Chooses the runner for a language model, and checks that it has the requested cache."""

from typing import TYPE_CHECKING

from vila_core.engine.paged_runner import PagedRunner
from vila_core.engine.runner import Runner
from vila_core.engine.separate_runner import SeparateRunner
from vila_core.errors import ConfigError
from vila_core.generation.heads import GenerationHead
from vila_core.language import LanguageModel
from vila_core.language.decoder import Decoder
from vila_core.language.divided import NativeDecoder

if TYPE_CHECKING:
    from vila_core.engine.limits import EngineConfig


def choose_runner(llm: LanguageModel, config: "EngineConfig", head: GenerationHead | None = None) -> Runner:
    """Return the runner for a language model, and for the head that draws with it."""
    return PagedRunner(llm, config, head) if isinstance(llm, NativeDecoder) else SeparateRunner(llm, config, head)


def require_cache_dtype(llm: LanguageModel, config: "EngineConfig", *, is_split: bool = False) -> None:
    """Raise `ConfigError` if the language model, or its parts on several devices, cannot have the cache asked for."""
    if config.kv_cache_dtype != "auto" and (is_split or not isinstance(llm, Decoder)):
        kind = "is split over several devices" if is_split else f"({type(llm).__name__}) keeps a cache of its own"
        raise ConfigError(
            f"kv_cache_dtype={config.kv_cache_dtype!r} needs a native decoder on one device, but this language model "
            f"{kind}. Leave kv_cache_dtype at 'auto'."
        )
