"""Makes the callbacks of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from vila_core.errors import PluginError, shown
from vila_core.plugins.loader import load_plugins
from vila_train.callbacks import Callback
from vila_train.tracking import FACTORIES

if TYPE_CHECKING:
    from vila_train.config import TrainConfig

ALWAYS = ("log", "console", "loss_plot")
"""Callbacks of every run."""


def open_callbacks(config: TrainConfig) -> list[Callback]:
    """Return the callbacks of a run: those of every run, and those that `config.logging.callbacks` names.

    Raises:
        ConfigError: a name is unknown.
        MissingDependencyError: the package of a tracker is not installed.
        PluginError: a plugin's factory fails, or returns something else.
    """
    registry = load_plugins().callbacks
    own = {factory.name: factory for factory in FACTORIES}  # whatever VILA_PLUGINS selects
    names = dict.fromkeys((*ALWAYS, *config.logging.callbacks))
    factories = [own[name] if name in own else registry.get(name) for name in names]
    callbacks: list[Callback] = []
    for factory in factories:
        built = cast("object", factory.build())
        if not isinstance(built, Callback):
            raise PluginError(
                f"The callback '{factory.name}' of {registry.owner(factory.name)} built {shown(built)}; expected an "
                "object with on_start, on_step, on_evaluation, on_checkpoint and on_end."
            )
        callbacks.append(built)
    return callbacks
