"""The model `vila_kit` of lmms-eval: its benchmarks, with a model of VILA Kit.

    lmms-eval --model vila_kit --model_args pretrained=Efficient-Large-Model/NVILA-8B --tasks pope --batch_size 8

lmms-eval finds it through the entry-point group `lmms_eval.models`. This module is what the entry point names, so it stays cheap; the
model itself is in `model.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

MODEL_NAME = "vila_kit"
"""lmms-eval has a `vila` of its own, which runs on the reference implementation."""


def manifest() -> ModelManifest:  # pyright: ignore[reportUnknownParameterType]
    """Return where lmms-eval finds the model. It is of the kind "chat", which lmms-eval recommends: prompts keep their parts' order."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(MODEL_NAME, chat_class_path=f"{__name__}.model.VilaKit")
