"""Calibration: samples from every source, and packed sequences in which each sample sees only itself."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import PIL.Image
import pytest
import torch
from torch import Tensor

from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.config import DecoderConfig
from vila_core.language.decoder import Block
from vila_core.language.rope import Rotary
from vila_core.media import Image, Video
from vila_core.template_choice import choose_template
from vila_core.tokenizer import Tokenizer
from vila_quant.awq.block import BlockInputs, run_block
from vila_quant.calibration.embedding import Calibration, Embedder, collect
from vila_quant.calibration.sample import Sample
from vila_quant.calibration.samples import builtin_text, read_samples, resolve_source
from vila_quant.errors import QuantizationError


@pytest.fixture
def embedder() -> Embedder:
    checkpoint = open_checkpoint(embedded_model())
    tokenizer = Tokenizer.from_folder(checkpoint.tokenizer_path)
    template = choose_template(None, checkpoint.config.chat_template, tokenizer)
    return Embedder(checkpoint, tokenizer, template, torch.device("cpu"), torch.float32, None)


def config(window: int | None) -> DecoderConfig:
    found = open_checkpoint(embedded_model()).config.language_model
    assert isinstance(found, DecoderConfig)
    return found.model_copy(update={"sliding_window": window})


@pytest.mark.parametrize("window", [None, 3])
def test_packed_samples_are_computed_as_if_alone(window: int | None) -> None:
    torch.manual_seed(0)
    decoder_config = config(window)
    block = Block(decoder_config, 0).eval().requires_grad_(False)
    embeds = torch.randn(2, 12, decoder_config.hidden_size)
    samples = torch.tensor([[0] * 5 + [1] * 7, [2] * 12])
    calibration = Calibration(embeds, samples, (), "", 3)
    packed = run_block(block, embeds, calibration.block_inputs(decoder_config, torch.device("cpu")))
    rotary = Rotary(decoder_config)

    def alone(x: Tensor) -> Tensor:
        place = torch.arange(len(x))
        mask = place <= place[:, None]
        if window is not None:
            mask &= place > place[:, None] - window
        return run_block(block, x[None], BlockInputs(rotary(place[None], x.dtype), mask[None, None]))[0]

    for row, part in ((0, slice(0, 5)), (0, slice(5, 12)), (1, slice(0, 12))):
        torch.testing.assert_close(packed[row, part], alone(embeds[row, part]), rtol=1e-5, atol=1e-5)


def test_a_sequence_is_filled_and_its_last_sample_cut(embedder: Embedder) -> None:
    samples = [Sample((text,), is_text=True) for text in ("red " * 30, "blue " * 30, "green " * 90)]
    lengths = [len(embedder.embed(sample)) for sample in samples]
    length = lengths[0] + 10
    calibration = collect(iter(samples), embedder, 2, length, exact=True)
    assert calibration.samples[0].tolist() == [0] * lengths[0] + [1] * 10
    assert calibration.samples[1].tolist() == [2] * length
    torch.testing.assert_close(calibration.embeds[0, lengths[0] :], embedder.embed(samples[1])[:10])
    with pytest.raises(QuantizationError, match="Not enough calibration"):
        collect(iter(samples), embedder, 200, length, exact=True)


def test_the_digest_is_of_what_was_seen(embedder: Embedder) -> None:
    before = embedder.digest
    collect(read_samples("builtin", 0, 0.5), embedder, 1, 64, exact=True)
    after = embedder.digest
    assert before != after
    collect(read_samples("builtin", 0, 0.5), embedder, 1, 64, exact=True)
    assert embedder.digest not in (before, after)


def first(samples: Iterator[Sample], count: int) -> list[Sample]:
    return list(islice(samples, count))


def test_builtin_samples_never_end_and_hold_the_asked_share_of_pictures() -> None:
    samples = first(read_samples("builtin", 0, 0.25), 400)
    assert len(samples) == 400
    assert [sample.is_text for sample in samples[:8]] == [False, True, True, True] * 2
    texts = [sample for sample in samples if sample.is_text]
    assert 90 < len(texts) < 200  # some 200 kB in windows; then pictures alone
    pictures = [sample for sample in samples if not sample.is_text]
    assert all(isinstance(sample.prompt[0], Image) and sample.answer for sample in pictures)
    assert len({sample.prompt[1] for sample in pictures}) == 4
    assert "世界人权宣言" in builtin_text()
    assert not any(sample.is_text for sample in first(read_samples("builtin", 0, 1.0), 4))
    assert all(sample.is_text for sample in first(read_samples("builtin", 0, 0.0), 4))


def test_a_closed_world_is_calibrated_on_itself() -> None:
    assert resolve_source("auto", 1024) == "drawn-world"
    assert resolve_source("auto", 151_936) == "builtin"
    assert resolve_source("some/folder", 1024) == "some/folder"
    rows = first(read_samples("drawn-world", 0, 0.0), 3)
    assert all(row.answer for row in rows)


def test_a_folder_gives_its_media_with_the_prompts_beside_them(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "b.txt").write_text("What is this?\n")
    (tmp_path / "c.mp4").touch()
    (tmp_path / "notes.md").touch()
    samples = {str(sample.prompt[0]): sample for sample in read_samples(str(tmp_path), 0, 0.0)}
    assert len(samples) == 3
    assert sorted(str(sample.prompt[1]) for sample in samples.values()) == ["Describe the image in detail."] * 2 + [
        "What is this?"
    ]
    assert sum(isinstance(sample.prompt[0], Video) for sample in samples.values()) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(QuantizationError, match="has no images or videos"):
        read_samples(str(tmp_path / "empty"), 0, 0.0)


def test_lines_of_json_give_media_prompts_and_answers(tmp_path: Path) -> None:
    lines = [
        {"prompt": "What?", "image": "one.png", "answer": "One."},
        {"prompt": "Which?", "images": ["one.png", "https://example.org/two.png"]},
        {"video": "walk.mp4"},
    ]
    file = tmp_path / "samples.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    for name in ("one.png", "walk.mp4"):
        (tmp_path / name).touch()
    samples = sorted(read_samples(str(file), 0, 0.0), key=lambda sample: -len(sample.prompt))
    assert [type(part) for part in samples[0].prompt] == [Image, Image, str]
    assert {str(tmp_path / "one.png"), "https://example.org/two.png"} == {
        str(part.source) for part in samples[0].prompt[:2]
    }  # pyright: ignore
    assert {sample.answer for sample in samples} == {None, "One."}
    assert any(
        isinstance(sample.prompt[0], Video) and sample.prompt[1] == "Describe the image in detail."
        for sample in samples
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not valid JSON"),
        ('{"promt": "x"}', "Did you mean 'prompt'"),
        ('{"prompt": 3}', "expected strings"),
        ('{"answer": null}', "expected strings, and a prompt or a medium"),
        ('{"image": "no.png"}', r"line 2: no file '.*no\.png'"),
        (json.dumps({"image": "iVBORw0KGgo" * 500}), "line 2: no file"),
    ],
)
def test_lines_that_are_no_samples_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(QuantizationError, match=message):
        read_samples(str(file), 0, 0.0)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"prompt": "fine"}\n', encoding="utf-8-sig")
    assert [sample.prompt for sample in read_samples(str(tmp_path / "samples.jsonl"), 0, 0.0)] == [("fine",)]


def test_an_unknown_source_is_reported_with_the_known_ones() -> None:
    with pytest.raises(QuantizationError, match=r"Unknown calibration 'drawn-word'.*Did you mean 'drawn-world'"):
        read_samples("drawn-word", 0, 0.0)
