"""Metrics as pure functions: an answer and what was expected in, a score in [0, 1] out."""
