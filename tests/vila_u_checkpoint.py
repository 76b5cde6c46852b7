"""A complete VILA-U checkpoint from the recorded one, whose image decoder is not in the repository."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vila_core.config import PixelDecoderConfig
from vila_core.towers.rq_siglip.decoder import PixelDecoder

RECORDED = Path(__file__).parent / "parity" / "data" / "golden-vilau"
DECODER = "rqvaesiglip.decoder."


def complete_checkpoint(source: Path, target: Path) -> Path:
    """Copy the checkpoint `source` to `target`, with a random image decoder if it has none. Return `target`."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    file = target / "vision_tower" / "model.safetensors"
    tensors = load_file(file)
    if not any(name.startswith(DECODER) for name in tensors):
        config = json.loads((target / "vision_tower" / "config.json").read_text())["rqvaesiglip"]
        tensors |= random_decoder(config["ddconfig"])
        save_file(tensors, file, metadata={"format": "pt"})
    return target


def random_decoder(raw: dict[str, object]) -> dict[str, torch.Tensor]:
    """Return the weights of a decoder with this `ddconfig`, from one seed."""
    decoder = PixelDecoder(
        PixelDecoderConfig.model_validate(
            {
                "z_channels": raw["z_channels"],
                "channels": raw["ch"],
                "channel_multipliers": raw["ch_mult"],
                "num_res_blocks": raw["num_res_blocks"],
                "attention_resolutions": raw["attn_resolutions"],
                "resolution": raw["resolution"],
            }
        )
    )
    draw = torch.Generator().manual_seed(0)
    shapes = {f"{DECODER}{name}": tensor.shape for name, tensor in decoder.state_dict().items()}
    return {
        name: torch.randn(shape, generator=draw) * 0.05 + (1 if ".norm" in name and name.endswith("weight") else 0)
        for name, shape in shapes.items()
    }
