"""A benchmark of drawn scenes, and the word error rate."""
