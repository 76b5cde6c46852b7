"""Calibration: from samples to the embeddings that the first block reads."""
