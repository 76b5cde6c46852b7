"""One decoder for Qwen2, Qwen2.5, Qwen3, Llama 1-3, Mistral and Yi: pre-norm blocks, rotary positions, grouped queries.

B batch, T new tokens, D width, V vocabulary,
H query heads, H_kv key/value heads, G = H / H_kv queries that share one, D_h head width

Modules have the names that transformers uses, so its checkpoints fit without renaming.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from vila_core.config import DecoderConfig
from vila_core.language import DecodeStep, fused_prefill
from vila_core.language.attention import AttentionFunction, AttentionInputs, attention_inputs, sdpa
from vila_core.language.cache import Cache, KVCache, SlotCache
from vila_core.language.packed import PackedSequences, packed_rotation
from vila_core.language.rope import Rotary, rotate


class Decoder(nn.Module):
    """The language model: embeddings in, hidden states and logits out (see `LanguageModel`).

    Without a cache it is plain causal attention, as in training.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.model = DecoderModel(config)
        # A tied model has no lm_head in its state dict; the embedding serves as the head.
        self.lm_head = (
            None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self._step: DecodeStep | None = None

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids `[B, T]` -> embeddings `[B, T, D]`."""
        return self.model.embed_tokens(ids)

    def forward(
        self,
        embeds: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        cache: Cache | None = None,
        lengths: torch.Tensor | None = None,
        packed: PackedSequences | None = None,
    ) -> torch.Tensor:
        """Embeddings `[B, T, D]` -> hidden states after the final norm `[B, T, D]`.

        With `packed`, the one row `[1, T, D]` holds several sequences, none of which sees another.
        """
        assert cache is None or isinstance(cache, SlotCache), "the decoder fills caches of its own new_cache"
        return self.model(embeds, positions, cache, lengths, packed)

    def use_step(self, step: DecodeStep) -> None:
        """Let `step` read new tokens from now on, instead of `forward`."""
        self._step = step

    @property
    def has_own_step(self) -> bool:
        """Whether new tokens are read by a step of `use_step`, which rounds otherwise than `forward`."""
        return self._step is not None

    def decode_step(self, embeds: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        """One new token of each row, `[B, 1, D]` -> hidden states `[B, 1, D]`."""
        if self._step is not None:
            return self._step(embeds, positions, cache)
        return self(embeds, positions=positions, cache=cache)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., D]` -> scores `[..., V]`."""
        if self.lm_head is None:
            return F.linear(hidden, self.model.embed_tokens.weight)
        logits = self.lm_head(hidden)
        missing = self.config.vocab_size - logits.shape[-1]
        if missing <= 0:
            return logits
        # A quantized head keeps the rows of its checkpoint. The rows of tokens that the checkpoint lacks are the mean
        # of its rows (see `load_weights`), so their scores are the mean of its scores.
        mean = logits.mean(-1, keepdim=True, dtype=torch.float32).to(logits.dtype)
        return torch.cat([logits, mean.expand(*mean.shape[:-1], missing)], dim=-1)

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Return an empty cache on the model's device, in its dtype."""
        weight = self.model.embed_tokens.weight
        return KVCache.allocate(self.config, batch_size, max_length, device=weight.device, dtype=weight.dtype)

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02, generator: torch.Generator | None = None) -> None:
        """Initialize the weights for training from scratch: normal with `std`, norms 1, biases 0.

        The two projections that write to the residual stream get `std / sqrt(2 L)` (Radford et al. 2019, section 2.3),
        so that its variance does not grow with the number of layers L.
        """
        residual_std = std / (2 * self.config.num_hidden_layers) ** 0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(
                    0.0, residual_std if name.endswith(("o_proj", "down_proj")) else std, generator=generator
                )
                if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, std, generator=generator)
            elif isinstance(module, RMSNorm):
                module.weight.fill_(1.0)


class DecoderModel(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config)
        self.attention: AttentionFunction = sdpa

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor | None,
        cache: SlotCache | None,
        lengths: torch.Tensor | None,
        packed: PackedSequences | None = None,
    ) -> torch.Tensor:
        if packed is None:
            inputs = attention_inputs(x.shape[1], positions, cache, self.config.sliding_window, x.device)
            assert inputs.positions is not None
            rotation = self.rotary(inputs.positions, x.dtype, lengths)
        else:
            assert positions is cache is None, "a packed row starts all its sequences"
            inputs = AttentionInputs(packed=packed, window=self.config.sliding_window)
            rotation = packed_rotation(self.rotary, packed, x.dtype)
        if fused_prefill.takes(self, x):
            return fused_prefill.run(self, x, rotation, inputs, self.attention)
        for layer in self.layers:
            x = layer(x, rotation, inputs, self.attention)
        return self.norm(x)


class Block(nn.Module):
    """Attention and MLP, each behind a norm and around a residual."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        inputs: AttentionInputs,
        attention: AttentionFunction = sdpa,
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, inputs, attention)
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; Qwen3 also normalizes each head's queries and keys."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        query_width, key_width = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=config.attention_out_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        inputs: AttentionInputs,
        attention: AttentionFunction,
    ) -> torch.Tensor:
        q, k, v = self.unrotated(x)
        return self.merge(attention(rotate(q, *rotation), rotate(k, *rotation), v, inputs, self.layer))

    def unrotated(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`[B, T, D]` -> queries `[B, H, T, D_h]`, keys and values `[B, H_kv, T, D_h]`, without positions."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (y.view(heads) for y in self.project(x))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def project(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """`[B, T, D]` -> queries, keys and values of all heads, `[B, T, H D_h]` and twice `[B, T, H_kv D_h]`."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def merge(self, out: torch.Tensor) -> torch.Tensor:
        """What each head found, `[B, H, T, D_h]` -> `[B, T, D]`."""
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_and_up(x)
        return self.down_proj(F.silu(gate) * up)

    def gate_and_up(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return both inner projections, `[B, T, N]` each for N inner units."""
        return self.gate_proj(x), self.up_proj(x)


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32, cast back before the weight is applied (the order that transformers uses)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * F.rms_norm(x, x.shape[-1:], None, self.eps)
