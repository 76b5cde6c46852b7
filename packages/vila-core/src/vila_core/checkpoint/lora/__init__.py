"""LoRA adapters on disk: reading them, their settings, and the model that each was trained on."""

from typing import TYPE_CHECKING

from vila_core.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vila_core.checkpoint.lora.adapter_files import open_adapter
    from vila_core.checkpoint.lora.base_model import find_source, merge_adapter, open_checkpoint

__all__ = ["find_source", "merge_adapter", "open_adapter", "open_checkpoint"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "find_source": "base_model",
        "merge_adapter": "base_model",
        "open_adapter": "adapter_files",
        "open_checkpoint": "base_model",
    },
)
