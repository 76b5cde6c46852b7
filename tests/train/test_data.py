"""Encoding of samples: labels, media positions, and the same inputs as at inference."""

import numpy as np
import pytest
import torch

import vila_core as vila
from vila_core.preprocess import preprocess_image
from vila_core.tiles import normalize
from vila_core.tokenizer import Tokenizer
from vila_train.labels import IGNORE_INDEX
from vila_train.tiny.data import Encoder, drawn_samples, make_shard, to_bytes
from vila_train.tiny.dataset import as_prompt
from vila_train.tiny.forward import exact_matches, hidden_states
from vila_train.tiny.model import IMAGE_SIZE, TOKENS_PER_PICTURE, make_tokenizer
from vila_train.tiny.pools import Pool, join
from vila_train.tiny.world import TASKS, make_sample
from vila_train.tiny.world.drawing import draw


@pytest.fixture(scope="module")
def model() -> vila.Vila:
    return vila.load(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def encoder(model: vila.Vila) -> Encoder:
    return Encoder(model.tokenizer, model.template, TOKENS_PER_PICTURE)


@pytest.mark.parametrize("source", [*TASKS, "caption_video"])
def test_only_the_answer_and_its_end_token_have_labels(source: str, micro_encoder: Encoder) -> None:
    sample = make_sample("train", source, 1)
    encoded = micro_encoder(sample)
    labelled = [position for position, label in enumerate(encoded.labels) if label != IGNORE_INDEX]
    assert labelled == list(range(labelled[0], labelled[-1] + 1))
    assert all(encoded.labels[position] == encoded.ids[position] for position in labelled)
    text = micro_encoder.tokenizer.decode([encoded.ids[position] for position in labelled], skip_special_tokens=False)
    assert text == f"{sample.answer}<|im_end|>"


def test_each_frame_takes_consecutive_positions_followed_by_a_newline(
    micro_encoder: Encoder, tokenizer: Tokenizer
) -> None:
    encoded = micro_encoder(make_sample("train", "motion", 0))
    assert len(encoded.places) == 8 * 4
    (newline,) = tokenizer.encode("\n")
    for frame in range(8):
        first = encoded.places[4 * frame]
        assert encoded.places[4 * frame : 4 * frame + 4] == list(range(first, first + 4))
        assert encoded.ids[first + 4] == newline
    assert not set(encoded.ids) & set(tokenizer.media_token_ids.values())


def test_pixels_match_inference(model: vila.Vila) -> None:
    (scene,) = make_sample("test", "word", 3).scenes
    (wanted,) = preprocess_image(draw(scene), model.config.pixels, model.config.preprocess, tile=True).pixels
    assert torch.equal(normalize(torch.from_numpy(to_bytes(scene, IMAGE_SIZE).copy()), model.config.pixels), wanted)


@pytest.mark.parametrize("source", ["chart", "pair", "in_context", "appearance"])
def test_training_and_inference_give_the_same_hidden_states(source: str, model: vila.Vila, encoder: Encoder) -> None:
    samples = drawn_samples("test", source, 0, 3)
    (batch,) = Pool([make_shard(samples, encoder, IMAGE_SIZE)], "cpu").in_order(3)
    with torch.no_grad():
        (hidden,) = hidden_states(model.network, [batch])
    for row, sample in enumerate(samples):
        seen = model.inspect(as_prompt(sample))
        length = len(seen.last_hidden)
        torch.testing.assert_close(hidden[row, :length], seen.last_hidden, atol=2e-4, rtol=1e-4)
        answer = int((batch.labels[row] != IGNORE_INDEX).nonzero()[0])
        assert answer == length, "the answer starts where the inference prompt ends"


def test_exact_match_in_one_pass_equals_exact_match_of_greedy_answers(model: vila.Vila, encoder: Encoder) -> None:
    samples = drawn_samples("test", "count", 0, 32)
    (batch,) = Pool([make_shard(samples, encoder, IMAGE_SIZE)], "cpu").in_order(32)
    replies = model.generate_batch([as_prompt(sample) for sample in samples], max_new_tokens=16)
    right = [reply == sample.answer for reply, sample in zip(replies, samples, strict=True)]
    (hidden,) = hidden_states(model.network, [batch])
    assert exact_matches(model.network, batch, hidden).tolist() == right
    assert any(right)
    assert not all(right), "the sample must contain right and wrong answers"


def test_the_embedded_model_answers_unseen_questions(model: vila.Vila) -> None:
    right: list[bool] = []
    for task in TASKS:
        samples = [make_sample("test", task, index) for index in range(600, 606)]
        replies = model.generate_batch([as_prompt(sample) for sample in samples], max_new_tokens=16)
        right += [reply == sample.answer for reply, sample in zip(replies, samples, strict=True)]
    assert np.mean(right) >= 0.9


def test_join_pads_batches_of_different_lengths(micro_pools: dict[str, Pool]) -> None:
    one, two = (next(micro_pools[source].in_order(2)) for source in ("attribute", "number"))
    joined = join([one, two])
    assert joined.ids.shape == joined.labels.shape == (4, max(one.ids.shape[1], two.ids.shape[1]))
    assert torch.equal(joined.ids[2:, : two.ids.shape[1]], two.ids)
    assert (joined.labels[:2, one.ids.shape[1] :] == IGNORE_INDEX).all()


def test_capitals_and_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    for text in ("HINT", "ZEBRA", "9041", "QXW"):
        assert [tokenizer.decode([token]) for token in tokenizer.encode(text)] == list(text)
    assert len(tokenizer.encode(" circle")) == 1


def test_training_the_tokenizer_again_gives_the_embedded_vocabulary(tokenizer: Tokenizer) -> None:
    assert make_tokenizer().get_vocab() == tokenizer.hf.get_vocab()
