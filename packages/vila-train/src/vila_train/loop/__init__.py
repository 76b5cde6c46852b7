"""The training loop: rows in, gradients, steps, checkpoints, and an exported model at the end."""

from vila_train.loop.training import train

__all__ = ["train"]
