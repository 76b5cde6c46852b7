"""transformers reads our AWQ checkpoints with its own backend, GPTQModel, and computes what we do.

Run by `nox -s interop`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.quant.conftest import rounded, small_decoder, small_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import vila_core as vila
from vila_core.checkpoint import Checkpoint, convert, open_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.language.decoder import Decoder
from vila_quant.linears.groupwise_linear import GroupwiseLinear

pytest.importorskip("gptqmodel", reason="transformers reads AWQ through GPTQModel, which `nox -s interop` installs")

IDS = torch.randint(0, 600, (2, 48), generator=torch.Generator().manual_seed(2))


def untied(folder: Path) -> Checkpoint:
    """Write a random model with a head of its own."""
    return small_model(
        folder, small_decoder(hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2)
    )


def our_logits(folder: Path) -> tuple[Tensor, nn.Module]:
    decoder = vila.load(folder, device="cpu", dtype="float32").network.llm
    assert isinstance(decoder, Decoder)
    with torch.inference_mode():
        return decoder.logits(decoder(decoder.embed(IDS))), decoder


def their_logits(folder: Path) -> tuple[Tensor, nn.Module]:
    """Load the language model's folder alone, as any Hugging Face AWQ checkpoint."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "llm", device_map="cpu", dtype=torch.float32)
    with torch.inference_mode():
        return model(IDS).logits, model


@pytest.mark.parametrize(
    ("kind", "group_size", "skip"),
    [("embedded", 128, ()), ("embedded", 64, ("llm.model.layers.1.mlp.down_proj",)), ("untied", 32, ())],
)
def test_transformers_computes_the_same_logits(
    tmp_path: Path, kind: str, group_size: int, skip: tuple[str, ...]
) -> None:
    source = open_checkpoint(embedded_model()) if kind == "embedded" else untied(tmp_path / "whole")
    folder = convert(rounded(source, group_size, skip=skip), tmp_path / "awq", "awq").path
    ours, network = our_logits(folder)
    theirs, model = their_logits(folder)
    converted = {name for name, module in network.named_modules() if isinstance(module, GroupwiseLinear)}
    read_as_quantized = {name for name, module in model.named_modules() if "awq" in type(module).__name__.lower()}
    assert converted == read_as_quantized
    assert len(converted) == 7 * len({name.split(".")[2] for name in converted}) - len(skip)
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 1e-5
