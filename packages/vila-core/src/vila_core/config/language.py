"""Language models."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vila_core import size_limits
from vila_core.config.base import Config, Epsilon, Heads, InnerWidth, Layers, Positions, RopeFactor, Width


class RopeScaling(Config):
    """Rotary scaling of Llama 3 (`llama3`), positional interpolation (`linear`), NTK (`dynamic`) and YaRN (`yarn`)."""

    rope_type: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: RopeFactor
    original_max_position_embeddings: Positions | None = None
    low_freq_factor: RopeFactor = 1.0
    high_freq_factor: RopeFactor = 4.0
    beta_fast: RopeFactor = 32.0
    beta_slow: RopeFactor = 1.0
    attention_factor: RopeFactor | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "RopeScaling":
        if self.rope_type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(f"low_freq_factor {self.low_freq_factor} is not below {self.high_freq_factor}")
        if self.rope_type == "yarn" and self.beta_slow >= self.beta_fast:
            raise ValueError(f"beta_slow {self.beta_slow} is not below beta_fast {self.beta_fast}")
        return self


class LanguageModelConfig(Config):
    """The fields that every language model has. `max_length` is the context in tokens, including media."""

    name: str
    hidden_size: Width
    vocab_size: Annotated[int, Field(gt=0, le=size_limits.MAX_VOCABULARY)]
    max_length: Positions


class DecoderConfig(LanguageModelConfig):
    """The native decoder: Qwen2, Qwen2.5, Qwen3, Llama 1-3, Mistral, Yi.

    `architecture` is the model type in transformers.
    """

    name: Literal["decoder"] = "decoder"
    architecture: Literal["qwen2", "qwen3", "llama", "mistral"]
    intermediate_size: InnerWidth
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    head_dim: Annotated[int, Field(gt=0, le=size_limits.MAX_HEAD_DIM, multiple_of=2)]
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Annotated[float, Field(gt=1, le=size_limits.MAX_ROPE_THETA)] = 10000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: Positions
    sliding_window: Positions | None = None
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> "DecoderConfig":
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.rope_scaling is not None and self.rope_scaling.rope_type == "dynamic" and self.head_dim == 2:
            raise ValueError("dynamic rotary scaling needs a head_dim of more than 2")
        return self


class TransformersConfig(LanguageModelConfig):
    """Any `AutoModelForCausalLM` of transformers; `hf_config` is its config as a dict. No code is loaded from it."""

    name: Literal["transformers"] = "transformers"
    hf_config: dict[str, object]
