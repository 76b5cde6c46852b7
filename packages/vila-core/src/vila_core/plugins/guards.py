"""Stand-ins for the objects that third parties register: whatever their methods raise or return, the plugin is named.

The objects of core and its siblings are used as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vila_core.errors import PluginError, VilaError, shown, warn
from vila_core.plugins.hookspecs import CallbackFactory, CheckpointFormat, Component
from vila_core.plugins.isolation import PluginFailedError, run_plugin_code

if TYPE_CHECKING:
    from vila_core.chat import ChatTemplate, Turn
    from vila_core.checkpoint import Checkpoint
    from vila_core.plugins.datasets import Dataset, Sample
    from vila_core.plugins.registry import Owner

OWN_DISTRIBUTIONS = ("vila-core", "vila-train", "vila-quant", "vila-serve", "vila-eval")
MAX_RENDERED = 1_000_000
"""Characters that a template may add to a conversation."""
MAX_SUBSETS = 10_000

Result = TypeVar("Result")


def call_plugin(what: str, function: Callable[[], Result]) -> Result:
    """Call a plugin's code; `what` begins the message of its failure.

    Raises:
        PluginError: it raised anything but another `VilaError`, which is raised as it is.
    """
    try:
        return run_plugin_code(function)
    except PluginFailedError as error:
        if isinstance(error.__cause__, VilaError) and not isinstance(error.__cause__, PluginError):
            raise error.__cause__ from None
        raise PluginError(f"{what} fails: {error}") from error.__cause__


def guarded(hook: str, item: Any, owner: Owner) -> Any:
    """Return what stands in for `item`, which the plugin of `owner` registered with `hook`."""
    guard = _GUARDS.get(hook)
    return item if guard is None or owner.distribution in OWN_DISTRIBUTIONS else guard(item, owner)


@dataclass(frozen=True)
class GuardedTemplate:
    """A chat template that returns a text of limited length."""

    item: ChatTemplate
    owner: Owner

    @property
    def name(self) -> str:
        return self.item.name

    @property
    def _what(self) -> str:
        return f"The chat template '{self.name}' of {self.owner}"

    @property
    def end_token(self) -> str | None:
        token = cast("object", call_plugin(self._what, lambda: self.item.end_token))
        if token is not None and not isinstance(token, str):
            raise PluginError(f"{self._what} has the end_token {shown(token)}; expected a text or None.")
        return token

    def render(
        self,
        turns: Sequence[Turn],
        special_tokens: Mapping[str, str],
        *,
        generation_prompt: bool = True,
        system_prompt: bool = True,
    ) -> str:
        options = {"generation_prompt": generation_prompt, "system_prompt": system_prompt}
        text = cast("object", call_plugin(self._what, lambda: self.item.render(turns, special_tokens, **options)))
        if not isinstance(text, str):
            raise PluginError(f"{self._what} renders {shown(text)}; expected a text.")
        if len(text) > MAX_RENDERED + 4 * sum(len(turn.text) for turn in turns):
            raise PluginError(f"{self._what} renders {len(text):,} characters. Is it endless?")
        return text


@dataclass(frozen=True)
class GuardedFormat:
    """A checkpoint format. If it cannot tell whether a folder is its own, it is not, so that other formats work."""

    item: CheckpointFormat
    owner: Owner

    @property
    def name(self) -> str:
        return self.item.name

    @property
    def _what(self) -> str:
        return f"The checkpoint format '{self.name}' of {self.owner}"

    def detect(self, path: Path) -> bool:
        try:
            found = cast("object", call_plugin(self._what, lambda: self.item.detect(path)))
        except VilaError as error:
            warn(f"{error} It is left out.")
            return False
        if not isinstance(found, bool):
            warn(f"{self._what}: detect returned {shown(found)}; expected True or False. It is left out.")
            return False
        return found

    def read(self, path: Path) -> Checkpoint:
        return call_plugin(self._what, lambda: self.item.read(path))

    def write(self, checkpoint: Checkpoint, path: Path, *, max_shard_bytes: int | None = None) -> None:
        call_plugin(self._what, lambda: self.item.write(checkpoint, path, max_shard_bytes=max_shard_bytes))


@dataclass(frozen=True)
class GuardedDataset:
    """A dataset whose sizes and samples have the right types."""

    item: Dataset
    owner: Owner

    @property
    def name(self) -> str:
        return self.item.name

    @property
    def _what(self) -> str:
        return f"The dataset '{self.name}' of {self.owner}"

    @property
    def splits(self) -> Sequence[str]:
        return call_plugin(self._what, lambda: _names("splits", self.item.splits))

    def subsets(self) -> Sequence[str]:
        return call_plugin(self._what, lambda: _names("subsets", self.item.subsets()))

    def size(self, split: str, subset: str) -> int | None:
        size = cast("object", call_plugin(self._what, lambda: self.item.size(split, subset)))
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
            raise PluginError(f"{self._what}: size is {shown(size)}; expected a whole number or None.")
        return size

    def sample(self, split: str, subset: str, index: int) -> Sample:
        from vila_core.plugins.datasets import Sample

        found = cast("object", call_plugin(self._what, lambda: self.item.sample(split, subset, index)))
        if not isinstance(found, Sample) or not isinstance(cast("object", found.answer), str):
            raise PluginError(f"{self._what}: sample {index} is {shown(found)}; expected a Sample with a text answer.")
        return found


def _names(what: str, found: object) -> Sequence[str]:
    if not isinstance(found, list | tuple):
        raise PluginError(f"{what} is {shown(found)}; expected a list of texts")
    names = list(islice(cast("Sequence[object]", found), MAX_SUBSETS + 1))
    if len(names) > MAX_SUBSETS or not all(isinstance(name, str) for name in names):
        raise PluginError(f"{what} is {shown(names)}; expected a list of at most {MAX_SUBSETS:,} texts")
    return cast("list[str]", names)


@dataclass(frozen=True)
class GuardedCallbackFactory:
    """A factory of callbacks. Training catches and reports what its callbacks raise later."""

    item: CallbackFactory
    owner: Owner

    @property
    def name(self) -> str:
        return self.item.name

    def build(self) -> Any:
        return call_plugin(f"The callback '{self.name}' of {self.owner}", lambda: self.item.build())


def _guarded_component(component: Component, owner: Owner) -> Component:
    def build(*given: Any) -> Any:
        return call_plugin(f"'{component.name}' of {owner}", lambda: component.build(*given))

    return replace(component, build=build)


_GUARDS: Mapping[str, Callable[[Any, Owner], Any]] = {
    "vila_chat_templates": GuardedTemplate,
    "vila_checkpoint_formats": GuardedFormat,
    "vila_datasets": GuardedDataset,
    "vila_callbacks": GuardedCallbackFactory,
    **dict.fromkeys(
        (
            "vila_vision_towers",
            "vila_projectors",
            "vila_media_encoders",
            "vila_language_models",
            "vila_generation_heads",
        ),
        _guarded_component,
    ),
}
