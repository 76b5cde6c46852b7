"""Projectors and media encoders against the reference."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vila_core.config import BasicImageEncoderConfig, BasicVideoEncoderConfig, ProjectorConfig, TSPVideoEncoderConfig
from vila_core.encoders import BasicImageEncoder, BasicVideoEncoder, MediaEncoder, TSPVideoEncoder
from vila_core.projectors import build_projector


def test_projectors(golden: Path):
    recorded = json.loads((golden / "projectors.json").read_text())
    checked = 0
    for name, record in recorded.items():
        file = golden / f"projector_{name}.safetensors"
        if not file.exists():
            continue
        tensors = load_file(file)
        projector = build_projector(ProjectorConfig(name=name, in_size=24, out_size=24 if name == "identity" else 32))
        projector.load_state_dict(
            {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
        )
        assert {key: list(value.shape) for key, value in projector.state_dict().items()} == record["state_keys"]
        for key, features in tensors.items():
            if key.startswith("in."):
                expected = tensors[f"out.{key.removeprefix('in.')}"]
                torch.testing.assert_close(projector(features), expected, atol=2e-5, rtol=1e-4)
        checked += 1
    assert checked >= 4


def block(encoder: MediaEncoder, frames: Tensor, around: Mapping[str, Tensor]) -> Tensor:
    """The block that the encoder's layout and tokens describe, `[T, D]`."""
    tokens, start = encoder(frames), 0
    parts: list[Tensor] = []
    for part in encoder.layout(*frames.shape[:2]):
        parts.append(tokens[start : start + part] if isinstance(part, int) else around[part])
        start += part if isinstance(part, int) else 0
    assert start == len(tokens)
    return torch.cat(parts)


def test_encoders(golden: Path):
    tensors = load_file(golden / "tsp_pooling.safetensors")
    for index, record in enumerate(json.loads((golden / "tsp_pooling.json").read_text())):
        around = {name: tensors[f"{index}.{name}"] for name in ("start", "end", "sep") if f"{index}.{name}" in tensors}
        texts = {f"{name}_tokens": name if name in around else None for name in ("start", "end")}
        sep = "sep" if "sep" in around else None
        frames = tensors[f"{index}.in"]
        tsp = TSPVideoEncoder(
            TSPVideoEncoderConfig(**texts, sep_tokens=sep, pool_sizes=tuple(map(tuple, record["pool_sizes"])))
        )
        torch.testing.assert_close(block(tsp, frames, around), tensors[f"{index}.out"], atol=2e-5, rtol=1e-4)
        basic = BasicVideoEncoder(BasicVideoEncoderConfig(**texts))
        assert torch.equal(block(basic, frames, around), tensors[f"{index}.basic_out"])
        image = BasicImageEncoder(BasicImageEncoderConfig(**texts))
        assert torch.equal(block(image, frames[:1], around), tensors[f"{index}.image_out"])
