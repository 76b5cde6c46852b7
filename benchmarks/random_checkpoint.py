"""Write a checkpoint of random weights in the `vila` layout, as large as a released model, to measure loading and speed on.

    python benchmarks/random_checkpoint.py nvila-8b OUT [--device cuda]

The tokenizer is that of the embedded model: speed does not depend on which tokens are read.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from vila_core.checkpoint import open_checkpoint
from vila_core.config import DecoderConfig, PixelConfig, PreprocessConfig, ProjectorConfig, S2Config, SiglipConfig, VilaConfig
from vila_core.embedded import embedded_model
from vila_core.model import VilaModel
from vila_core.tokenizer import Tokenizer

SHARD_BYTES = 4 * 1024**3

SIGLIP_SO400M_448 = SiglipConfig(
    image_size=448, patch_size=14, hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16
)
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
QWEN2 = {
    "nvila-8b": dict(zip(SIZES, (3584, 18944, 28, 28, 4), strict=True)),
    "nvila-0.5b": dict(zip(SIZES, (896, 4864, 24, 14, 2), strict=True)),
}


def model_config(name: str) -> VilaConfig:
    """Return the configuration of an NVILA model: SigLIP so400m at 448 pixels, dynamic S2, a Qwen2 decoder."""
    shape = QWEN2[name]
    scales = (448, 896, 1344)
    decoder = DecoderConfig(
        architecture="qwen2",
        **shape,
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        vocab_size=152064,
        max_length=8192,
        max_position_embeddings=32768,
        rope_theta=1e6,
        attention_bias=True,
    )
    return VilaConfig(
        vision_tower=SIGLIP_SO400M_448,
        dynamic_s2=S2Config(scales=scales, max_split_size=448, resize_output_to_scale_idx=-1),
        projector=ProjectorConfig(name="mlp_downsample_2x2_fix", in_size=3 * 1152, out_size=decoder.hidden_size),
        language_model=decoder,
        pixels=PixelConfig(size=448),
        preprocess=PreprocessConfig(image_aspect_ratio="dynamic_s2", s2_scales=scales),
        dtype="bfloat16",
    )


def write_random_checkpoint(name: str, folder: Path, device: str) -> None:
    """Write the model called `name` to `folder`, bf16, weights normal with standard deviation 0.02, seed 0."""
    tokenizer_folder = open_checkpoint(embedded_model()).tokenizer_path
    config = model_config(name)
    with torch.device("meta"):
        network = VilaModel(config, Tokenizer.from_folder(tokenizer_folder))
    generator = torch.Generator(device).manual_seed(0)
    parts: dict[str, list[dict[str, torch.Tensor]]] = {"llm": [{}], "vision_tower": [{}], "mm_projector": [{}]}
    (folder / "llm").mkdir(parents=True)
    for part in ("vision_tower", "mm_projector"):
        (folder / part).mkdir()
    for key, parameter in network.state_dict().items():
        part, tensor_name = key.split(".", 1)
        tensor = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator)
        tensor = tensor + 1 if parameter.ndim == 1 and tensor_name.endswith("weight") else tensor  # norms are about one
        shards = parts[part]
        shards[-1][tensor_name] = tensor.cpu()
        if sum(one.nbytes for one in shards[-1].values()) > SHARD_BYTES:
            _save(folder / part, shards)
            shards.append({})
    for part, shards in parts.items():
        _save(folder / part, shards)
        _index(folder / part, shards)
    _write_configs(config, folder)
    for file in tokenizer_folder.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copy(file, folder / "llm")


def _save(folder: Path, shards: list[dict[str, torch.Tensor]]) -> None:
    """Write the newest shard and let go of its tensors."""
    save_file(shards[-1], folder / f"model-{len(shards):05}.safetensors")
    shards[-1] = {name: tensor.to("meta") for name, tensor in shards[-1].items()}


def _index(folder: Path, shards: list[dict[str, torch.Tensor]]) -> None:
    weight_map = {name: f"model-{number:05}.safetensors" for number, shard in enumerate(shards, 1) for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _write_configs(config: VilaConfig, folder: Path) -> None:
    decoder, tower = config.language_model, config.vision_tower
    assert isinstance(decoder, DecoderConfig)
    assert isinstance(tower, SiglipConfig)
    sizes = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    llm = decoder.model_dump(include={*sizes, "num_key_value_heads", "vocab_size", "rope_theta", "rms_norm_eps", "tie_word_embeddings"})
    llm |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu"}
    llm |= {"max_position_embeddings": 32768, "model_max_length": 8192}
    vision = tower.model_dump(include={*sizes, "image_size", "patch_size"})
    vision |= {"architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model", "vision_use_head": False}
    half = [0.5, 0.5, 0.5]
    preprocessor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 448, "width": 448}, "resample": 3}
    root = {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaModel"],
        "llm_cfg": llm,
        "vision_tower_cfg": vision,
        "mm_projector_cfg": {"mm_projector_type": config.projector.name, "model_type": "v2l_projector"},
        "hidden_size": decoder.hidden_size,
        "mm_hidden_size": config.projector.in_size,
        "image_aspect_ratio": "dynamic_s2",
        "dynamic_s2": True,
        "s2_scales": "448,896,1344",
        "s2_max_split_size": 448,
        "s2_resize_output_to_scale_idx": -1,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "cls_patch",
        "num_video_frames": 8,
        "model_dtype": "torch.bfloat16",
    }
    files = {
        "config.json": root,
        "llm/config.json": llm,
        "vision_tower/config.json": vision,
        "vision_tower/preprocessor_config.json": preprocessor | {"image_mean": half, "image_std": half},
        "mm_projector/config.json": root["mm_projector_cfg"],
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(QWEN2))
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    write_random_checkpoint(args.name, args.out, args.device)
