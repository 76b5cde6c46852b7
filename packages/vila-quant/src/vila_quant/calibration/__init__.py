"""Calibration: what a model is shown while it is quantized, from samples to the embeddings that its blocks read."""
