"""Tensors on disk: headers, shards, reading and writing."""
