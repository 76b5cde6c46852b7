"""Projectors and media encoders against the reference's."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from vila_core.config import BasicImageEncoderConfig, BasicVideoEncoderConfig, ProjectorConfig, TSPVideoEncoderConfig
from vila_core.encoders import BasicImageEncoder, BasicVideoEncoder, TSPVideoEncoder
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
                assert projector.num_tokens(features.shape[1]) == expected.shape[1]
        checked += 1
    assert checked >= 4


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
        torch.testing.assert_close(tsp(frames, around.__getitem__), tensors[f"{index}.out"], atol=2e-5, rtol=1e-4)
        basic = BasicVideoEncoder(BasicVideoEncoderConfig(**texts))
        assert torch.equal(basic(frames, around.__getitem__), tensors[f"{index}.basic_out"])
        image = BasicImageEncoder(BasicImageEncoderConfig(**texts))
        assert torch.equal(image(frames[0], around.__getitem__), tensors[f"{index}.image_out"])
