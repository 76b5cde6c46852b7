"""The language model's config: transformers' JSON <-> `DecoderConfig`, or `TransformersConfig` for other models."""

from typing import cast

from pydantic import ValidationError

from vila_core.checkpoint.configs.plausible import check_sizes
from vila_core.checkpoint.json_files import Section
from vila_core.config import DecoderConfig, LanguageModelConfig, RopeScaling, TransformersConfig
from vila_core.errors import CheckpointError, first_problem

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
"""transformers model type -> class, for the models that the native decoder supports."""

_ROPE_TYPES = ("linear", "dynamic", "llama3", "yarn")
_OTHER_ROPE_TYPES = ("longrope", "proportional")
"""Those that only transformers has."""
_LAYER_TYPES = ("full_attention", "sliding_attention")
_UNSUPPORTED_YARN_KEYS = ("mscale", "mscale_all_dim")


def read_language_config(raw: Section, max_length: int) -> LanguageModelConfig:
    """Translate the JSON of `llm/config.json`; `max_length` is the tokenizer's context in tokens.

    Raises:
        CheckpointError: a value is missing, of the wrong type or out of range.
    """
    check_sizes(raw)
    _check_rope_type(raw)
    _check_layer_types(raw)
    architecture = raw.string("model_type")
    if architecture in ARCHITECTURES and _is_native(raw):
        return _decoder_config(raw, architecture, max_length)
    hidden_size, vocab_size = raw.integer("hidden_size"), raw.integer("vocab_size")
    # How the weights are stored is not part of the architecture.
    hf_config = {key: value for key, value in raw.values.items() if key != "quantization_config"}
    return TransformersConfig(
        hidden_size=hidden_size, vocab_size=vocab_size, max_length=max_length, hf_config=hf_config
    )


def _is_native(raw: Section) -> bool:
    rope = _rope_section(raw)
    rope_type = _rope_type(rope) if rope else "default"
    plain_rope = rope_type == "default" or (
        rope_type in _ROPE_TYPES and not (rope and any(key in rope for key in _UNSUPPORTED_YARN_KEYS))
    )
    return plain_rope and raw.string("hidden_act", "silu") in ("silu", "swish") and _slides_alike(raw)


