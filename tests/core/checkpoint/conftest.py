"""Tiny random checkpoints in the reference implementation's format. Names and shapes do not depend on vila-core."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

Tensors = dict[str, torch.Tensor]
MakeCheckpoint = Callable[..., Path]

HIDDEN, HEADS, KV_HEADS, INNER, LAYERS, VOCAB = 32, 4, 2, 48, 2, 300
TOWER, TOWER_HEADS, TOWER_INNER, TOWER_LAYERS, PATCH = 24, 2, 40, 3, 14

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Random:
    """Draws random tensors of one dtype from one seed."""

    def __init__(self, seed: int, dtype: torch.dtype):
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.dtype) * 0.1

    def linear(self, name: str, rows: int, columns: int, bias: bool = True) -> Tensors:
        return {f"{name}.weight": self(rows, columns)} | ({f"{name}.bias": self(rows)} if bias else {})

    def norm(self, name: str, width: int) -> Tensors:
        return {f"{name}.weight": 1 + self(width), f"{name}.bias": self(width)}


def decoder_tensors(draw: Random, *, qkv_bias: bool, tied: bool, vocab: int = VOCAB) -> Tensors:
    head = HIDDEN // HEADS
    tensors: Tensors = {"model.embed_tokens.weight": draw(vocab, HIDDEN), "model.norm.weight": 1 + draw(HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors |= draw.linear(f"{at}.self_attn.q_proj", HIDDEN, HIDDEN, qkv_bias)
        tensors |= draw.linear(f"{at}.self_attn.k_proj", KV_HEADS * head, HIDDEN, qkv_bias)
        tensors |= draw.linear(f"{at}.self_attn.v_proj", KV_HEADS * head, HIDDEN, qkv_bias)
        tensors |= draw.linear(f"{at}.self_attn.o_proj", HIDDEN, HIDDEN, False)
        for name in ("gate_proj", "up_proj"):
            tensors |= draw.linear(f"{at}.mlp.{name}", INNER, HIDDEN, False)
        tensors |= draw.linear(f"{at}.mlp.down_proj", HIDDEN, INNER, False)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = 1 + draw(HIDDEN)
    return tensors if tied else tensors | draw.linear("lm_head", vocab, HIDDEN, False)


def siglip_tensors(draw: Random, image_size: int, *, clip: bool = False) -> Tensors:
    positions = (image_size // PATCH) ** 2 + clip
    at = "vision_model.embeddings"
    tensors: Tensors = {
        f"{at}.patch_embedding.weight": draw(TOWER, 3, PATCH, PATCH),
        f"{at}.position_embedding.weight": draw(positions, TOWER),
    }
    if clip:
        tensors |= {f"{at}.class_embedding": draw(TOWER)} | draw.norm("vision_model.pre_layrnorm", TOWER)
    else:
        tensors[f"{at}.patch_embedding.bias"] = draw(TOWER)
    for layer in range(TOWER_LAYERS):
        at = f"vision_model.encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= draw.linear(f"{at}.self_attn.{name}", TOWER, TOWER)
        tensors |= draw.linear(f"{at}.mlp.fc1", TOWER_INNER, TOWER) | draw.linear(f"{at}.mlp.fc2", TOWER, TOWER_INNER)
        tensors |= draw.norm(f"{at}.layer_norm1", TOWER) | draw.norm(f"{at}.layer_norm2", TOWER)
    return tensors | draw.norm("vision_model.post_layernorm", TOWER)


def intern_tensors(draw: Random, image_size: int) -> Tensors:
    tensors: Tensors = {
        "embeddings.class_embedding": draw(1, 1, TOWER),
        "embeddings.position_embedding": draw(1, (image_size // PATCH) ** 2 + 1, TOWER),
        "embeddings.patch_embedding.weight": draw(TOWER, 3, PATCH, PATCH),
        "embeddings.patch_embedding.bias": draw(TOWER),
    }
    for layer in range(TOWER_LAYERS):
        at = f"encoder.layers.{layer}"
        tensors |= {f"{at}.{name}": 1 + draw(TOWER) for name in ("norm1.weight", "norm2.weight", "ls1", "ls2")}
        tensors |= {f"{at}.attn.{name}.weight": 1 + draw(TOWER) for name in ("q_norm", "k_norm")}
        tensors |= draw.linear(f"{at}.attn.qkv", 3 * TOWER, TOWER, False) | draw.linear(f"{at}.attn.proj", TOWER, TOWER)
        tensors |= draw.linear(f"{at}.mlp.fc1", TOWER_INNER, TOWER) | draw.linear(f"{at}.mlp.fc2", TOWER, TOWER_INNER)
    return tensors


def projector_tensors(draw: Random, kind: str, width: int) -> Tensors:
    if kind == "mlp_downsample_3x3_fix":
        tensors = (
            draw.norm("layers.1", 9 * width)
            | draw.linear("layers.2", 3 * width, 9 * width)
            | draw.norm("layers.4", 3 * width)
        )
        return tensors | draw.linear("layers.5", HIDDEN, 3 * width) | draw.linear("layers.7", HIDDEN, HIDDEN)
    if kind == "mlp2x_gelu":
        return draw.linear("layers.0", HIDDEN, width) | draw.linear("layers.2", HIDDEN, HIDDEN)
    return (
        draw.norm("layers.1", 4 * width)
        | draw.linear("layers.2", HIDDEN, 4 * width)
        | draw.linear("layers.4", HIDDEN, HIDDEN)
    )


def language_config(model_type: str, *, tied: bool, vocab: int) -> dict[str, object]:
    config: dict[str, object] = {
        "architectures": ["Qwen2ForCausalLM" if model_type == "qwen2" else "LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INNER, "max_position_embeddings": 512, "model_max_length": 256,
        "model_type": model_type, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": vocab,
    }  # fmt: skip
    return config | (
        {"sliding_window": 512, "use_sliding_window": False, "max_window_layers": LAYERS}
        if model_type == "qwen2"
        else {}
    )


def tower_files(family: str, image_size: int) -> tuple[dict[str, object], dict[str, object]]:
    """Return config.json and preprocessor_config.json."""
    model_type = {"siglip": "siglip_vision_model", "clip": "clip_vision_model", "intern": "intern_vit_6b"}[family]
    config: dict[str, object] = {
        "architectures": [family], "hidden_size": TOWER, "image_size": image_size, "intermediate_size": TOWER_INNER,
        "model_type": model_type, "num_attention_heads": TOWER_HEADS, "num_channels": 3,
        "num_hidden_layers": TOWER_LAYERS,
        "patch_size": PATCH,
    }  # fmt: skip
    steps: dict[str, object] = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    square = {"height": image_size, "width": image_size}
    if family == "siglip":
        config |= {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": False}
        return config, steps | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": square}
    if family == "clip":
        config |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
        statistics = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
        return config, steps | statistics | {
            "crop_size": square,
            "do_center_crop": True,
            "size": {"shortest_edge": image_size},
        }
    config |= {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": False, "qk_normalization": True}
    return config, {"image_processor_type": "InternVisionPreprocessor", "resize_size": 448}


def write_tokenizer(folder: Path, *, qwen: bool) -> None:
    """Write a byte-level BPE tokenizer. Only the Qwen variant has media tokens and a chat template."""
    special = (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<vila/sentinel>", "<image>", "<vila/video>"]
        if qwen
        else ["<unk>", "<s>", "</s>"]
    )
    tokenizer = Tokenizer(models.BPE(unk_token=None if qwen else "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(["a small picture of a cat", "what is in this picture?"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 256,
        "padding_side": "right",
    }
    names = (
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        if qwen
        else {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    )
    write_json(folder / "tokenizer_config.json", config | names | ({"chat_template": CHATML} if qwen else {}))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file. The value `...` removes a key."""
    content = json.loads(path.read_text()) | changes
    write_json(path, {key: value for key, value in content.items() if value is not ...})


