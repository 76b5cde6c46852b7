"""Losses of pictures and of pictures with their descriptions.

N pictures, C width
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Mean absolute plus mean squared difference of pixels from -1 to 1, `[N, 3, H, W]` each.

    The squares find the right colors; the absolute values keep edges sharp.
    """
    difference = decoded.float() - pixels.float()
    return difference.abs().mean() + difference.square().mean()


def sigmoid_contrast(pictures: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's loss: for each pair of a picture and a text, is this the picture's own description?

        -1/N Σ_ij log sigmoid(s_ij (scale · p_i · t_j + bias))        s_ii = 1, otherwise -1

    Args:
        pictures: `[N, C]`, of length 1.
        texts: `[N, C]`, of length 1; text i describes picture i.
        scale: of the logits, a scalar.
        bias: of the logits, a scalar.
    """
    with torch.autocast(pictures.device.type, enabled=False):
        logits = scale * pictures.float() @ texts.float().T + bias  # [N, N]
        signs = 2 * torch.eye(len(logits), device=logits.device) - 1
        return -F.logsigmoid(signs * logits).sum() / len(logits)
