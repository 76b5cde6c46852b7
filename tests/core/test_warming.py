"""Warming up: all sizes that have graphs come, nothing is left behind, and answers stay the same."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.drawing_heads import TINY_KINDS, HeadModule, SmallHead
from tests.core.small_decoder import small_decoder

import vila_core
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import TextPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.warming import USUAL, step_sizes, warm_up
from vila_core.errors import GenerationError
from vila_core.language import paged_prefill
from vila_core.language.capturing import capture
from vila_core.model import VilaModel
from vila_core.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model() -> vila_core.Vila:
    return vila_core.load("vila-tiny", device="cpu", engine=EngineConfig(max_batch=3, chunk_tokens=64))


def asked(model: vila_core.Vila, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that will hold the lengths of the prompts that come together."""
    found: list[list[int]] = []
    answer_all = Engine.answer_all

    def record(engine: Engine, prompts: Sequence[Any], config: GenerationConfig) -> object:
        found.append([len(prompt) for prompt in prompts])
        return answer_all(engine, prompts, config)

    monkeypatch.setattr(Engine, "answer_all", record)
    return found


def state_of(model: vila_core.Vila) -> tuple[object, ...]:
    """Return the counters of the engine and what caches hold."""
    media = model._media
    return model.engine.stats(), dict(media._kept._kept), media._kept._bytes, media._begun, dict(media._samples)


def test_nothing_is_left_behind(model: vila_core.Vila) -> None:
    prompt = [vila_core.Image(ROOT / "examples/media/scene.png"), "What is in the picture?"]
    answer = model.generate(prompt, max_new_tokens=8)
    cached = model.engine.stats().cached_tokens
    model.engine.clear_cache()
    model._media.clear()
    before = state_of(model)
    numbers = random.getstate()
    model.warm_up()
    assert state_of(model) == before
    assert random.getstate() == numbers, "warming up leaves the seeds of later answers as they were"
    stats = model.engine.stats()
    assert (stats.pages_kept, stats.pages_used, stats.cached_tokens) == (0, 0, cached)
    assert model.generate(prompt, max_new_tokens=8) == answer


def test_pictures_come_in_all_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vila_core.load("vila-tiny", device="cpu", engine=EngineConfig(max_batch=3))
    encoded: list[int] = []
    tile_tokens = VilaModel.tile_tokens

    def record(network: VilaModel, tiles: Sequence[Any], *rest: Any) -> torch.Tensor:
        encoded.append(sum(map(len, tiles)))
        return tile_tokens(network, tiles, *rest)

    monkeypatch.setattr(VilaModel, "tile_tokens", record)
    with model.engine.uncounted():
        model._warm_up_pictures(all_sizes=True)
    assert encoded == [1, 2, 3, 4, 6, 8, 3], "as many as have graphs, and one for each of as many prompts as rows"


@pytest.mark.parametrize("max_batch", [1, 2])
def test_a_model_that_draws(max_batch: int) -> None:
    model = vila_core.load("vila-tiny", device="cpu", engine=EngineConfig(max_batch=max_batch))
    head = SmallHead(model.config.language_model.hidden_size, depth=2, codes=50, kinds=TINY_KINDS)
    model.network.generation = HeadModule(head)
    model.generate("Hello", max_new_tokens=1)
    model.engine.clear_cache()
    before = state_of(model)
    picture = model.generate_image("a cat", seed=3, guidance=1.0)[0].tobytes()
    model.engine.clear_cache()
    model.warm_up()
    assert state_of(model) == before
    assert not model.engine._known_prompts._hidden
    assert model.generate_image("a cat", seed=3, guidance=1.0)[0].tobytes() == picture


def test_the_embedded_model_warms_up_in_all_sizes(model: vila_core.Vila) -> None:
    model.generate("Hello", max_new_tokens=1)  # makes the cache
    before = model.engine.stats()
    warm_up(model.engine, model.network.llm, model.tokenizer.encode("some words"), all_sizes=True)
    assert model.engine.stats() == before


