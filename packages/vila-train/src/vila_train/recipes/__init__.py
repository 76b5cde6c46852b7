"""Recipes: functions that return the configuration of a training run, one for each published stage.

A third party registers its own with the hook `vila_recipes`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vila_core.plugins.lazy import import_object


@dataclass(frozen=True)
class Recipe:
    """A named configuration.

    Attributes:
        name: what `vila-train run` takes.
        summary: one line for `vila-train list`.
        build: returns the configuration, a `vila_train.config.TrainConfig` (or `TinyConfig`).
    """

    name: str
    summary: str
    build: Callable[[], Any]


def own_recipe(name: str, summary: str, target: str) -> Recipe:
    """Return a recipe that this package has; `target` is "module:function" below `vila_train.recipes`.

    Configurations import pydantic, which listing the recipes does without.
    """
    return Recipe(name, summary, lambda: import_object(f"vila_train.recipes.{target}")())


RECIPES = (
    own_recipe(
        "nvila-lite-align", "a new projector between Qwen2 and SigLIP; 3x3 patches per token", "nvila_lite:align"
    ),
    own_recipe("nvila-lite-stage1.5", "projector and vision tower", "nvila_lite:stage1_5"),
    own_recipe("nvila-lite-pretrain", "projector and language model, on interleaved data", "nvila_lite:pretrain"),
    own_recipe("nvila-lite-sft", "all parts, on instructions", "nvila_lite:sft"),
    own_recipe("nvila-align", "a new projector; dynamic S2 with 9 tiles", "nvila:align"),
    own_recipe("nvila-stage1.5", "projector and vision tower", "nvila:stage1_5"),
    own_recipe("nvila-pretrain", "projector and language model, on interleaved data", "nvila:pretrain"),
    own_recipe("nvila-sft", "all parts, on instructions", "nvila:sft"),
    own_recipe("nvila-video", "all parts, on videos of 256 frames, with time tokens", "nvila_video:sft"),
    own_recipe("vila1.5-align", "a new projector between Vicuna and SigLIP", "vila15:align"),
    own_recipe("vila1.5-pretrain", "projector and language model, on interleaved data", "vila15:pretrain"),
    own_recipe("vila1.5-sft", "all parts, on instructions", "vila15:sft"),
    own_recipe("vila1.5-sft-40b", "the same with the learning rate of the 40B model", "vila15:sft_40b"),
    own_recipe(
        "vila-u-pretrain", "projector, language model and generation head: seeing and drawing", "vila_u:pretrain"
    ),
    own_recipe("vila-u-sft", "the same parts, on instructions and pictures to draw", "vila_u:sft"),
    own_recipe("vila-tiny", "all stages of the embedded demo model, from nothing, on one GPU", "tiny:tiny"),
    own_recipe(
        "vila-tiny-u", "all stages of a tiny VILA-U that sees and draws, from nothing, on one GPU", "tiny:tiny_u"
    ),
)
