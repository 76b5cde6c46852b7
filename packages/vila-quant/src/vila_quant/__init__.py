"""Quantization for VILA Kit: four-bit language models, eight-bit vision towers, and the kernels that run them."""

__version__ = "0.1.0"
