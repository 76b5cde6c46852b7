"""The training loop: rows in, gradients, steps, checkpoints, and an exported model at the end."""

from vila_train.loop.exporting import export
from vila_train.loop.training import Stopped, train

__all__ = ["Stopped", "export", "train"]
