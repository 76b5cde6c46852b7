"""Registers a tower of its own, and the tower name that `vila-plugin-good` registers too."""

from collections.abc import Sequence

from vila_core import Component, hookimpl
from vila_core.config import VisionTowerConfig


def build_tower(config: VisionTowerConfig) -> object:
    raise AssertionError("never built")


@hookimpl
def vila_vision_towers() -> Sequence[Component]:
    return (
        Component("only_here", VisionTowerConfig, build_tower),
        Component("patch_mean", VisionTowerConfig, build_tower),
    )
