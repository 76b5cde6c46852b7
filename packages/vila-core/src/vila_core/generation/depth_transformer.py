"""VILA-U's depth transformer: the codes of one image position, one after another (RQ-Transformer, Lee et al. 2022).

Input 0 is the language model's hidden state; input d is the sum of the embeddings of the codes before d. Output d
scores code d. One classifier serves all depths.

R rows, T positions, H width of the language model, E width here, C width of codes, D codes of a position, K codebook
size, A heads
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vila_core.config import DepthTransformerConfig
from vila_core.errors import ConfigError
from vila_core.generation.heads import OutputKind, Pick

if TYPE_CHECKING:
    from vila_core.model import VilaModel
    from vila_core.projectors import Projector
    from vila_core.towers.rq_siglip.tower import RQSiglipTower


@dataclass
class KeysAndValues:
    """What one layer keeps of the depths before: `[R, A, D, E / A]` each."""

    keys: Tensor
    values: Tensor


class DepthAttention(nn.Module):
    """Causal attention over the codes of a position."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, D, E]` -> `[T, D, E]`."""
        q, k, v = (self._heads(linear(x)) for linear in (self.query, self.key, self.value))
        return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def step(self, x: Tensor, cache: KeysAndValues, depth: int) -> Tensor:
        """`[R, 1, E]` at `depth` -> `[R, 1, E]`; its key and value are added to the cache."""
        q, k, v = (self._heads(linear(x)) for linear in (self.query, self.key, self.value))  # [R, A, 1, E/A]
        cache.keys[:, :, depth : depth + 1] = k
        cache.values[:, :, depth : depth + 1] = v
        seen = slice(depth + 1)
        mixed = F.scaled_dot_product_attention(q, cache.keys[:, :, seen], cache.values[:, :, seen])
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def empty_cache(self, like: Tensor, depths: int) -> KeysAndValues:
        """Return room for `depths` codes of each row of `like` `[R, E]`."""
        shape = (len(like), self.num_heads, depths, like.shape[1] // self.num_heads)
        return KeysAndValues(like.new_empty(shape), like.new_empty(shape))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class DepthBlock(nn.Module):
    """A pre-norm layer: `[T, D, E]` -> `[T, D, E]`."""

    def __init__(self, config: DepthTransformerConfig):
        super().__init__()
        width = config.embed_dim
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.attn = DepthAttention(width, config.num_attention_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.ln1(x)))
        return x + self.dropout(self.mlp(self.ln2(x)))

    def step(self, x: Tensor, cache: KeysAndValues, depth: int) -> Tensor:
        """`[R, 1, E]` -> `[R, 1, E]`."""
        x = x + self.attn.step(self.ln1(x), cache, depth)
        return x + self.mlp(self.ln2(x))


class DepthBlocks(nn.Module):
    """The layers, named as in the checkpoint."""

    def __init__(self, config: DepthTransformerConfig):
        super().__init__()
        self.blocks = nn.ModuleList(DepthBlock(config) for _ in range(config.num_hidden_layers))


class Classifier(nn.Module):
    """Norm and scores: `[..., E]` -> `[..., K]`."""

    def __init__(self, width: int, codes: int):
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, codes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layer_norm(x))


