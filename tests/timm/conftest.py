"""Lets torchvision import beside a torch of another build (a CPU torch under PyPI's CUDA torchvision, say).

The towers of timm need nothing of torchvision's compiled operators, but `import torchvision` asks torch for two of them.
Where its compiled part does not load, they are declared here, before anything imports it.
"""

import importlib.util
import subprocess
import sys

import torch

OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
IMPORTS_AS_IT_IS = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False).returncode == 0

if importlib.util.find_spec("torchvision") and not IMPORTS_AS_IT_IS:
    for operator in ("nms", "qnms"):
        OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
