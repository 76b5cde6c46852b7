"""The model `vila_kit` of lmms-eval: run lmms-eval's benchmarks on a model of VILA Kit.

    lmms-eval --model vila_kit --model_args pretrained=Efficient-Large-Model/NVILA-8B --tasks pope --batch_size 8

lmms-eval finds it through the entry-point group `lmms_eval.models`, which names this module. It stays cheap to import;
the model itself is in `model.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

MODEL_NAME = "vila_kit"
"""lmms-eval has its own `vila`, which runs on the reference implementation."""


def manifest() -> ModelManifest:  # pyright: ignore[reportUnknownParameterType]
    """Tell lmms-eval where the model is.

    Its type is "chat", which lmms-eval recommends: prompts keep the order of their parts.
    """
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(MODEL_NAME, chat_class_path=f"{__name__}.model.VilaKit")