def _decoder_config(raw: Section, architecture: str, max_length: int) -> DecoderConfig:
    heads, hidden_size = raw.integer("num_attention_heads"), raw.integer("hidden_size")
    default_head_dim = 128 if architecture == "qwen3" else max(hidden_size // heads, 1)
    bias = raw.boolean("attention_bias", False) and architecture in ("llama", "qwen3")
    rope = _rope_section(raw)
    theta = rope.number("rope_theta", raw.number("rope_theta", 10000.0)) if rope else raw.number("rope_theta", 10000.0)
    try:
        return DecoderConfig.model_validate(
            {
                "architecture": architecture,
                "hidden_size": hidden_size,
                "vocab_size": raw.integer("vocab_size"),
                "max_length": max_length,
                "intermediate_size": raw.integer("intermediate_size"),
                "num_hidden_layers": raw.integer("num_hidden_layers"),
                "num_attention_heads": heads,
                "num_key_value_heads": raw.integer("num_key_value_heads", heads),
                "head_dim": raw.integer("head_dim", default_head_dim),
                "rms_norm_eps": raw.number("rms_norm_eps", 1e-6, minimum=0.0),
                "rope_theta": theta,
                "rope_scaling": _rope_scaling(rope) if rope else None,
                "max_position_embeddings": raw.integer("max_position_embeddings"),
                "sliding_window": _sliding_window(raw, architecture),
                "attention_bias": bias or architecture == "qwen2",
                "attention_out_bias": bias,
                "mlp_bias": raw.boolean("mlp_bias", False) and architecture == "llama",
                "qk_norm": architecture == "qwen3",
                "tie_word_embeddings": raw.boolean("tie_word_embeddings", False),
            }
        )
    except ValidationError as error:
        raise CheckpointError(
            f"{raw.source} does not describe a language model: {first_problem(error).with_value}"
        ) from None


def _rope_section(raw: Section) -> Section | None:
    """Transformers writes `rope_scaling` up to version 4, and `rope_parameters` (with `rope_theta`) from 5 on."""
    for key in ("rope_parameters", "rope_scaling"):
        if key in raw:
            return raw.section(key)
    return None


def _rope_type(rope: Section) -> str:
    return rope.string("rope_type", rope.string("type", "default"))


def _check_rope_type(raw: Section) -> None:
    """Check the rotary scaling that a language model of a native architecture states; transformers checks others.

    Raises:
        CheckpointError: an unknown type, or a factor that is not a positive number.
    """
    rope = _rope_section(raw)
    if rope is None:
        return
    nested = [key for key, value in rope.values.items() if isinstance(value, dict)]
    for section in [rope.section(key) for key in nested] or [rope]:
        if raw.values.get("model_type") in ARCHITECTURES:
            key = "rope_type" if "rope_type" in section else "type"
            section.choice(key, ("default", *_ROPE_TYPES, *_OTHER_ROPE_TYPES), "default")
        for key in ("factor", "rope_theta", "original_max_position_embeddings"):
            if key in section and section.number(key) <= 0:
                raise CheckpointError(f"{section.source}: '{key}' is {section.number(key):g}; expected more than 0.")


def _rope_scaling(rope: Section) -> RopeScaling | None:
    rope_type = _rope_type(rope)
    if rope_type == "default":
        return None
    original = "original_max_position_embeddings"
    try:
        return RopeScaling.model_validate(
            {
                "rope_type": rope_type,
                "factor": rope.number("factor"),
                original: rope.integer(original) if original in rope else None,
                "low_freq_factor": rope.number("low_freq_factor", 1.0),
                "high_freq_factor": rope.number("high_freq_factor", 4.0),
                "beta_fast": rope.number("beta_fast", 32.0),
                "beta_slow": rope.number("beta_slow", 1.0),
                "attention_factor": rope.number("attention_factor") if "attention_factor" in rope else None,
            }
        )
    except ValidationError as error:
        raise CheckpointError(f"{rope.source} is not a rotary scaling: {first_problem(error).with_value}") from None


def _slides_alike(raw: Section) -> bool:
    """Whether all layers use the same window, since the native decoder has one for the whole model."""
    layer_types = raw.values.get("layer_types")
    if isinstance(layer_types, list):
        return len(set(map(str, layer_types))) <= 1  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if raw.string("model_type") == "mistral" or not raw.boolean("use_sliding_window", False):
        return True
    layers = raw.integer("num_hidden_layers")
    full = raw.integer("max_window_layers", 28, minimum=0)  # layers below this index see everything
    return full == 0 or full >= layers


def _check_layer_types(raw: Section) -> None:
    """Check `layer_types` against the other keys about layers and windows.

    Raises:
        CheckpointError: it is no list of strings, has another length than the model has layers, or names windows that
            `use_sliding_window` or a missing `sliding_window` rules out.
    """
    types = raw.values.get("layer_types")
    if types is None:
        return
    if not isinstance(types, list) or not all(isinstance(item, str) for item in cast("list[object]", types)):
        raise CheckpointError(f"{raw.source}: 'layer_types' is {str(types)[:100]}; expected a list of strings.")
    names = cast("list[str]", types)
    layers = raw.integer("num_hidden_layers", len(names))
    if len(names) != layers:
        raise CheckpointError(f"{raw.source}: 'layer_types' has {len(names)} entries, but there are {layers} layers.")
    if raw.values.get("model_type") not in ARCHITECTURES:
        return
    if unknown := sorted(set(names) - set(_LAYER_TYPES)):
        raise CheckpointError(
            f"{raw.source}: 'layer_types' has {unknown[0][:100]!r}; expected {' or '.join(_LAYER_TYPES)}."
        )
    if "sliding_attention" in names:
        if raw.values.get("use_sliding_window") is False:
            raise CheckpointError(
                f"{raw.source}: 'layer_types' has 'sliding_attention', but 'use_sliding_window' is false. "
                "Make them agree."
            )
        if "sliding_window" not in raw:
            raise CheckpointError(
                f"{raw.source}: 'layer_types' has 'sliding_attention', but there is no 'sliding_window'."
            )


def _sliding_window(raw: Section, architecture: str) -> int | None:
    if architecture == "mistral":  # null: no window; absent: transformers' default
        return (
            raw.integer("sliding_window")
            if "sliding_window" in raw
            else (None if "sliding_window" in raw.values else 4096)
        )
    layer_types = raw.values.get("layer_types")
    if isinstance(layer_types, list):
        return raw.integer("sliding_window") if "sliding_attention" in layer_types else None
    if architecture == "llama" or not raw.boolean("use_sliding_window", False) or "sliding_window" not in raw:
        return None
    full = raw.integer("max_window_layers", 28, minimum=0)
    return raw.integer("sliding_window") if full < raw.integer("num_hidden_layers") else None


def write_language_config(config: LanguageModelConfig, dtype: str) -> dict[str, object]:
    """Return transformers' JSON for `config`; `read_language_config` returns the same config from it.

    Raises:
        CheckpointError: the language model is a plugin's own and has no transformers config.
    """
    if isinstance(config, TransformersConfig):
        return dict(config.hf_config)
    if not isinstance(config, DecoderConfig):
        raise CheckpointError(
            f"A language model of kind '{config.name}' cannot be written: only 'decoder' and 'transformers' can."
        )
    raw: dict[str, object] = {
        "architectures": [ARCHITECTURES[config.architecture]],
        "model_type": config.architecture,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_max_length": config.max_length,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling.model_dump(exclude_none=True) if config.rope_scaling else None,
        "sliding_window": config.sliding_window,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
    }
    if config.architecture in ("llama", "qwen3"):
        raw["attention_bias"] = config.attention_bias
    if config.architecture == "llama":
        raw["mlp_bias"] = config.mlp_bias
    if config.architecture in ("qwen2", "qwen3") and config.sliding_window is not None:
        raw |= {"use_sliding_window": True, "max_window_layers": 0}
    elif config.architecture in ("qwen2", "qwen3"):
        raw |= {"use_sliding_window": False, "max_window_layers": config.num_hidden_layers}
    return raw