class DepthTransformer(nn.Module):
    """The head's own weights. Embeddings of codes are the tower's: see `DepthTransformerHead`."""

    def __init__(self, config: DepthTransformerConfig):
        super().__init__()
        self.config = config
        self.in_mlp_1 = nn.Linear(config.code_width, config.embed_dim)
        self.in_mlp_2 = nn.Linear(config.hidden_size, config.embed_dim)
        self.pos_emb_d = nn.Parameter(torch.empty(1, config.code_depth, config.embed_dim))
        self.head_transformer = DepthBlocks(config)
        self.classifier_mlp = Classifier(config.embed_dim, config.codebook_size)
        self.reset_parameters()

    @property
    def blocks(self) -> list[DepthBlock]:
        """The layers."""
        return [block for block in self.head_transformer.blocks if isinstance(block, DepthBlock)]

    def head(self, network: "VilaModel") -> "DepthTransformerHead":
        """Return the head of `network`, whose `generation` this module is.

        Raises:
            ConfigError: the network's vision tower has no codes.
        """
        from vila_core.towers.rq_siglip.tower import RQSiglipTower

        if not isinstance(network.vision_tower, RQSiglipTower):
            raise ConfigError("The depth transformer needs a vision tower with codes (rq-siglip).")
        return DepthTransformerHead(self, network.vision_tower, network.mm_projector)

    def forward(self, hidden: Tensor, cumulative: Tensor) -> Tensor:
        """Score the codes of positions whose codes are known.

        Args:
            hidden: `[T, H]`, of the language model after its final norm.
            cumulative: `[T, D, C]`, sums of the embeddings of the codes up to each depth.

        Returns:
            `[T, D, K]`.
        """
        return self.classifier_mlp(self.states(hidden, cumulative))

    def states(self, hidden: Tensor, cumulative: Tensor) -> Tensor:
        """Return `[T, D, E]`, which the classifier reads. Arguments as in `forward`."""
        first = self.in_mlp_2(hidden)[:, None]
        x = torch.cat((first, self.in_mlp_1(cumulative[:, :-1])), dim=1) + self.pos_emb_d
        for block in self.blocks:
            x = block(x)
        return x

    def reset_parameters(self) -> None:
        """Initialize for training: normal weights with a deviation of 0.02, zero biases, as in minGPT."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.pos_emb_d, std=0.02)


class DepthSteps(Protocol):
    """Scores the codes of a position one after another, with the keys and values of those before."""

    def read_hidden(self, hidden: Tensor) -> Tensor:
        """`[R, H]` -> what depth 0 reads, without the embedding of the depth: `[R, E]`."""
        ...

    def read_codes(self, total: Tensor) -> Tensor:
        """Sums of embeddings of codes `[R, C]` -> what the next depth reads: `[R, E]`."""
        ...

    def logits(self, x: Tensor, depth: int) -> Tensor:
        """`[R, E]` -> `[R, K]`. Depths come in order."""
        ...


class ModuleDepthSteps:
    """`DepthSteps` with the modules themselves, on any device.

    Args:
        transformer: its weights are used where they are.
        like: `[R, …]`, a tensor for as many rows, in the dtype of the model.
    """

    def __init__(self, transformer: DepthTransformer, like: Tensor):
        self._transformer = transformer
        config = transformer.config
        rows = like.new_empty(len(like), config.embed_dim)
        self._caches = [block.attn.empty_cache(rows, config.code_depth) for block in transformer.blocks]

    def read_hidden(self, hidden: Tensor) -> Tensor:
        return self._transformer.in_mlp_2(hidden)

    def read_codes(self, total: Tensor) -> Tensor:
        return self._transformer.in_mlp_1(total)

    def logits(self, x: Tensor, depth: int) -> Tensor:
        x = x[:, None]
        for block, cache in zip(self._transformer.blocks, self._caches, strict=True):
            x = block.step(x, cache, depth)
        return self._transformer.classifier_mlp(x[:, 0])


def depth_steps(transformer: DepthTransformer, hidden: Tensor) -> DepthSteps:
    """Return the fastest steps for rows with the hidden states `[R, H]`. They serve one position."""
    from vila_core.generation.fused_depth import FusedDepthSteps, can_fuse

    return (FusedDepthSteps if can_fuse(transformer, hidden) else ModuleDepthSteps)(transformer, hidden)


class DepthTransformerHead:
    """Chooses, embeds and decodes codes of a model: see `vila_core.generation.heads.TrainableHead`.

    Not a module: its parts belong to the model already.
    """

    def __init__(self, transformer: DepthTransformer, tower: "RQSiglipTower", projector: "Projector"):
        self.transformer = transformer
        self.tower = tower
        self.projector = projector

    @cached_property
    def kinds(self) -> Mapping[str, OutputKind]:
        """An image, and a video if the model has a token that starts one."""
        config = self.transformer.config
        positions = config.grid[0] * config.grid[1]
        knows = config.knows_empty_prompt
        kinds = {"image": OutputKind(config.image_start_token, positions, 1, knows, config.image_end_token)}
        if config.video_start_token is not None:
            frames = config.video_frames
            kinds["video"] = OutputKind(
                config.video_start_token, frames * positions, frames, knows, config.video_end_token
            )
        return kinds

    @property
    def codes_per_position(self) -> int:
        """D."""
        return self.transformer.config.code_depth

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.transformer.config.codebook_size

    def choose(self, hidden: Tensor, pick: Pick) -> Tensor:
        """`[R, H]` -> codes int64 `[R, D]`, which `pick(depth, logits [R, K])` chooses. Keys and values are cached."""
        transformer = self.transformer
        steps = depth_steps(transformer, hidden)
        x = steps.read_hidden(hidden)  # [R, E]
        chosen: list[Tensor] = []
        total: Tensor | None = None
        for depth in range(self.codes_per_position):
            codes = pick(depth, steps.logits(x + transformer.pos_emb_d[:, depth], depth))
            chosen.append(codes)
            if depth + 1 < self.codes_per_position:
                embedding = self.tower.quantizer.embed_one(codes, depth)
                total = embedding if total is None else total + embedding
                x = steps.read_codes(total)
        return torch.stack(chosen, dim=-1)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes `[..., D]` -> the language model's next input, `[..., H]`."""
        return self.projector(self.tower.embed_codes(codes.flatten(0, -2))[:, None])[:, 0].unflatten(
            0, codes.shape[:-1]
        )

    @torch.no_grad()
    def codes(self, pixels: Tensor) -> Tensor:
        """`[N, 3, S, S]` -> the tower's codes, int64 `[N, P, D]`."""
        return self.tower.encode(pixels).flatten(1, 2)

    def logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Hidden states `[T, H]` and the true codes `[T, D]` -> scores `[T, D, K]`. Embeddings get no gradient."""
        return self.transformer(hidden, self.tower.cumulative(codes).detach())

    def decode(self, codes: Tensor, kind: str) -> Tensor:
        """Codes `[P, D]` of one output -> uint8 pixels `[frames, S, S, 3]`, rounded."""
        from vila_core.towers.rq_siglip.decoder import to_bytes

        frames = self.kinds[kind].frames
        return to_bytes(self.tower.decode(codes.view(frames, *self.tower.grid, self.codes_per_position)))
