"""Quantizing a model that sees and draws: its language model gets 4 bits, the rest stays, and it draws as before."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from tests.quant.conftest import tensors_of
from typer.testing import CliRunner

import vila_core as vila
from vila_core.checkpoint import convert, open_checkpoint
from vila_core.config import DepthTransformerConfig
from vila_core.errors import CheckpointError
from vila_core.runtime import Vila
from vila_quant.calibration.drawings import with_drawings
from vila_quant.calibration.sample import Sample
from vila_quant.checking.held_out import read_prompts
from vila_quant.cli.main import app
from vila_quant.errors import QuantizationError
from vila_quant.quantizing.options import QuantizationOptions
from vila_quant.quantizing.pipeline import quantize_model


@pytest.fixture(scope="module")
def quantized(tiny_u: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "quantized"
    options = QuantizationOptions(
        group_size=32, sequences=2, sequence_length=64, calibration="builtin", search="nearest"
    )
    quantize_model(tiny_u, out, options)
    return out


@pytest.fixture(scope="module")
def model(quantized: Path) -> Vila:
    return vila.load(quantized)


def pixels(images: Sequence[PILImage.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_only_the_blocks_of_the_language_model_are_quantized(tiny_u: Path, quantized: Path) -> None:
    before, after = (open_checkpoint(path) for path in (tiny_u, quantized))
    assert (after.format, after.config) == ("awq", before.config)
    assert json.loads((quantized / "config.json").read_text())["model_type"] == "vila_u_llama"
    assert json.loads((quantized / "llm" / "config.json").read_text())["quantization_config"]["group_size"] == 32
    old, new = tensors_of(before), tensors_of(after)
    linears = {name.removesuffix(".weight") for name in old if name.startswith("llm.") and "_proj." in name}
    assert len(linears) == 7 * before.config.language_model.num_hidden_layers
    assert {name.removesuffix(".qweight") for name in new if name.endswith(".qweight")} == linears
    kept = [name for name in old if name.removesuffix(".weight") not in linears]
    assert {name.partition(".")[0] for name in kept} == {"llm", "vision_tower", "mm_projector", "generation"}
    assert all(new[name].equal(old[name]) for name in kept)


def test_it_answers_and_draws_alone_as_in_a_batch(model: Vila) -> None:
    picture = vila.Image(PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)))
    prompts = [[picture, "What is it?"], "Say something.", [picture, "And its colors?"]]
    settings = {"max_new_tokens": 12}
    assert model.generate_batch(prompts, **settings) == [model.generate(prompt, **settings) for prompt in prompts]
    together = model.generate_image("a red circle", n=3, seed=5)
    assert pixels(together[:1]) == pixels(model.generate_image("a red circle", seed=5))
    assert len(set(pixels(together))) == 3


def test_it_is_written_again_without_a_change(quantized: Path, tmp_path: Path) -> None:
    again = convert(quantized, tmp_path / "again", "awq")
    first, second = (tensors_of(checkpoint) for checkpoint in (open_checkpoint(quantized), again))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_drawings_are_calibrated_on(tiny_u: Path) -> None:
    """The answer about a picture is the prompt for it."""
    picture, text = vila.Image("cat.png"), "a cat"
    given = [
        Sample((picture, "What is it?"), text),
        Sample((picture, "What is it?")),
        Sample((picture, picture, "What changed?"), "nothing"),
        Sample(("text",), is_text=True),
    ]
    assert [sample for sample in with_drawings(given) if sample not in given] == [Sample((text,), drawing=picture)]
    drawing = next(prompt for prompt in read_prompts(vila.load(tiny_u), "builtin", 6) if prompt.kind == "drawing")
    assert drawing.codes is not None
    assert drawing.codes.shape == (drawing.scored, 4)


def test_the_check_compares_texts_pictures_and_drawings(tiny_u: Path, quantized: Path) -> None:
    arguments = ["--against", str(tiny_u), "--prompts", "builtin", "--number", "3", "--json"]
    reports = [
        json.loads(CliRunner().invoke(app, ["check", str(path), *arguments]).stdout) for path in (quantized, tiny_u)
    ]
    lossy, same = reports
    for kind in ("text", "multimodal", "drawing"):
        assert lossy[kind]["prompts"] == same[kind]["prompts"] == 1
        assert lossy[kind]["kl"] > 1e-4
        assert same[kind]["kl"] == pytest.approx(0.0, abs=1e-6)
        assert same[kind]["top1_agreement"] == 1.0
    head = open_checkpoint(tiny_u).config.generation_head
    assert isinstance(head, DepthTransformerConfig)
    assert lossy["drawing"]["tokens"] == math.prod(head.grid) * head.code_depth
    assert lossy["vision"] == 0.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"group_size": 128, "format": "tinychat"}, CheckpointError, "cannot represent"),
        ({"group_size": 32, "vision": "int8"}, QuantizationError, "codes"),
    ],
)
def test_what_would_lose_the_head_or_the_codes_is_refused_first(
    tiny_u: Path, tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quantize_model(tiny_u, tmp_path / "out", QuantizationOptions.model_validate(changes))
    assert list(tmp_path.iterdir()) == []
