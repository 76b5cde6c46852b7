"""Tiny random checkpoints whose language model only transformers has."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

SIZES: dict[str, object] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 300,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

FOREIGN: dict[str, dict[str, object]] = {
    "gemma": SIZES | {"head_dim": 8},
    "gemma2": SIZES | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64},
    "gemma3_text": SIZES | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64},
    "phi3": SIZES | {"original_max_position_embeddings": 512},
    "phi": SIZES,
    "mixtral": SIZES | {"num_local_experts": 4},
    "qwen2_moe": SIZES
    | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    "qwen3_moe": SIZES | {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8, "num_experts_per_tok": 2},
    "granite": SIZES,
    "olmo2": SIZES,
    "cohere": SIZES | {"logit_scale": 0.3},
    "stablelm": SIZES,
    "starcoder2": SIZES,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "vocab_size": 300, "hidden_size": 32},
}
"""Config by model type; all are 32 wide with 300 tokens, as the other tiny checkpoints are."""


def replace_language_model(folder: Path, model_type: str) -> Path:
    """Give the tiny checkpoint in `folder` a random language model of another type, and return the folder."""
    settings = {
        key: value for key, value in FOREIGN[model_type].items() if model_type != "gpt2" or key != "hidden_size"
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    tied = bool(model.config.tie_word_embeddings)
    tensors = {
        name: tensor.contiguous().clone() * 0.1
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(tensors, folder / "llm" / "model.safetensors", {"format": "pt"})
    config = {"model_type": model_type, "model_max_length": 256, **FOREIGN[model_type]}
    (folder / "llm" / "config.json").write_text(json.dumps(config))
    return folder
