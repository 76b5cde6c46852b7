"""Typed registries: what the plugins registered, by name, each with the distribution that owns it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vila_core.errors import ConfigError, PluginError, shown, unknown_name
from vila_core.plugins.hookspecs import Named

T = TypeVar("T", bound=Named)


@dataclass(frozen=True)
class Owner:
    """Who registers something: a plugin (its entry-point name) of an installed distribution, or a plain file."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} (plugin '{self.plugin}')"


@dataclass(frozen=True)
class Registered(Generic[T]):
    """One registered object and its owner."""

    item: T
    owner: Owner

    @property
    def name(self) -> str:
        return self.item.name


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Objects of one kind, by name, in order of registration.

    `contested` holds, for each name that two third-party plugins claim, the message to raise: neither is chosen.
    `failed` names the plugins that did not load, since an unknown name may be theirs.
    """

    kind: str
    entries: Mapping[str, Registered[T]]
    contested: Mapping[str, str] = field(default_factory=dict[str, str])
    failed: tuple[str, ...] = ()

    def get(self, name: str) -> T:
        """Return the object called `name`. Raises `ConfigError` if unknown, `PluginError` if two plugins claim it."""
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] (from a user or a config)
            raise ConfigError(f"The name of a {self.kind} is a text, got {shown(name)}.")
        if name in self.contested:
            raise PluginError(self.contested[name])
        if name not in self.entries:
            raise ConfigError(self._unknown(name))
        return self.entries[name].item

    def owner(self, name: str) -> Owner:
        """Return who registered `name`. Raises `ConfigError` if unknown."""
        if name not in self.entries:
            raise ConfigError(self._unknown(name))
        return self.entries[name].owner

    def names(self) -> tuple[str, ...]:
        return tuple(self.entries)

    def items(self) -> tuple[Registered[T], ...]:
        return tuple(self.entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[T]:
        return (entry.item for entry in self.entries.values())

    def __len__(self) -> int:
        return len(self.entries)

    def _unknown(self, name: str) -> str:
        hint = (
            f" These plugins did not load and may hold it: {', '.join(self.failed)} (see `vila plugins`)."
            if self.failed
            else ""
        )
        return unknown_name(self.kind, name, self.entries) + hint
