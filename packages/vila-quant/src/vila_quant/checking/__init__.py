"""Comparing a quantized model with its original, and showing which kernels a model uses."""
