"""timm imports torchvision, whose compiled operators may be absent beside a CPU-only torch; it registers fakes for two of them.

Declaring their schemas before anything imports torchvision is enough: no test calls them.
"""

import importlib.util

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_LIBRARY = torch.library.Library("torchvision", "DEF") if importlib.util.find_spec("torchvision") else None
if _LIBRARY is not None:
    for _name in ("nms", "qnms"):
        _LIBRARY.define(_name + _SCHEMA)
