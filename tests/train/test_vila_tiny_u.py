"""vila-tiny-u: its shape, its samples, its losses, and a run of its recipe."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import vila_core as vila
from vila_core.checkpoint import save_checkpoint
from vila_core.errors import ConfigError
from vila_core.model import VilaModel
from vila_core.plugins.loader import load_plugins
from vila_core.runtime import Vila
from vila_core.tokenizer import Tokenizer
from vila_train.labels import IGNORE_INDEX
from vila_train.loss import code_loss
from vila_train.tiny.data import Encoder, drawn_samples, make_shard
from vila_train.tiny.dataset import as_prompt
from vila_train.tiny.forward import hidden_states as hidden_states_of_pixels
from vila_train.tiny.loop import Stage
from vila_train.tiny.pools import Pool
from vila_train.tiny.recipes import Draw, StageConfig, choose_stages
from vila_train.tiny.training import TinyOptions
from vila_train.tiny.vila_u.drawings import drawing_sheet
from vila_train.tiny.vila_u.forward import (
    codes_loss_sum,
    encode_pool,
    hidden_states,
    language_loss,
    tower_loss,
    tower_quality,
)
from vila_train.tiny.vila_u.model import (
    CODES,
    DEPTH,
    IMAGE_SIZE,
    POSITIONS,
    TEMPLATE,
    make_encoder,
    new_network,
    new_tower_training,
    save_tokenizer,
    tiny_u_config,
)
from vila_train.tiny.vila_u.recipes import TINY_U_SAMPLES, draws_pictures, tiny_u_stages
from vila_train.tiny.vila_u.training import NOT_STORED, train_tiny_u
from vila_train.tiny.world import DRAWINGS, make_sample

LIMIT = 8_000_000
"""Bytes of the whole checkpoint."""


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tokenizer_folder: Path) -> Encoder:
    return make_encoder(tokenizer_folder)


@pytest.fixture
def network(tokenizer_folder: Path) -> VilaModel:
    return new_network(tokenizer_folder, "cpu", seed=0)


@pytest.fixture(scope="module")
def checkpoint(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained model, as the recipe writes it."""
    network = new_network(tokenizer_folder, "cpu", seed=0)
    weights = {name: value for name, value in network.state_dict().items() if not name.endswith(NOT_STORED)}
    config = tiny_u_config(network.config.language_model.vocab_size)
    folder = tmp_path_factory.mktemp("model") / "vila-tiny-u"
    save_checkpoint(weights, config, tokenizer_folder, folder, format="vila-u", dtype=torch.bfloat16)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Vila:
    return vila.load(checkpoint, device="cpu", dtype="float32")


def pool(encoder: Encoder, source: str, count: int) -> Pool:
    return Pool([make_shard(drawn_samples("train", source, 0, count), encoder, IMAGE_SIZE)], "cpu")


def test_the_checkpoint_is_small_enough_for_the_repository(checkpoint: Path) -> None:
    assert sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()) <= LIMIT


