"""Write a checkpoint of random weights in the `vila` layout, as large as a released model.

    python benchmarks/random_checkpoint.py nvila-8b OUT [--device cuda]

It uses the embedded model's tokenizer: speed does not depend on which tokens are read.
"""

import argparse
from pathlib import Path

import torch

from vila_core.checkpoint import open_checkpoint, save_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.config import (
    DecoderConfig,
    PixelConfig,
    PreprocessConfig,
    ProjectorConfig,
    S2Config,
    SiglipConfig,
    VilaConfig,
)
from vila_core.model import VilaModel
from vila_core.tokenizer import Tokenizer

SHARD_BYTES = 4 * 1024**3

SIGLIP_SO400M_448 = SiglipConfig(
    image_size=448,
    patch_size=14,
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
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
    tensors: dict[str, torch.Tensor] = {}
    for key, parameter in network.state_dict().items():
        tensor = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator)
        tensors[key] = tensor + 1 if parameter.ndim == 1 and key.endswith("weight") else tensor  # norms are about one
    save_checkpoint(tensors, config, tokenizer_folder, folder, max_shard_bytes=SHARD_BYTES)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(QWEN2))
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    write_random_checkpoint(args.name, args.out, args.device)
