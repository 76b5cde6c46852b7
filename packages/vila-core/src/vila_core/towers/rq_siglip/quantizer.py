"""Residual quantization (RQ-VAE, Lee et al. 2022, "Autoregressive image generation using residual quantization").

A feature becomes D codes: the nearest embedding, then the nearest one to what is left, and so on. Their sum stands for
the feature.

C width, D codes of a position, K codes of a codebook, P positions
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITIONS_AT_ONCE = 2048
"""Positions whose distances to a codebook are held together: 128 MB with 16,384 codes."""


class Codebook(nn.Module):
    """K embeddings, and one row of zeros that is never searched (`weight` `[K + 1, C]`, as in RQ-VAE).

    `embed_ema` `[K, C]` and `cluster_size_ema` `[K]`, if kept, are the running averages that training updates.
    """

    def __init__(self, size: int, width: int, keeps_ema: bool):
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(size + 1, width), requires_grad=False)
        if keeps_ema:
            self.register_buffer("embed_ema", torch.empty(size, width))
            self.register_buffer("cluster_size_ema", torch.empty(size))

    @property
    def embeddings(self) -> Tensor:
        """`[K, C]`."""
        return self.weight[: self.size]


class ResidualQuantizer(nn.Module):
    """D steps of quantization with one codebook for all depths, or one for each."""

    def __init__(self, size: int, depth: int, width: int, *, shared: bool, keeps_ema: bool = False):
        super().__init__()
        self.depth = depth
        self.codebooks = nn.ModuleList(Codebook(size, width, keeps_ema) for _ in range(1 if shared else depth))

    def codebook(self, depth: int) -> Codebook:
        """Return the codebook of the codes at `depth`."""
        codebook = self.codebooks[min(depth, len(self.codebooks) - 1)]
        assert isinstance(codebook, Codebook)
        return codebook

    def encode(self, features: Tensor) -> Tensor:
        """`[..., C]` -> codes int64 `[..., D]`. Distances are fp32: in 16 bits they tie."""
        flat = features.flatten(0, -2)  # [P, C]
        codes = torch.cat([self._encode(part) for part in flat.split(POSITIONS_AT_ONCE)])
        return codes.view(*features.shape[:-1], self.depth)

    def _encode(self, features: Tensor) -> Tensor:
        residual = features.float()
        codes: list[Tensor] = []
        for depth in range(self.depth):
            embeddings = self.codebook(depth).embeddings.float()
            nearest = squared_distances(residual, embeddings).argmin(dim=-1)  # [P]
            residual = residual - embeddings[nearest]
            codes.append(nearest)
        return torch.stack(codes, dim=-1)

    def embed_one(self, codes: Tensor, depth: int) -> Tensor:
        """Codes `[...]` of one depth -> their embeddings `[..., C]`."""
        return F.embedding(codes, self.codebook(depth).weight)

    def embed_each(self, codes: Tensor) -> Tensor:
        """`[..., D]` -> the embedding of each code, `[..., D, C]`."""
        if len(self.codebooks) == 1:
            return F.embedding(codes, self.codebook(0).weight)
        return torch.stack([self.embed_one(codes[..., depth], depth) for depth in range(self.depth)], dim=-2)

    def embed(self, codes: Tensor) -> Tensor:
        """`[..., D]` -> the sum of the embeddings, `[..., C]`."""
        total = self.embed_one(codes[..., 0], 0)
        for depth in range(1, self.depth):
            total = total + self.embed_one(codes[..., depth], depth)
        return total

    def cumulative(self, codes: Tensor) -> Tensor:
        """`[..., D]` -> the sums of the first 1 … D embeddings, `[..., D, C]`."""
        return self.embed_each(codes).cumsum(dim=-2)


def squared_distances(points: Tensor, embeddings: Tensor) -> Tensor:
    """`[P, C]`, `[K, C]` -> |point - embedding|² `[P, K]`, by the binomial formula as the reference does."""
    norms = points.square().sum(-1, keepdim=True) + embeddings.square().sum(-1)
    return torch.addmm(norms, points, embeddings.T, alpha=-2)
