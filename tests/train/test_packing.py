"""Packing: rows are full, and a packed row has the loss and the gradients of its samples alone."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import vila_core as vila
from vila_core.chat import Message
from vila_core.media import MediaLimits
from vila_train.errors import TrainingError
from vila_train.packing import PackedRow, pack, packed_loss
from vila_train.samples import Encoder, TrainingSample


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_is_in_one_bin_that_holds_it(seed: int):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 100) for _ in range(draw.randint(0, 300))]
    bins = pack(lengths, 100)
    assert sorted(index for of_bin in bins for index in of_bin) == [*range(len(lengths))]
    assert all(sum(lengths[index] for index in of_bin) <= 100 for of_bin in bins)
    assert bins == pack(lengths, 100)


def test_ragged_lengths_waste_less_than_three_percent():
    draw = random.Random(0)
    lengths = [min(int(draw.lognormvariate(6, 1)) + 20, 4096) for _ in range(1000)]
    bins = pack(lengths, 4096)
    waste = 1 - sum(lengths) / (4096 * len(bins))
    assert waste < 0.03


def test_a_perfect_fit_is_found():
    assert len(pack([6, 4, 5, 5, 7, 3, 10], 10)) == 4


@pytest.mark.parametrize("lengths", [[5, 11], [0], [-1]])
def test_impossible_lengths_are_refused(lengths: list[int]):
    with pytest.raises(TrainingError, match="a row holds 1 to 10"):
        pack(lengths, 10)


@pytest.fixture(scope="module")
def model() -> vila.Vila:
    return vila.load("vila-tiny", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def samples(model: vila.Vila, tmp_path_factory: pytest.TempPathFactory) -> list[TrainingSample]:
    """Text, images, a video and several turns."""
    draw = np.random.default_rng(0)
    image = lambda: vila.Image(PIL.Image.fromarray(draw.integers(0, 255, (50, 70, 3), dtype=np.uint8)))  # noqa: E731
    video = vila.Video(draw.integers(0, 255, (4, 48, 48, 3), dtype=np.uint8))
    conversations = [
        [Message("user", "Hello?"), Message("assistant", "Hi.")],
        [Message("user", [image(), "What is it?"]), Message("assistant", "A red square.")],
        [Message("user", [video, "Which way?"]), Message("assistant", "Left.")],
        [
            Message("user", [image(), image(), "Compare."]), Message("assistant", "The same."),
            Message("user", "Sure?"), Message("assistant", "Yes."),
        ],
    ]  # fmt: skip
    encoder = Encoder(model.network, model.tokenizer, model.template, MediaLimits())
    return [encoder.encode(f"sample {index}", messages) for index, messages in enumerate(conversations)]


def gradients(model: vila.Vila, rows: list[list[TrainingSample]]) -> tuple[float, dict[str, torch.Tensor]]:
    network = model.network
    network.requires_grad_(True)
    network.zero_grad()
    packed = [PackedRow.of(samples, torch.device("cpu")) for samples in rows]
    count = sum(row.num_labels for row in packed)
    total = 0.0
    for row in packed:
        loss = packed_loss(network, row) / count
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def test_packed_equals_unpacked(model: vila.Vila, samples: list[TrainingSample]):
    together, of_together = gradients(model, [samples])
    alone, of_alone = gradients(model, [[sample] for sample in samples])
    shuffled, of_shuffled = gradients(model, [[samples[2], samples[0]], [samples[3], samples[1]]])
    assert together == pytest.approx(alone, abs=1e-5)
    assert shuffled == pytest.approx(alone, abs=1e-5)
    assert of_together.keys() == of_alone.keys()
    for part in ("vision_tower", "mm_projector", "llm"):
        names = [name for name in of_alone if name.startswith(part)]
        expected = torch.cat([of_alone[name].flatten() for name in names])
        assert expected.norm() > 1e-4
        for found in (of_together, of_shuffled):
            difference = torch.cat([found[name].flatten() for name in names]) - expected
            assert difference.norm() / expected.norm() < 1e-4, part


def test_a_sample_does_not_see_its_neighbours(model: vila.Vila, samples: list[TrainingSample]):
    labels = [-100] * len(samples[1])
    silent = replace(samples[1], labels=labels)
    alone, _ = gradients(model, [[samples[0]]])
    beside, _ = gradients(model, [[silent, samples[0], silent]])
    assert beside == pytest.approx(alone, abs=1e-6)


def test_nothing_predicts_the_first_token_of_a_document(model: vila.Vila):
    encoder = Encoder(model.network, model.tokenizer, model.template, MediaLimits())
    documents = [encoder.encode_document(text, [Message("user", [text])]) for text in ("A red square.", "A moon.")]
    assert all(sample.labels[0] != -100 for sample in documents)  # all their text is learned
    together, _ = gradients(model, [documents])
    alone, _ = gradients(model, [[sample] for sample in documents])
    assert together == pytest.approx(alone, abs=1e-5)
    row = PackedRow.of(documents, torch.device("cpu"))
    assert row.num_labels == sum(len(sample) - 1 for sample in documents)


def test_only_answers_are_labelled(model: vila.Vila, samples: list[TrainingSample]):
    sample = samples[3]
    labelled = [label for label in sample.labels if label != -100]
    assert model.tokenizer.decode(labelled, skip_special_tokens=True).split() == ["The", "same.Yes."]
    assert sample.num_labels == len(labelled)
    assert len(sample) == len(sample.expanded.ids)


def test_every_image_is_tiled(tmp_path: Path):
    model = vila.load("vila-tiny", dtype="float32", device="cpu", image_aspect_ratio="dynamic", max_tiles=4)
    encoder = Encoder(model.network, model.tokenizer, model.template, MediaLimits())
    wide = vila.Image(PIL.Image.new("RGB", (400, 100)))
    sample = encoder.encode("wide", [Message("user", [wide, wide, "What?"]), Message("assistant", "Wide.")])
    assert [len(medium.tiles.pixels) for medium in sample.prompt.media] == [5, 5]
