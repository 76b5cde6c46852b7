"""Makes torchvision, which timm imports, importable with a different build of torch.

It then fails on two missing operators. Declaring them is enough, since no test calls them.
"""

import importlib.util
import sys

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _imports() -> bool:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # operator torchvision::nms does not exist
        return False
    return True


if importlib.util.find_spec("torchvision") and not _imports():
    for _module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[_module]
    _LIBRARY = torch.library.Library("torchvision", "DEF")
    for _operator in ("nms", "qnms"):
        _LIBRARY.define(_operator + _SCHEMA)
