"""Registers the name of one of core's own towers."""

from collections.abc import Sequence

from vila_core import Component, hookimpl
from vila_core.config import VisionTowerConfig


def build_tower(config: VisionTowerConfig) -> object:
    raise AssertionError("never built")


@hookimpl
def vila_vision_towers() -> Sequence[Component]:
    return (Component("siglip", VisionTowerConfig, build_tower),)
