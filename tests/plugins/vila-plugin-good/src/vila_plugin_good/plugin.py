"""What `vila-plugin-good` registers. The tower itself is in `tower.py`, imported when it is built."""

from collections.abc import Sequence
from typing import Literal

from vila_core import Component, hookimpl
from vila_core.chat import ChatTemplate, SeparatorTemplate
from vila_core.config import VisionTowerConfig

VILA_HOOK_API = 2


class PatchMeanConfig(VisionTowerConfig):
    """A tower that sees the mean colour of each patch."""

    name: Literal["patch_mean"] = "patch_mean"


def build_tower(config: PatchMeanConfig) -> object:
    from vila_plugin_good.tower import PatchMeanTower

    return PatchMeanTower(config)


@hookimpl
def vila_vision_towers() -> Sequence[Component]:
    return (Component("patch_mean", PatchMeanConfig, build_tower),)


@hookimpl
def vila_chat_templates() -> Sequence[ChatTemplate]:
    return (
        SeparatorTemplate(
            name="plain_dialog",
            system="",
            system_end="",
            user_prefix="Q: ",
            user_end="\n",
            assistant_prefix="A: ",
            assistant_end="\n",
        ),
    )
