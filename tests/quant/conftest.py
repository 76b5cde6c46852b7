"""Recorded outputs of the reference (a committed subset, or `--recordings` folders), and small quantized models."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vila_core.checkpoint import Checkpoint, convert, open_checkpoint, save_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.checkpoint.tensors.memory import MemoryWeights
from vila_core.config import DecoderConfig, ProjectorConfig
from vila_core.model import VilaModel
from vila_core.tokenizer import Tokenizer
from vila_quant.kernels import LinearShape
from vila_quant.packing.autoawq import pack_gemm
from vila_quant.packing.groupwise import GroupwiseWeight, quantize

COMMITTED = Path(__file__).parent / "data" / "golden-awq"


@dataclass(frozen=True)
class Recording:
    """One folder of recordings."""

    folder: Path

    def path(self, pattern: str) -> Path:
        """Return the one file or folder that matches; a test of something that was not recorded is skipped."""
        found = sorted(self.folder.glob(pattern))
        if not found:
            pytest.skip(f"{self.folder.name} has no {pattern}")
        assert len(found) == 1, found
        return found[0]

    def tensors(self, pattern: str) -> dict[str, Tensor]:
        """Return the tensors of a safetensors file."""
        return load_file(self.path(pattern))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "recording" in metafunc.fixturenames:
        given = [Path(folder) for folder in metafunc.config.getoption("recordings") or ()]
        folders = [folder for folder in given if (folder / "a_fake_quant.safetensors").exists()] or [COMMITTED]
        metafunc.parametrize(
            "recording", [Recording(folder) for folder in folders], ids=[folder.name for folder in folders]
        )


def random_weight(shape: LinearShape, seed: int = 0) -> GroupwiseWeight:
    """Return a quantized random weight as a file holds it: scales in fp16, zeros of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(shape.outputs, 1, generator=generator) * 0.05  # so that zeros lie away from the middle
    weight = quantize(
        torch.randn(shape.outputs, shape.inputs, generator=generator) * 0.05 + offset, 4, shape.group_size
    )
    return GroupwiseWeight(weight.q, weight.scales.half(), weight.zeros.half(), 4)


def exact_product(x: Tensor, weight: GroupwiseWeight) -> Tensor:
    """`x [M, K]` times the weight without any rounding that matters."""
    return x.double() @ GroupwiseWeight(weight.q, weight.scales.double(), weight.zeros.double(), 4).dequantize().T


def relative_error(y: Tensor, exact: Tensor) -> float:
    return ((y.double() - exact.double()).norm() / exact.double().norm()).item()


def rounded(checkpoint: Checkpoint, group_size: int, *, skip: tuple[str, ...] = ()) -> Checkpoint:
    """Return the checkpoint with every linear of the blocks rounded to the nearest of four-bit integers, in memory."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.weights.shards():
        module = name.removesuffix(".weight")
        if name.startswith("llm.model.layers.") and name.endswith("_proj.weight") and module not in skip:
            tensors |= {
                f"{module}.{kind}": value
                for kind, value in vars(pack_gemm(quantize(tensor.half(), 4, group_size))).items()
            }
        else:
            tensors[name] = tensor
    return replace(checkpoint, weights=MemoryWeights(tensors))


def tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return all tensors by canonical name."""
    return dict(checkpoint.weights.shards())


def with_tensors(checkpoint: Checkpoint, changed: dict[str, Tensor | None]) -> Checkpoint:
    """Return the checkpoint in memory with some tensors changed, added, or (None) taken away."""
    tensors = tensors_of(checkpoint) | changed
    return replace(
        checkpoint, weights=MemoryWeights({name: tensor for name, tensor in tensors.items() if tensor is not None})
    )


def small_decoder(**changes: int) -> DecoderConfig:
    """Return the config of a language model of two layers, with a head of its own; its widths take groups of 32."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    fixed = {"vocab_size": 1024, "max_length": 512, "max_position_embeddings": 512, "head_dim": 32}
    kind = {"architecture": "qwen2", "attention_bias": True, "tie_word_embeddings": False}
    return DecoderConfig.model_validate(kind | fixed | sizes | changes)


def small_model(out: Path, language_model: DecoderConfig, format: str = "vila") -> Checkpoint:
    """Write a random model of the NVILA-Lite design around a language model, with the embedded model's tokenizer."""
    tiny = open_checkpoint(embedded_model())
    tower = tiny.config.vision_tower.model_copy(
        update={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "use_head": False,
        }
    )
    config = tiny.config.model_copy(
        update={
            "vision_tower": tower,
            "projector": ProjectorConfig(
                name="mlp_downsample_3x3_fix", in_size=16, out_size=language_model.hidden_size
            ),
            "language_model": language_model,
            "preprocess": tiny.config.preprocess.model_copy(update={"image_aspect_ratio": "dynamic", "max_tiles": 2}),
            "chat_template": None,
        }
    )
    torch.manual_seed(3)
    network = VilaModel(config, Tokenizer.from_folder(tiny.tokenizer_path))
    return save_checkpoint(network.state_dict(), config, tiny.tokenizer_path, out, format=format, dtype=torch.float16)


@pytest.fixture(scope="session")
def whole_tiny() -> Checkpoint:
    """The embedded model."""
    return open_checkpoint(embedded_model())


@pytest.fixture(scope="session")
def awq_tiny(tmp_path_factory: pytest.TempPathFactory, whole_tiny: Checkpoint) -> Checkpoint:
    """The embedded model in four bits, on disk; not to be changed."""
    return convert(rounded(whole_tiny, 128), tmp_path_factory.mktemp("awq") / "vila-tiny-awq", "awq")


@pytest.fixture(scope="session")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random model in the layout `nvila`, whole; its widths take groups of 32."""
    return small_model(tmp_path_factory.mktemp("lite") / "whole", small_decoder(), "nvila")
