"""Small generation heads with random weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vila_core.chat import MEDIA_TOKENS, SENTINEL_TOKEN
from vila_core.generation.heads import OutputKind, Pick

KINDS = {"image": OutputKind("<im_start>", 6), "video": OutputKind("<vi_start>", 12, frames=2)}
TINY_KINDS = {"image": OutputKind(SENTINEL_TOKEN, 36), "video": OutputKind(MEDIA_TOKENS["video"], 24, frames=6)}
"""For vila-tiny, whose tokenizer has no start tokens: others take their place."""


class SmallHead(nn.Module):
    """Chooses D codes of a position one after the other: each depends on the hidden state and on those before it."""

    def __init__(self, width: int, *, depth: int, codes: int = 20, kinds: Mapping[str, OutputKind] = KINDS):
        super().__init__()
        generator = torch.Generator().manual_seed(depth)
        self.kinds = kinds
        self.codes_per_position = depth
        self.codebook_size = codes
        self._table = nn.Parameter(torch.randn(codes, width, generator=generator), requires_grad=False)
        self._scores = nn.Parameter(torch.randn(codes, width, generator=generator) / 2, requires_grad=False)
        self.failing_codes: set[int] = set()

    def choose(self, hidden: Tensor, pick: Pick) -> Tensor:
        chosen: list[Tensor] = []
        for depth in range(self.codes_per_position):
            so_far = hidden + sum((self._table[codes] for codes in chosen), torch.zeros_like(hidden))
            chosen.append(pick(depth, so_far @ self._scores.T))
        return torch.stack(chosen, dim=1)

    def embed(self, codes: Tensor) -> Tensor:
        return self._table[codes].sum(dim=-2)

    def logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        before = self._table[codes].cumsum(dim=1).roll(1, dims=1)
        before[:, 0] = 0
        return (hidden[:, None] + before) @ self._scores.T

    def decode(self, codes: Tensor, kind: str) -> Tensor:
        frames = self.kinds[kind].frames
        grey = codes[:, :1].view(frames, -1, 1, 1) * 255 // self.codebook_size
        return grey.expand(-1, -1, len(codes) // frames, 3).to(torch.uint8)


class HeadModule(nn.Module):
    """`VilaModel.generation` whose head is `head`."""

    def __init__(self, head: SmallHead):
        super().__init__()
        self.small = head

    def head(self, network: object) -> SmallHead:
        del network
        return self.small