def test_the_last_four_tokens_are_those_that_vila_u_counts_from_the_end(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    last = tokenizer.hf.convert_ids_to_tokens(list(range(len(tokenizer) - 4, len(tokenizer))))
    assert last == ["<im_start>", "<im_end>", "<vi_start>", "<vi_end>"]


def test_the_written_model_is_the_same_when_read(model: Vila) -> None:
    read, written = model.config, tiny_u_config(model.config.language_model.vocab_size)
    assert read.vision_tower == written.vision_tower
    assert read.language_model == written.language_model
    assert (read.chat_template or TEMPLATE) == TEMPLATE
    assert read.text_after_media == written.text_after_media
    assert read.splits_text_at_media
    # Dropout is not in the format.
    assert read.generation_head == written.generation_head.model_copy(update={"dropout": 0.1})


def test_the_model_draws_and_answers(model: Vila) -> None:
    (picture,) = model.generate_image_batch(["A red circle (top)."], seed=0)
    assert picture.size == (IMAGE_SIZE, IMAGE_SIZE)
    assert isinstance(model.generate([vila.Image(picture), "What is this?"], max_new_tokens=3), str)


@pytest.mark.parametrize("source", ["count", "word", "caption_things"])
def test_questions_are_encoded_as_the_model_reads_them(model: Vila, encoder: Encoder, source: str) -> None:
    sample = make_sample("train", source, 4)
    encoded = encoder(sample)
    prompt = model.network.expand(model.prepare(as_prompt(sample)))
    length = len(prompt.ids)
    assert encoded.places == [*prompt.places]
    places = set(encoded.places)
    assert all(a == b for i, (a, b) in enumerate(zip(encoded.ids, prompt.ids, strict=False)) if i not in places)
    answer = [token for token in encoded.labels if token != IGNORE_INDEX]
    assert model.tokenizer.decode(answer).strip() == sample.answer
    assert all(label == IGNORE_INDEX for label in encoded.labels[:length])
    assert encoded.labels[length:] == encoded.ids[length:], "all that the model has to write is learned"


@pytest.mark.parametrize("source", DRAWINGS)
def test_drawings_begin_where_the_model_begins_to_draw(model: Vila, encoder: Encoder, source: str) -> None:
    from vila_core.generation.prompts import PicturePrompts

    sample = make_sample("train", source, 2)
    encoded = encoder(sample)
    head = model.network.generation_head
    assert head is not None
    template = load_plugins().chat_templates.get(TEMPLATE)
    prompt = PicturePrompts(head, template, model.tokenizer, 1024).ids("image", sample.question)
    assert encoded.ids[: encoded.places[0]] == [*prompt]
    assert len(encoded.places) == POSITIONS
    tokens = model.tokenizer.hf.convert_ids_to_tokens([one for one in encoded.labels if one != IGNORE_INDEX])
    assert tokens[-3:] == ["<im_start>", "<im_end>", "</s>"]
    assert {encoded.labels[place] for place in encoded.places} == {IGNORE_INDEX}


def test_every_source_of_the_stages_has_samples() -> None:
    stages = tiny_u_stages()
    assert {source for stage in stages for source in stage.sources} == set(TINY_U_SAMPLES)
    for stage in stages[1:]:
        assert [draws_pictures(draw) for draw in stage.draws] == [False, True]
        drawn = stage.draws[1].counts
        assert drawn["draw_nothing"] / sum(drawn.values()) == pytest.approx(0.1, abs=0.005)


def test_unknown_stages() -> None:
    assert [stage.name for stage in choose_stages(["sft", "tower"], tiny_u_stages())] == ["tower", "sft"]
    with pytest.raises(ConfigError, match="Did you mean 'tower'"):
        choose_stages(["towr"], tiny_u_stages())


def test_pools_of_codes_give_what_pools_of_pixels_give(network: VilaModel, encoder: Encoder) -> None:
    of_pixels = pool(encoder, "attribute", 3)
    batch = of_pixels.take(torch.arange(3))
    with torch.no_grad():
        (expected,) = hidden_states_of_pixels(network, [batch])
        encode_pool(network, of_pixels)
        found = hidden_states(network, of_pixels.take(torch.arange(3)))
    assert of_pixels.pixels.shape == (3, 1, POSITIONS, DEPTH)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_loss_is_that_of_tokens_plus_that_of_codes(network: VilaModel, encoder: Encoder) -> None:
    batches = []
    for source in ("attribute", "draw_things"):
        of_source = pool(encoder, source, 2)
        encode_pool(network, of_source)
        batches.append(of_source.take(torch.arange(2)))
    with torch.no_grad():
        asked = language_loss(network, [False], batches[:1])
        both = language_loss(network, [False, True], batches)
    vocabulary = network.config.language_model.vocab_size
    assert asked.item() == pytest.approx(math.log(vocabulary), rel=0.05)
    assert both.item() == pytest.approx(math.log(vocabulary) + math.log(CODES), rel=0.05)


def test_each_code_is_predicted_without_seeing_it(network: VilaModel, encoder: Encoder) -> None:
    """What is chosen at position p and depth d depends on earlier positions and depths only."""
    of_source = pool(encoder, "draw_things", 1)
    encode_pool(network, of_source)
    batch = of_source.take(torch.arange(1))
    head = network.generation_head
    assert head is not None
    changed = batch.pixels.clone()
    changed[0, 0, 10:, 2:] = (changed[0, 0, 10:, 2:] + 7) % CODES
    scores = []
    for codes in (batch.pixels, changed):
        with torch.no_grad():
            hidden = hidden_states(network, type(batch)(codes, batch.ids, batch.places, batch.labels))
            states = hidden[0, batch.places[0] - 1]
            scores.append(head.logits(states, codes[0, 0].long()))
    first, second = scores
    torch.testing.assert_close(first[:10], second[:10])
    torch.testing.assert_close(first[10, :3], second[10, :3])
    assert not torch.allclose(first[11, 0], second[11, 0])


def test_the_loss_of_codes_is_that_of_other_training(network: VilaModel, encoder: Encoder) -> None:
    of_source = pool(encoder, "draw_things", 2)
    encode_pool(network, of_source)
    batch = of_source.take(torch.arange(2))
    head = network.generation_head
    assert head is not None
    with torch.no_grad():
        hidden = hidden_states(network, batch)
        states = torch.cat([hidden[i, batch.places[i] - 1] for i in range(2)])
        expected = code_loss(head, states, batch.pixels.flatten(0, 2).long())
        torch.testing.assert_close(codes_loss_sum(network, batch, hidden) / DEPTH, expected, rtol=1e-4, atol=1e-4)


def micro(stage: StageConfig, draws: Sequence[Draw], steps: int) -> StageConfig:
    return stage.model_copy(update={"draws": tuple(draws), "steps": steps, "warmup_ratio": 0.0})


def test_the_language_stage_learns_and_leaves_the_tower_alone(network: VilaModel, encoder: Encoder) -> None:
    pools = {source: pool(encoder, source, 2) for source in ("attribute", "draw_things")}
    for one in pools.values():
        encode_pool(network, one)
    network.vision_tower.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    config = micro(tiny_u_stages()[1], [Draw(counts={source: 2}) for source in pools], 12)
    stage = Stage(network, config, pools, 0, loss=partial(language_loss, network, [False, True]))
    losses = [stage.advance()[0].item() for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
    changed = {name.split(".")[0] for name, value in network.state_dict().items() if not value.equal(before[name])}
    assert changed == {"llm", "mm_projector", "generation"}


def test_the_tower_stage_resumes_where_it_stopped(tokenizer_folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    pools = {"caption_things": pool(encoder, "caption_things", 4)}
    config = micro(tiny_u_stages()[0], [Draw(counts={"caption_things": 2})], 10)

    def new_stage() -> Stage:
        network = new_network(tokenizer_folder, "cpu", seed=0)
        training = new_tower_training(network)
        prepare = partial(training.draw_replacements, 2)
        return Stage(training, config, pools, 0, loss=partial(tower_loss, training, network), prepare=prepare)

    torch.manual_seed(0)
    whole = new_stage()
    expected = [whole.advance()[0].item() for _ in range(4)]
    torch.manual_seed(0)
    first = new_stage()
    losses = [first.advance()[0].item() for _ in range(2)]
    first.save(tmp_path / "state.pt")
    second = new_stage()
    second.resume(tmp_path / "state.pt")
    assert losses + [second.advance()[0].item() for _ in range(2)] == expected


def test_the_quality_of_the_tower_is_measured(network: VilaModel, encoder: Encoder) -> None:
    quality = tower_quality(new_tower_training(network), network, pool(encoder, "caption_things", 3))
    assert 0 < quality["psnr"] < 30
    assert all(0 < quality[f"codes_used_{depth}"] <= 3 * POSITIONS / CODES for depth in range(DEPTH))


@pytest.mark.slow
def test_a_run_writes_a_model_that_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages, one step each; the same call then only returns the scores."""
    monkeypatch.setattr("vila_train.tiny.vila_u.training.SINGLE", ("attribute",))
    one = Draw(counts={"caption_things": 1})
    tower, pretrain, sft = tiny_u_stages()
    recipe = (
        micro(tower, [one], 1),
        micro(pretrain, [one, Draw(counts={"draw_things": 1})], 1),
        micro(sft, [Draw(counts={"attribute": 1}), Draw(counts={"draw_nothing": 1})], 1),
    )
    out = tmp_path / "out"
    options = TinyOptions(out, tmp_path / "scratch", scale=0.0001, device="cpu", compile=False, workers=1)
    scores = train_tiny_u(options, recipe)
    assert scores["attribute"].total == 16
    assert {name for name in scores if name.startswith("drawing")} == {
        f"drawing: {name}" for name in ("color", "shape", "position", "count")
    }
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records if "begins" in record] == ["tower", "pretrain", "sft"]
    assert any("psnr" in record.get("validation", {}) for record in records)
    assert train_tiny_u(options, recipe) == scores
    drawn = vila.load(out / "vila-tiny-u", device="cpu").generate_image("a red circle", seed=0)
    assert np.asarray(drawn[0]).shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    with pytest.raises(ConfigError, match="random weights"):
        train_tiny_u(TinyOptions(out, tmp_path, device="cpu", init=out), recipe)
    later = replace(options, out=tmp_path / "later", init=out / "vila-tiny-u")
    train_tiny_u(later, recipe[2:])
    one, other = (vila.load(folder / "vila-tiny-u", device="cpu").network for folder in (out, later.out))
    changed = {name for name, value in one.state_dict().items() if not torch.equal(value, other.state_dict()[name])}
    assert changed
    assert not any(name.startswith("vision_tower") for name in changed)


def test_a_sheet_shows_drawings_and_what_is_right_in_them(model: Vila) -> None:
    from vila_train.tiny.vila_u.drawings import draw_samples

    drawings = draw_samples(model, 3, batch_size=2)
    assert [one.sample.kind for one in drawings] == [make_sample("test", "draw_things", i).kind for i in range(3)]
    assert drawing_sheet(drawings, columns=2).size == (2 * 208, 2 * 304)
