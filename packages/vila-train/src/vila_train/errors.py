"""The error of vila-train."""

from vila_core.errors import VilaError


class TrainingError(VilaError):
    """Training cannot start or continue."""
