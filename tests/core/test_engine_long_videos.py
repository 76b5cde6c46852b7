"""Long videos go through the vision tower in parts, while others are answered and their first frames are read."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import vila_core as vila
from vila_core.config import BasicVideoEncoderConfig, TSPVideoEncoderConfig
from vila_core.conversation import Prompt
from vila_core.encoders import BasicVideoEncoder, MediaEncoder, TSPVideoEncoder
from vila_core.engine.inputs import MediaPrompt
from vila_core.engine.media import Encoding, allot
from vila_core.engine.paged_runner import PagedRunner
from vila_core.engine.request import Handle
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError, MediaError
from vila_core.model import TILES_OF_PART, VilaModel
from vila_core.prompt import PreparedMedium
from vila_core.tiles import Tiles

FRAMES = 24
POOLS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "one pool": ((8, 1, 1),),
    "pool of 3": ((3, 1, 1),),
    "two pools": ((4, 1, 1), (12, 2, 2)),
}


def load(**engine: Any) -> vila.Vila:
    """Return a model whose answers end only when they are long enough. All share one network."""
    tiny = loaded()
    config = vila.EngineConfig(**engine)
    model = vila.Vila(
        tiny.network, tiny.tokenizer, tiny.template, config=tiny.config, limits=tiny.limits, engine=config
    )
    model.stop_token_ids = frozenset()
    return model


@cache
def loaded() -> vila.Vila:
    return vila.load("vila-tiny", device="cpu", num_video_frames=FRAMES)


def video(frames: int = FRAMES, seed: int = 0) -> vila.Video:
    pictures = np.random.default_rng(seed).integers(0, 256, (frames, 24, 24, 3), dtype=np.uint8)
    return vila.Video(pictures, frames=frames)


def picture(seed: int) -> vila.Image:
    return vila.Image(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8))


def submit(model: vila.Vila, prompt: Prompt, tokens: int = 8) -> tuple[Handle, MediaPrompt]:
    prepared = model.prepare(prompt)
    inputs = MediaPrompt(model.network, prepared, model.network.expand(prepared))
    return model.engine.submit(inputs, GenerationConfig(max_new_tokens=tokens)), inputs


@pytest.fixture
def use_encoder() -> Iterator[Callable[[MediaEncoder], None]]:
    """Let the network encode videos with another encoder, until the test is over."""
    network = loaded().network
    own = network.video_encoder

    def use(encoder: MediaEncoder) -> None:
        network.video_encoder = encoder

    yield use
    use(own)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs, in order: "tower n" (tiles), "read n" (tokens of a prompt), "step"."""
    seen: list[str] = []

    def record(owner: type, name: str, label: Callable[[Any], str]) -> None:
        function = getattr(owner, name)

        def call(self: Any, *args: Any) -> Any:
            seen.append(label(args))
            return function(self, *args)

        monkeypatch.setattr(owner, name, call)

    record(VilaModel, "tile_tokens", lambda args: f"tower {sum(map(len, args[0]))}")
    record(PagedRunner, "read", lambda args: f"read {sum(map(len, args[1]))}")
    record(PagedRunner, "step", lambda args: "step")
    return seen


