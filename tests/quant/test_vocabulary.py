"""Models whose tokenizer has more tokens than their embedding has rows, as VILA-1.5's media tokens leave them."""

from pathlib import Path

import pytest
import torch
from tests.quant.conftest import small_decoder, small_model
from tests.quant.test_source import write_adapter

import vila_core as vila
from vila_core.checkpoint import Checkpoint, convert
from vila_core.language.decoder import Decoder
from vila_quant.quantizing.options import QuantizationOptions
from vila_quant.quantizing.pipeline import quantize_model

ROWS, TOKENS = 960, 1024
"""Rows of the embedding, tokens of the tokenizer."""
OPTIONS = {"group_size": 32, "search": "nearest", "sequences": 2, "sequence_length": 64, "calibration": "drawn-world"}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def short(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model with fewer rows than tokens."""
    decoder = small_decoder(vocab_size=ROWS, tie_word_embeddings=request.param)
    return small_model(tmp_path_factory.mktemp("short") / "model", decoder)


def logits(folder: Path) -> torch.Tensor:
    """The model's scores of the same random hidden states, `[3, V]`."""
    decoder = vila.load(folder, device="cpu", dtype="float32").network.llm
    assert isinstance(decoder, Decoder)
    hidden = torch.randn(3, decoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return decoder.logits(hidden)


@pytest.mark.parametrize("head", ["int8", "int4"])
@pytest.mark.parametrize("form", ["vila", "nvila"])
def test_a_quantized_head_scores_every_token(short: Checkpoint, tmp_path: Path, head: str, form: str) -> None:
    source = short if form == "vila" else convert(short, tmp_path / "source", form)
    quantize_model(source.path, tmp_path / "out", QuantizationOptions.model_validate({**OPTIONS, "lm_head": head}))
    expected, found = logits(source.path), logits(tmp_path / "out")
    assert found.shape == expected.shape == (3, TOKENS)
    assert (found - expected).norm() < (0.01 if head == "int8" else 0.2) * expected.norm()
    mean = found[:, :ROWS].mean(-1, keepdim=True)
    torch.testing.assert_close(found[:, ROWS:], mean.expand(3, TOKENS - ROWS))
    assert isinstance(vila.load(tmp_path / "out", device="cpu").generate("Hello", max_new_tokens=4), str)


def test_a_merged_adapter_changes_nothing_about_it(short: Checkpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", short)
    options = QuantizationOptions.model_validate({**OPTIONS, "lm_head": "int8"})
    quantize_model(short.path, tmp_path / "out", options, lora=adapter)
    assert logits(tmp_path / "out").shape == (3, TOKENS)
