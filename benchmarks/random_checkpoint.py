"""Write a checkpoint of random weights in the `vila` layout, as large as a released model.

    python benchmarks/random_checkpoint.py nvila-8b OUT

It uses the embedded model's tokenizer: speed does not depend on which tokens are read.
"""

import argparse
from pathlib import Path

from vila_core.bench.random_model import checkpoint_of
from vila_core.bench.shapes import model_shape
from vila_core.checkpoint.conversion import writable_format
from vila_core.config import PreprocessConfig, ProjectorConfig, S2Config, VilaConfig

SCALES = (448, 896, 1344)
NAMES = ("nvila-0.5b", "nvila-3b", "nvila-8b")
MAX_LENGTH = 8192


def model_config(name: str) -> VilaConfig:
    """Return the configuration of an NVILA model: SigLIP so400m at 448 pixels, dynamic S2, a Qwen2 decoder."""
    lite = model_shape(name, "bfloat16")
    return lite.model_copy(
        update={
            "dynamic_s2": S2Config(scales=SCALES, max_split_size=448, resize_output_to_scale_idx=-1),
            "projector": ProjectorConfig(
                name="mlp_downsample_2x2_fix",
                in_size=len(SCALES) * lite.vision_tower.hidden_size,
                out_size=lite.language_model.hidden_size,
            ),
            "language_model": lite.language_model.model_copy(update={"max_length": MAX_LENGTH}),
            "preprocess": PreprocessConfig(image_aspect_ratio="dynamic_s2", s2_scales=SCALES),
        }
    )


def write_random_checkpoint(name: str, folder: Path, layers: int | None = None) -> None:
    """Write the model called `name` to `folder`, bf16, weights normal with standard deviation 0.02, seed 0.

    `layers` is how many blocks its decoder gets; None for the model's own number.
    """
    config = model_config(name)
    if layers is not None:
        decoder = config.language_model.model_copy(update={"num_hidden_layers": layers})
        config = config.model_copy(update={"language_model": decoder})
    writable_format("vila").write(checkpoint_of(config, name, "bf16"), folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    write_random_checkpoint(args.name, args.out)
