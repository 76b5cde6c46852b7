"""Adapters: small additions to a model that are trained instead of its weights."""

from typing import TYPE_CHECKING

from vila_core.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vila_train.adapters.files import merged_tensors, save_adapter
    from vila_train.adapters.installation import install

__all__ = ["install", "merged_tensors", "save_adapter"]

__getattr__ = lazy_attributes(__name__, {"install": "installation", "merged_tensors": "files", "save_adapter": "files"})
