"""Checkpoint formats: one adapter for each on-disk layout, reading and writing."""