def test_all_sizes_come_up_to_the_limits(model: vila_core.Vila, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(model, monkeypatch)
    configs = [GenerationConfig(), GenerationConfig(temperature=1, top_p=0.5)]
    warm_up(model.engine, model.network.llm, model.tokenizer.encode("some words"), configs, all_sizes=True)
    assert found[:2] == [[1], [1]], "greedy and sampled"
    prompts, steps = found[2:-6], found[-6:]
    assert steps == [[1], [1], [1, 1], [1, 1], [1, 1, 1], [1, 1, 1]]
    alone_or_two = [[16], [8, 8], [32], [16, 16], [64], [32, 32]]
    alone = [[96], [128], [160], [192], [256]]  # up to four chunks of 64
    short = [lengths for lengths in (*alone_or_two, *alone) for _ in range(2)]
    assert prompts[: len(short)] == short
    known = 1024 + 64
    assert prompts[len(short) :] == [[known], *([known + length for length in lengths] for lengths in short)]


def test_the_beginning_of_a_long_prompt_is_not_read_again(
    model: vila_core.Vila, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    runner = model.engine._use_runner()
    read_chunk = runner.read

    def record(requests: Sequence[Any], embeds: Sequence[torch.Tensor]) -> torch.Tensor:
        read.extend(map(len, embeds))
        return read_chunk(requests, embeds)

    monkeypatch.setattr(runner, "read", record)
    warm_up(model.engine, model.network.llm, model.tokenizer.encode("some words"), USUAL[:1], all_sizes=True)
    of_long_prompts = read[read.index(1, 1) - 10 : read.index(1, 1)]
    assert of_long_prompts == [96, 96, 128, 128, 160, 160, 192, 192, 256, 256]


def test_sizes_without_room_are_left_out(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    config = EngineConfig(max_batch=2, chunk_tokens=128, cache_bytes=1 << 17)
    model = vila_core.load("vila-tiny", device="cpu", engine=config)
    found = asked(model, monkeypatch)
    warm_up(model.engine, model.network.llm, model.tokenizer.encode("some words"), all_sizes=True)
    room = model.engine.stats().pages * 64
    assert room < 128, "so that 128 tokens have no room"
    assert max(max(lengths) for lengths in found) == 48
    assert not [one for one in recwarn if "Warming up" in str(one.message)]


def test_many_rows_have_all_graphs() -> None:
    assert step_sizes(1) == [1]
    assert step_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert step_sizes(600)[-3:] == [256, 512, 600]


def test_a_failure_is_said(model: vila_core.Vila, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise GenerationError("too little memory")

    monkeypatch.setattr(model.engine._use_runner(), "step", fail)
    with pytest.warns(UserWarning, match=r"Warming up failed for 1 prompts of 1 tokens: too little memory"):
        warm_up(model.engine, model.network.llm, [5, 6], USUAL[:1], all_sizes=False)


@pytest.mark.parametrize("after", [1, 4])
def test_ctrl_c_leaves_nothing_behind(model: vila_core.Vila, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    answer = model.generate("How are you?", max_new_tokens=8)
    model.engine.clear_cache()
    steps = iter(range(after))
    step = Engine._step

    def interrupted(engine: Engine) -> bool:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(engine)

    monkeypatch.setattr(Engine, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.warm_up()
    monkeypatch.undo()
    stats = model.engine.stats()
    assert stats.pages_used == stats.pages_kept == stats.cached_tokens == 0
    assert stats.queued == stats.reading == stats.answering == 0
    assert model.generate("How are you?", max_new_tokens=8) == answer


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_warm_engine_captures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = small_decoder(max_length=2048)
    tokenizer: Tokenizer = vila_core.load("vila-tiny", device="cpu").tokenizer
    engine = Engine(decoder, tokenizer, frozenset(), EngineConfig(max_batch=8, chunk_tokens=256, cache_bytes=64 << 20))
    captured: list[object] = []

    def count(call: Any, *args: Any) -> Any:
        captured.append(call)
        return capture(call, *args)

    monkeypatch.setattr("vila_core.language.paged_graphs.capture", count)
    monkeypatch.setattr(paged_prefill, "capture", count)
    warm_up(engine, decoder, range(20, 300), all_sizes=True)
    assert captured
    captured.clear()
    turns = [list(range(20, 300)) * 4]  # a chat, whose beginning is in the cache
    for rows in range(1, 9):
        prompts = [TextPrompt(decoder, range(40 + row, 60 + row)) for row in range(rows)]
        for config in USUAL:
            engine.answer_all(prompts, config.model_copy(update={"max_new_tokens": 4, "seed": 0}))
        turns.append([*turns[-1], *range(50, 50 + 10 * rows)])
        for chats in (1, 2):
            turn = [TextPrompt(decoder, [*turns[-1], *[90 + chat] * 20]) for chat in range(chats)]
            engine.answer_all(turn, GenerationConfig(max_new_tokens=2))
    assert engine.stats().cached_tokens > 5000
    assert not captured, "everything has been captured before"
