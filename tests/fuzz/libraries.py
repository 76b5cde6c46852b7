"""What loading and asking a model imports, so that it does not count as time or memory of a case. Nothing is computed.

Imported once by the server that forks the children of `bounded.py`.
"""

import importlib

import torch

from vila_core.checkpoint import open_checkpoint
from vila_core.model import VilaModel
from vila_core.tokenizer import Tokenizer

for name in ("vila_core.loading", "vila_core.engine.grammar", "vila_core.media", "av", "PIL.Image", "xgrammar"):
    importlib.import_module(name)
_checkpoint = open_checkpoint("vila-tiny")
with torch.device("meta"):
    VilaModel(_checkpoint.config, Tokenizer.from_folder(_checkpoint.tokenizer_path))
