"""The errors of vila-train."""

from vila_core.errors import VilaError


class TrainingError(VilaError):
    """Training cannot start or continue."""


class DatasetError(TrainingError):
    """A dataset, registry or mixture cannot be opened."""
