"""The size of the KV cache's pages, for settings, which are read without torch."""

PAGE_SIZE = 64
"""Tokens of a page, unless told otherwise. The GPU kernels take multiples of 64."""