KINDS = {
    # family of the tower, model type, projector, root config
    "nvila_lite": ("siglip", "qwen2", "mlp_downsample_3x3_fix", {"image_aspect_ratio": "dynamic"}),
    "nvila": (
        "siglip", "qwen2", "mlp_downsample_2x2_fix",
        {"image_aspect_ratio": "dynamic_s2", "dynamic_s2": True, "s2_scales": "56,112,168", "s2_max_split_size": 56,
         "s2_resize_output_to_scale_idx": -1},
    ),
    "clip_llama": ("clip", "llama", "mlp2x_gelu", {"mm_vision_select_feature": "patch", "version": "vicuna_v1"}),
    "intern_llama": (
        "intern", "llama", "mlp_downsample",
        {"mm_vision_select_layer": -1, "mm_vision_select_feature": "patch", "version": "hermes-2"},
    ),
}  # fmt: skip


def build_checkpoint(
    folder: Path, kind: str = "nvila_lite", *, dtype: torch.dtype = torch.bfloat16, tied: bool = False, seed: int = 0
) -> Path:
    """Write a checkpoint of one of `KINDS` to `folder`."""
    family, model_type, projector, changes = KINDS[kind]
    draw, image_size = Random(seed, dtype), 56
    towers = {
        "siglip": siglip_tensors,
        "intern": intern_tensors,
        "clip": lambda draw, size: siglip_tensors(draw, size, clip=True),
    }
    scales = 3 if changes.get("dynamic_s2") else 1
    tower_config, preprocessor = tower_files(family, image_size)
    parts = {
        "llm": (
            language_config(model_type, tied=tied, vocab=VOCAB),
            decoder_tensors(draw, qkv_bias=model_type == "qwen2", tied=tied),
        ),
        "vision_tower": (tower_config, towers[family](draw, image_size)),
        "mm_projector": (
            {"mm_projector_type": projector, "model_type": "v2l_projector"},
            projector_tensors(draw, projector, scales * TOWER),
        ),
    }
    for part, (config, tensors) in parts.items():
        (folder / part).mkdir(parents=True)
        write_json(folder / part / "config.json", config)
        save_file(tensors, folder / part / "model.safetensors", {"format": "pt"})
    write_json(folder / "vision_tower" / "preprocessor_config.json", preprocessor)
    write_tokenizer(folder / "llm", qwen=model_type == "qwen2")
    root: dict[str, object] = {
        "architectures": ["LlavaLlamaModel"], "model_type": "llava_llama", "llm_cfg": {}, "vision_tower_cfg": {},
        "mm_projector_cfg": {},
        "hidden_size": HIDDEN, "mm_hidden_size": scales * TOWER, "image_aspect_ratio": "resize",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "cls_patch", "num_video_frames": 8, "s2": False, "dynamic_s2": False,
        "s2_scales": "336,672,1008",
        "tune_language_model": True, "fabit": "E4M3", "resume_path": "/nowhere", "vision_resolution": -1,
        "image_encoder": {"_target_": "llava.model.encoders.BasicImageEncoder"},
        "video_encoder": '{"_target_": "llava.model.encoders.BasicVideoEncoder"}',
    }  # fmt: skip
    write_json(folder / "config.json", root | changes)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags:\n- tiny\n---\n\n# A tiny model\n")
    return folder


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Return a version of `build_checkpoint` that writes to a new folder on each call."""
    made = 0

    def make(
        kind: str = "nvila_lite", *, dtype: torch.dtype = torch.bfloat16, tied: bool = False, seed: int = 0
    ) -> Path:
        nonlocal made
        made += 1
        return build_checkpoint(tmp_path / f"checkpoint-{made}", kind, dtype=dtype, tied=tied, seed=seed)

    return make


@pytest.fixture
def edit() -> Callable[..., None]:
    """Return `edit_json`."""
    return edit_json
