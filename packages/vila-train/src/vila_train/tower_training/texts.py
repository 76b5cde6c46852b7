"""A small text encoder for the contrast, for towers that are trained from nothing. It is not part of the model.

N texts, T tokens, C width of the result
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextEncoder(nn.Module):
    """A bidirectional transformer over token ids, whose states are averaged over the tokens that count.

    Args:
        vocab_size: ids are below it.
        max_length: longest text in tokens.
        width: of the transformer.
        out_width: C.
        num_layers, num_heads: of the transformer.
    """

    def __init__(
        self, vocab_size: int, max_length: int, width: int, out_width: int, num_layers: int = 3, num_heads: int = 4
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_length, width)
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.project = nn.Linear(width, out_width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: Tensor, counts: Tensor) -> Tensor:
        """Token ids `[N, T]` -> features of length 1, `[N, C]`.

        Args:
            ids: int64 `[N, T]`.
            counts: bool `[N, T]`, which tokens belong to the text; each text has one.
        """
        places = (counts.cumsum(dim=1) - 1).clamp(min=0)
        states = self.tokens(ids) + self.positions(places)  # [N, T, width]
        states = self.transformer(states, mask=_bias(counts, states.dtype, self.num_heads))
        weights = counts / counts.sum(dim=1, keepdim=True)
        return F.normalize(self.project((states * weights[..., None]).sum(dim=1)), dim=-1)

    @property
    def num_heads(self) -> int:
        layer = self.transformer.layers[0]
        assert isinstance(layer, nn.TransformerEncoderLayer)
        return layer.self_attn.num_heads


def _bias(counts: Tensor, dtype: torch.dtype, num_heads: int) -> Tensor:
    """Return what is added to scores of attention, `[N · heads, T, T]`: tokens that do not count are not seen."""
    hidden = torch.zeros(counts.shape, dtype=dtype, device=counts.device).masked_fill(~counts, float("-inf"))
    return hidden[:, None, None].expand(-1, num_heads, counts.shape[1], -1).flatten(0, 1)
