"""Errors of quantization that a user can fix."""

from vila_core.errors import VilaError


class QuantizationError(VilaError):
    """A model cannot be quantized: values that are not finite, too little calibration, not enough memory."""
