"""The size of the KV cache's pages, for settings, which are read without torch."""

PAGE_SIZE = 64
"""Default number of tokens of a page. The GPU kernels take multiples of 64."""