def test_others_get_a_token_between_two_parts_of_a_long_video(events: list[str]) -> None:
    model = load(chunk_tiles=4, chunk_tokens=128)
    other, _ = submit(model, "Count to one hundred.", 400)
    for _ in range(3):
        model.engine.step()
    events.clear()
    long, _ = submit(model, [video(), "What happens?"])
    while long.state in {"queued", "reading its prompt"}:
        model.engine.step()
    towers = [place for place, event in enumerate(events) if event.startswith("tower")]
    assert [events[place] for place in towers] == ["tower 4"] * (FRAMES // 4)
    for place, following in pairwise(towers):
        assert "step" in events[place:following]
    assert max(int(event.split()[1]) for event in events if event.startswith("read")) <= 128
    other.cancel()


def test_the_first_frames_are_read_before_the_last_ones_are_encoded(events: list[str]) -> None:
    model = load(chunk_tiles=1, chunk_tokens=128)
    model.generate([video(), "What happens?"], max_new_tokens=1)
    towers, reads = ([n for n, event in enumerate(events) if event.startswith(kind)] for kind in ("tower", "read"))
    assert len(towers) > 2
    assert reads[0] < towers[1]
    assert reads[1] < towers[2]
    # Alone it gets more at once than among others, but does not run ahead of what is read.
    encoded = 0
    read = 0
    for event in events:
        kind, _, count = event.partition(" ")
        if kind == "tower":
            encoded += int(count)
            assert encoded * 37 <= read + 4 * 128 + 37 * TILES_OF_PART
        elif kind == "read":
            read += int(count)


@pytest.mark.parametrize(
    "engine",
    [
        {"chunk_tiles": 3, "chunk_tokens": 64},
        {"chunk_tiles": 8, "chunk_tokens": 333, "media_cache_bytes": 0},
        {"chunk_tiles": 64, "chunk_tokens": 64, "shares_prefixes": False},
        {"chunk_tiles": 1, "chunk_tokens": 4096, "media_cache_bytes": 0, "shares_prefixes": False},
    ],
    ids=str,
)
def test_answers_do_not_depend_on_the_parts(engine: dict[str, Any]) -> None:
    model = load(**engine)
    assert [one.token_ids for one in model.complete_batch(several(), max_new_tokens=8)] == answers_alone()
    assert [model.complete(prompt, max_new_tokens=8).token_ids for prompt in several()] == answers_alone()


def several() -> list[Prompt]:
    return [
        [video(), "What happens?"],
        [picture(1), "and", video(17, 1), "Compare them."],
        "Say something.",
        [video(9, 2), video(9, 2), picture(1), "?"],
    ]


@cache
def answers_alone() -> list[list[int]]:
    """Return the answers to each of `several` when media and prompts are not read in parts."""
    whole = load(chunk_tiles=10_000, chunk_tokens=10_000, shares_prefixes=False, media_cache_bytes=0)
    return [whole.complete(prompt, max_new_tokens=8).token_ids for prompt in several()]


@pytest.mark.parametrize("pools", [None, *POOLS.values()], ids=["own forward", *POOLS])
def test_other_encoders_answer_as_when_all_is_encoded_at_once(
    pools: tuple[tuple[int, int, int], ...] | None, events: list[str], use_encoder: Callable[[MediaEncoder], None]
) -> None:
    encoder = (
        Reversed(BasicVideoEncoderConfig(end_tokens="\n"))
        if pools is None
        else TSPVideoEncoder(TSPVideoEncoderConfig(pool_sizes=pools, end_tokens="\n"))
    )
    use_encoder(encoder)

    def answer(**engine: Any) -> list[int]:
        model = load(**engine)
        return model.complete([video(), "What happens?"], max_new_tokens=12).token_ids

    whole = answer(chunk_tiles=10_000, chunk_tokens=10_000)
    events.clear()
    assert answer(chunk_tiles=1, chunk_tokens=64) == whole
    assert sum(event.startswith("tower") for event in events) >= FRAMES // 8
    together = pools is None or len(pools) > 1
    assert together == (events[: FRAMES // 8] == ["tower 8"] * (FRAMES // 8))


@pytest.mark.parametrize("pools", [None, *POOLS.values()], ids=["basic", *POOLS])
@pytest.mark.parametrize("kind", ["video", "image"])
def test_parts_become_the_tokens_of_the_whole(
    kind: str, pools: tuple[tuple[int, int, int], ...] | None, use_encoder: Callable[[MediaEncoder], None]
) -> None:
    network = loaded().network
    if pools is not None:
        use_encoder(TSPVideoEncoder(TSPVideoEncoderConfig(pool_sizes=pools)))
    medium = PreparedMedium(kind, Tiles(torch.randn(FRAMES, 3, network.config.pixels.size, network.config.pixels.size)))
    parts = network.parts(medium)
    with torch.inference_mode():
        (whole,) = network.encode([medium])
        apart = network.encode(parts)
    assert list(map(len, apart)) == list(map(network.num_tokens, parts))
    assert torch.equal(torch.cat([part.tiles.pixels for part in parts]), medium.tiles.pixels)
    torch.testing.assert_close(torch.cat(apart), whole)


class Reversed(BasicVideoEncoder):
    """An encoder whose frames depend on one another."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens.flip(0))


class Padded(TSPVideoEncoder):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens) - tokens.mean()


@pytest.mark.parametrize(
    ("encoder", "group"),
    [
        (BasicVideoEncoder(BasicVideoEncoderConfig()), 1),
        (Reversed(BasicVideoEncoderConfig()), None),
        (TSPVideoEncoder(TSPVideoEncoderConfig(pool_sizes=((4, 2, 2),))), 4),
        (TSPVideoEncoder(TSPVideoEncoderConfig(pool_sizes=((1, 1, 1), (4, 2, 2)))), None),
        (Padded(TSPVideoEncoderConfig(pool_sizes=((4, 2, 2),))), None),
    ],
    ids=["basic", "own forward", "one pool", "two pools", "pool with an own forward"],
)
def test_which_frames_become_tokens_together(encoder: MediaEncoder, group: int | None) -> None:
    assert encoder.frame_group == group


def tokens_in_memory(inputs: MediaPrompt) -> int:
    return sum(part.tokens is not None for part in inputs._parts)


def test_media_tokens_are_released_once_they_are_read() -> None:
    model = load(chunk_tiles=2, chunk_tokens=128, media_cache_bytes=0)
    handle, inputs = submit(model, [video(), "What happens?"], 20)
    most = 0
    while handle.state in {"queued", "reading its prompt"}:
        model.engine.step()
        most = max(most, tokens_in_memory(inputs))
    assert most < FRAMES // TILES_OF_PART
    assert tokens_in_memory(inputs) == 0  # while it is answered, and its handle is alive
    handle.result()


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_media_tokens_of_a_request_that_ends_early_are_released(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(chunk_tiles=1, chunk_tokens=64, media_cache_bytes=0)
    handle, inputs = submit(model, [video(), "?"])
    while not tokens_in_memory(inputs):
        model.engine.step()
    gc.collect()
    held = [weakref.ref(part.tokens) for part in inputs._parts if part.tokens is not None]
    if how == "cancelled":
        handle.cancel()
    else:
        monkeypatch.setattr(PagedRunner, "read", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            handle.result()
    gc.collect()
    assert tokens_in_memory(inputs) == 0
    assert all(tokens() is None for tokens in held)
    assert all(part.encoding is None for part in inputs._parts)


def test_two_prompts_share_a_video_that_is_being_encoded(events: list[str]) -> None:
    model = load(chunk_tiles=1, chunk_tokens=128, media_cache_bytes=0, shares_prefixes=False)
    answers = model.complete_batch([[video(8), "What happens?"], ["Look:", video(8), "What is it?"]], max_new_tokens=4)
    assert sum(int(event.split()[1]) for event in events if event.startswith("tower")) == 8
    fresh = load(shares_prefixes=False)
    for answer, prompt in zip(answers, (["", "What happens?"], ["Look:", "What is it?"]), strict=True):
        alone = fresh.complete([*prompt[:-1], video(8), prompt[-1]] if prompt[0] else [video(8), prompt[1]],
                               max_new_tokens=4)  # fmt: skip
        assert answer.token_ids == alone.token_ids


def test_a_preempted_request_encodes_again_and_answers_the_same() -> None:
    language = loaded().config.language_model
    page = 64 * 2 * 4 * language.num_hidden_layers * language.num_key_value_heads * language.head_dim
    prompts: list[Prompt] = [[video(8, seed), "Describe."] for seed in range(3)]
    alone = [load().complete(prompt, max_new_tokens=70).token_ids for prompt in prompts]
    model = load(cache_bytes=18 * page, media_cache_bytes=0, shares_prefixes=False, chunk_tiles=3)
    handles = [submit(model, prompt, 70)[0] for prompt in prompts]
    assert [handle.result().token_ids for handle in handles] == alone
    assert model.engine.stats().preemptions > 0


def test_a_picture_does_not_wait_for_a_long_video(events: list[str]) -> None:
    model = load(chunk_tiles=4, chunk_tokens=256)
    other, _ = submit(model, "Count to one hundred.", 400)
    model.engine.step()
    long, _ = submit(model, [video(), "What happens?"])
    model.engine.step()
    short, _ = submit(model, [picture(0), "What is it?"], 1)
    short.result()
    assert long.state == "reading its prompt"
    long.result()
    other.cancel()


def test_pictures_do_not_keep_a_long_video_waiting() -> None:
    model = load(chunk_tiles=2, chunk_tokens=256)
    long, _ = submit(model, [video(), "What happens?"], 500)
    for seed in range(40):
        submit(model, [picture(seed), "?"], 1)
        model.engine.step()
    assert long.state == "answering"
    long.cancel()


def test_a_video_that_fails_in_the_middle_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(chunk_tiles=4, chunk_tokens=128, media_cache_bytes=0)
    prompts: list[Prompt] = [[video(), "What happens?"], [picture(0), "What is it?"]]
    alone = model.complete(prompts[1], max_new_tokens=4).token_ids
    tile_tokens, calls = VilaModel.tile_tokens, list[int]()

    def fail(self: VilaModel, tiles: Sequence[Tiles], *at_once: int) -> torch.Tensor:
        if sum(map(len, tiles)) > 1:
            calls.append(len(tiles))
            if len(calls) > 1:
                raise MediaError("This video is broken.")
        return tile_tokens(self, tiles, *at_once)

    monkeypatch.setattr(VilaModel, "tile_tokens", fail)
    (broken, _), (sound, _) = submit(model, prompts[0]), submit(model, prompts[1], 4)
    with pytest.raises(MediaError, match="broken"):
        broken.result()
    assert sound.result().token_ids == alone
    stats = model.engine.stats()
    assert (stats.pages_used, stats.reading, stats.answering) == (0, 0, 0)


def test_too_little_memory_for_the_tower_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load()

    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(VilaModel, "tile_tokens", fail)
    with pytest.raises(GenerationError, match="too little memory"):
        model.generate([picture(0), "?"], max_new_tokens=1)


def encodings(*tiles: int) -> list[Encoding]:
    return [Encoding(PreparedMedium("video", Tiles(torch.zeros(count, 3, 1, 1)))) for count in tiles]


@pytest.mark.parametrize(
    ("waiting", "room", "expected"),
    [
        ([[8, 8, 8]], 8, [[8, 0, 0]]),
        ([[8, 8, 8]], 20, [[8, 8, 4]]),
        ([[8, 8], [1]], 8, [[7, 0], [1]]),
        ([[8, 8], [1], [1]], 4, [[2, 0], [1], [1]]),
        ([[1], [8, 8]], 8, [[1], [7, 0]]),
        ([[8], [6], [5]], 8, [[4], [0], [4]]),
        ([[8], [8]], 1, [[1], [0]]),
        ([[3], [2]], 1, [[1], [0]]),
        ([[], [3]], 2, [[], [2]]),
        ([[0, 0], [3]], 2, [[0, 0], [2]]),
        ([], 4, []),
        ([[13]] * 6, 64, [[13], [13], [13], [13], [12], [0]]),
    ],
)
def test_shares_of_the_tower(waiting: list[list[int]], room: int, expected: list[list[int]]) -> None:
    prompts = [encodings(*tiles) for tiles in waiting]
    found = allot(prompts, room)
    assert [[found.get(one, 0) for one in of_prompt] for of_prompt in prompts] == expected
    assert 0 not in found.values()


def test_a_shared_encoding_is_counted_once() -> None:
    (one,) = encodings(6)
    assert allot([[one], [one]], 4) == {one: 4}
    assert allot([[one], [one, one]], 40) == {one: 6}
