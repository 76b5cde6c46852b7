"""Imports what loading, asking and training a model needs, so that children start at once. Nothing is computed.

Imported by the server of `fork_server.py`. What a fuzzed case needs does not count as its time or memory.
"""

import importlib

import torch

from vila_core.checkpoint import open_checkpoint
from vila_core.model import VilaModel
from vila_core.tokenizer import Tokenizer

NAMES = (
    "vila_core.loading",
    "vila_core.engine.grammar",
    "vila_core.media",
    "vila_train.loop",
    "av",
    "PIL.Image",
    "xgrammar",
)
for name in NAMES:
    importlib.import_module(name)
_checkpoint = open_checkpoint("vila-tiny")
with torch.device("meta"):
    VilaModel(_checkpoint.config, Tokenizer.from_folder(_checkpoint.tokenizer_path))
