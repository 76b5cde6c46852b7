"""Speculative decoding by prompt lookup: the same tokens as without, in fewer steps."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from tests.core.answering import PAGE_BYTES, Text, all_pages_are_free, answer, some_ids
from tests.core.steered import SteeredDecoder

from vila_core.engine.answer import Generated
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import EmbeddedPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.engine.lookup import PromptLookup
from vila_core.engine.prefix import MediaSpan
from vila_core.engine.request import Request
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError
from vila_core.language.decoder import Decoder
from vila_core.language.paged_cache import PagedCache
from vila_core.language.paged_step import TorchPagedStep
from vila_core.language.read_ahead import TokensAhead, read_as_chunks
from vila_core.tokenizer import Tokenizer

ENGINE = EngineConfig(cache_bytes=60 * PAGE_BYTES, max_batch=8)


@pytest.fixture
def engine(decoder: Decoder, tokenizer: Tokenizer) -> Engine:
    return Engine(decoder, tokenizer, frozenset(), ENGINE)


def config(lookup: int = 10, **settings: Any) -> GenerationConfig:
    """Settings that draft after every token that has been there before, often wrongly."""
    defaults = {"max_new_tokens": 60, "max_matching_ngram_size": 1}
    return GenerationConfig(prompt_lookup_num_tokens=lookup, **{**defaults, **settings})


def plain(given: GenerationConfig) -> GenerationConfig:
    return given.model_copy(update={"prompt_lookup_num_tokens": 0})


def drafted(ids: Sequence[int], most: int = 8, *, max_ngram: int = 3, stops: Sequence[int] = ()) -> list[int]:
    return PromptLookup(ids, most, max_ngram, frozenset(stops)).draft(most)


@pytest.mark.parametrize(
    ("ids", "draft"),
    [
        ([], []),
        ([5], []),
        ([5, 6, 7], []),
        ([5, 6, 7, 8, 9, 5, 6], [7, 8, 9, 5, 6, 7, 8, 9]),  # continues beyond its own end
        ([5, 5], []),
        ([5, 5, 5], [5] * 8),
        ([1, 2, 3, 9, 1, 2, 4, 9, 1, 2], [4, 9, 1, 2, 4, 9, 1, 2]),  # the last occurrence
        ([7, 1, 2, 3, 8, 9, 2, 3, 5, 6, 1, 2, 3], [8, 9, 2, 3, 5, 6, 1, 2]),  # the longest n-gram
        ([4, 3, 9, 9, 8, 3], []),  # a single token says too little
        ([4, 3, 9, 9, 4, 3], [9, 9, 4, 3, 9, 9, 4, 3]),  # two do, if three are not found
        ([1, 2, -1, -1, 3, 1, 2], []),  # media are not drafted
        ([1, 2, 6, -1, 3, 1, 2], [6]),
        ([-1, -1, -1, -1], []),
        ([-1, 5, -1], []),
    ],
)
def test_drafts(ids: list[int], draft: list[int]) -> None:
    assert drafted(ids) == draft


def test_a_draft_ends_before_a_stop_token() -> None:
    assert drafted([5, 6, 7, 8, 9, 5, 6], stops=[9]) == [7, 8]
    assert drafted([5, 6, 7, 8, 9, 5, 6], stops=[7]) == []


def test_a_draft_is_as_long_as_the_last_were_right() -> None:
    lookup = PromptLookup([1] * 9, 16, 3, frozenset())
    assert len(lookup.draft(16)) == 16
    lengths: list[int] = []
    for accepted in (0, 1, 4, 3, 8):
        lookup.learn(len(lookup.draft(16)), accepted)
        lengths.append(len(lookup.draft(16)))
    assert lengths == [1, 4, 10, 4, 9]
    assert lookup.draft(3) == [1, 1, 1]


def test_the_index_follows_the_answer() -> None:
    lookup = PromptLookup([1, 2, 3, 4], 4, 2, frozenset())
    for token_id in (9, 1, 2):
        lookup.push(token_id)
    assert lookup.draft(4) == [3, 4, 9, 1]
    for token_id in (8, 1, 2):
        lookup.push(token_id)
    assert lookup.draft(4) == [8, 1, 2, 8]


def test_a_single_token_can_be_looked_up() -> None:
    assert drafted([4, 3, 9, 9, 8, 3], max_ngram=1) == [9, 9, 8, 3, 9, 9, 8, 3]


def test_drafts_pause_after_several_were_wrong() -> None:
    lookup = PromptLookup([1] * 9, 16, 3, frozenset())
    found: list[bool] = []
    for step in range(60):
        draft = lookup.draft(16)
        found.append(bool(draft))
        if draft:
            lookup.learn(len(draft), accepted=step == 59)
    assert [step for step, drafted in enumerate(found) if drafted] == [0, 1, 6, 15, 32, 49]
    lookup.learn(1, 1)
    assert lookup.draft(16)


def test_tokens_of_media_are_not_looked_up(decoder: Decoder) -> None:
    ids = [*range(10, 20), *[7] * 30, *range(20, 25), 7]
    prompt = Text(decoder, ids, [MediaSpan(range(10, 40), b"x" * 20)])
    lookup = PromptLookup.of(prompt, config(max_matching_ngram_size=3), frozenset())
    assert lookup is not None
    assert lookup.draft(5) == []
    lookup.push(11)
    lookup.push(12)
    assert lookup.draft(10) == [13, 14, 15, 16, 17, 18, 19]


def repetitive(seed: int, length: int = 90) -> list[int]:
    part = some_ids(7 + seed % 5, seed)
    return (part * length)[:length]


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "seed": 5},
    "hot": {"temperature": 2.0, "seed": 6, "top_k": 50, "top_p": 0.9},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    "a bias": {"logit_bias": {5: 4.0, 6: 4.0, 7: 4.0}, "temperature": 0.5, "seed": 1},
    "everything": {
        "temperature": 1.1, "seed": 9, "top_k": 30, "top_p": 0.95, "repetition_penalty": 1.1, "presence_penalty": -0.5,
        "frequency_penalty": -0.2, "logit_bias": {3: 2.0}, "logprobs": True, "top_logprobs": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_answers_are_those_without_drafts(decoder: Decoder, tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    prompts = [Text(decoder, repetitive(seed)) for seed in range(4)]
    prompts += [Text(decoder, some_ids(20 + seed, seed)) for seed in range(2)]
    given = config(**settings, max_new_tokens=40)
    fresh = Engine(decoder, tokenizer, frozenset({0}), ENGINE)
    expected = [answer(fresh, prompt, plain(given)) for prompt in prompts]
    for batch in (1, 6):
        engine = Engine(decoder, tokenizer, frozenset({0}), ENGINE)
        got = [
            one
            for start in range(0, len(prompts), batch)
            for one in engine.answer_all(prompts[start : start + batch], given)
        ]
        assert [one.token_ids for one in got if isinstance(one, Generated)] == [one.token_ids for one in expected]
        for one, other in zip(got, expected, strict=True):
            assert isinstance(one, Generated)
            assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
            assert [(step.token_id, len(step.top)) for step in one.logprobs] == [
                (step.token_id, len(step.top)) for step in other.logprobs
            ]
            for step, same in zip(one.logprobs, other.logprobs, strict=True):
                assert step.logprob == pytest.approx(same.logprob, abs=1e-4)
        stats = engine.stats()
        assert stats.drafted_tokens > 0
        assert 0 <= stats.accepted_tokens <= stats.drafted_tokens
        assert sum(one.accepted_tokens for one in got if isinstance(one, Generated)) == stats.accepted_tokens
        assert all_pages_are_free(engine)


def steps_of(engine: Engine, prompt: Text, given: GenerationConfig) -> tuple[Generated, int]:
    handle, steps = engine.submit(prompt, given), 0
    while not handle.has_ended:
        engine.step()
        steps += 1
    return handle.result(), steps


def test_an_answer_that_repeats_itself_takes_fewer_steps(engine: Engine, decoder: Decoder) -> None:
    prompt = Text(decoder, repetitive(1))
    loop = config(logit_bias={5: 100}, max_new_tokens=61)  # 5 5 5 …
    slow, many = steps_of(engine, prompt, plain(loop))
    fast, few = steps_of(engine, prompt, loop)
    assert fast.token_ids == slow.token_ids == [5] * 61
    assert many >= 60
    assert few <= 12
    assert fast.accepted_tokens >= 48
    assert (slow.drafted_tokens, slow.accepted_tokens) == (0, 0)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 11, 12, 13])
def test_an_answer_is_never_longer_than_asked(engine: Engine, decoder: Decoder, max_new_tokens: int) -> None:
    got = answer(engine, Text(decoder, repetitive(1)), config(logit_bias={5: 100}, max_new_tokens=max_new_tokens))
    assert got.token_ids == [5] * max_new_tokens
    assert got.finish_reason == "length"


def test_an_answer_to_the_end_of_the_context(engine: Engine, decoder: Decoder) -> None:
    ids = some_ids(decoder.config.max_length - 20)
    got = answer(engine, Text(decoder, ids), config(logit_bias={5: 100}, max_new_tokens=900))
    assert got.token_ids == [5] * 20
    assert all_pages_are_free(engine)


def test_a_stop_token_and_a_stop_string_amid_a_draft(decoder: Decoder, tokenizer: Tokenizer) -> None:
    prompts = [Text(decoder, repetitive(seed)) for seed in range(4)]
    without = Engine(decoder, tokenizer, frozenset(), ENGINE)
    for prompt in prompts:
        long = answer(without, prompt, plain(config()))
        stop_token, text = long.token_ids[30], tokenizer.decode(long.token_ids[20:24])
        for settings in ({"stop_token_ids": [stop_token]}, {"stop": [text]} if text else {}):
            given = config(**settings)
            expected = answer(without, prompt, plain(given))
            engine = Engine(decoder, tokenizer, frozenset(), ENGINE)
            got = answer(engine, prompt, given)
            assert (got.token_ids, got.text, got.finish_reason) == (
                expected.token_ids,
                expected.text,
                expected.finish_reason,
            )
            assert all_pages_are_free(engine)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5, "seed": 3, "frequency_penalty": 0.5}])
def test_a_grammar_is_followed(decoder: Decoder, tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    schema = {
        "type": "array",
        "items": {"enum": ["red apple", "green apple", "red pear"]},
        "minItems": 4,
        "maxItems": 8,
    }
    engine = Engine(decoder, tokenizer, frozenset({0}), ENGINE)
    for seed in range(4):
        prompt = Text(decoder, [*some_ids(9, seed), *tokenizer.encode('["red apple", "green apple", "red pear"]')])
        given = config(json_schema=schema, max_new_tokens=150, **settings)
        expected = answer(engine, prompt, plain(given))
        got = answer(engine, prompt, given)
        assert (got.token_ids, got.text) == (expected.token_ids, expected.text)
        assert got.accepted_tokens > 0


def test_pieces_of_a_stream_come_one_by_one(engine: Engine, decoder: Decoder) -> None:
    given = config(logprobs=True)
    pieces = list(engine.submit(Text(decoder, repetitive(2)), given))
    expected = answer(engine, Text(decoder, repetitive(2)), plain(given))
    assert [piece.token_id for piece in pieces] == expected.token_ids
    assert "".join(piece.text for piece in pieces) == expected.text
    assert [piece.logprobs is not None for piece in pieces] == [True] * 60
    assert [piece.finish_reason for piece in pieces] == [*[None] * 59, "length"]


def test_neighbours_with_and_without_drafts(decoder: Decoder, tokenizer: Tokenizer) -> None:
    prompts = [Text(decoder, repetitive(seed, 40 + 9 * seed)) for seed in range(8)]
    configs = [config(lookup=(0, 3, 10, 64)[n % 4], temperature=0.7 * (n % 3), seed=n) for n in range(8)]
    engine = Engine(decoder, tokenizer, frozenset(), ENGINE)
    handles = []
    for prompt, given in zip(prompts, configs, strict=True):
        handles.append(engine.submit(prompt, given))
        engine.step()
    together = [handle.result() for handle in handles]
    fresh = Engine(decoder, tokenizer, frozenset(), ENGINE)
    assert [one.token_ids for one in together] == [
        answer(fresh, prompt, plain(given)).token_ids for prompt, given in zip(prompts, configs, strict=True)
    ]
    assert [one.drafted_tokens for one in together[::4]] == [0, 0]


def test_requests_that_give_up_their_pages(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(decoder, tokenizer, frozenset(), EngineConfig(cache_bytes=6 * PAGE_BYTES))
    prompts = [Text(decoder, repetitive(n, 50 + n)) for n in range(4)]
    given = config(max_new_tokens=150, temperature=0.6, seed=3, frequency_penalty=0.1)
    outcomes = engine.answer_all(prompts, given)
    assert engine.stats().preemptions > 0
    assert engine.stats().accepted_tokens > 0
    assert all_pages_are_free(engine)
    alone = [answer(engine, prompt, plain(given)).token_ids for prompt in prompts]
    assert [one.token_ids for one in outcomes if isinstance(one, Generated)] == alone


def test_a_cache_without_a_page_to_spare(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(decoder, tokenizer, frozenset(), EngineConfig(cache_bytes=3 * PAGE_BYTES))
    got = answer(engine, Text(decoder, repetitive(1, 60)), config(64, logit_bias={5: 100}, max_new_tokens=130))
    assert got.token_ids == [5] * 130
    assert all_pages_are_free(engine)


def test_pages_of_an_answer_with_refused_drafts_are_found_and_right(engine: Engine, decoder: Decoder) -> None:
    ids = repetitive(3, 100)
    first = answer(engine, Text(decoder, ids), config(temperature=1.0, seed=2, max_new_tokens=100))
    assert first.drafted_tokens > first.accepted_tokens
    following = [*ids, *first.token_ids, *some_ids(9, seed=2)]
    cached = answer(engine, Text(decoder, following), plain(config()))
    assert cached.cached_tokens == 192
    engine.clear_cache()
    assert answer(engine, Text(decoder, following), plain(config())).token_ids == cached.token_ids


def test_cancelling_amid_drafts(engine: Engine, decoder: Decoder) -> None:
    prompts = [Text(decoder, repetitive(seed)) for seed in range(4)]
    handles = [engine.submit(prompt, config()) for prompt in prompts]
    for _ in range(3):
        engine.step()
    handles[1].cancel()
    engine.step()
    stream = iter(handles[2])
    next(stream)
    stream.close()
    for number in (1, 2):
        with pytest.raises(GenerationError, match="cancelled"):
            handles[number].result()
    got = [handles[number].result().token_ids for number in (0, 3)]
    assert got == [answer(engine, prompts[number], plain(config())).token_ids for number in (0, 3)]
    assert all_pages_are_free(engine)


def test_threads_with_drafts(engine: Engine, decoder: Decoder) -> None:
    prompts = [Text(decoder, repetitive(seed)) for seed in range(6)]
    answers: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        answers[number] = answer(engine, prompts[number], config(10 * (number % 2))).token_ids

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[n] for n in range(6)] == [answer(engine, prompt, plain(config())).token_ids for prompt in prompts]


def test_values_that_stop_being_finite_amid_a_draft(engine: Engine, decoder: Decoder) -> None:
    calls = 0
    logits = decoder.logits

    def fail(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += len(hidden) > 1
        found = logits(hidden)
        return torch.full_like(found, torch.nan) if calls == 4 and len(hidden) > 1 else found

    given = config(logit_bias={5: 100})
    with mock.patch.object(decoder, "logits", fail), pytest.raises(GenerationError, match="not finite"):
        answer(engine, Text(decoder, repetitive(1)), given)
    assert answer(engine, Text(decoder, repetitive(1)), given).token_ids == [5] * 60
    assert all_pages_are_free(engine)


def test_a_model_with_caches_of_its_own_is_refused(decoder: Decoder, tokenizer: Tokenizer) -> None:
    steered = SteeredDecoder(decoder, lambda logits, _history, _number: logits)
    engine = Engine(steered, tokenizer, frozenset(), EngineConfig(max_batch=4))
    with pytest.raises(GenerationError, match=r"prompt_lookup_num_tokens is not available for .* SteeredDecoder"):
        engine.submit(Text(decoder, some_ids(9)), config())
    assert len(answer(engine, Text(decoder, some_ids(9)), plain(config())).token_ids) == 60


def test_a_prompt_without_ids_drafts_from_its_answer(engine: Engine, decoder: Decoder) -> None:
    prompt = EmbeddedPrompt(decoder.embed(torch.tensor(some_ids(30))).detach())
    got = answer(engine, prompt, config(logit_bias={5: 100}))
    assert got.token_ids == [5] * 60
    assert got.accepted_tokens > 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_lookup_num_tokens": -1}, "'prompt_lookup_num_tokens' must be 0 or more"),
        ({"prompt_lookup_num_tokens": 65}, "'prompt_lookup_num_tokens' must be 64 or less"),
        ({"prompt_lookup_num_tokens": 2.5}, "'prompt_lookup_num_tokens'"),
        ({"prompt_lookup_num_tokens": None}, "'prompt_lookup_num_tokens'"),
        ({"max_matching_ngram_size": 0}, "'max_matching_ngram_size' must be 1 or more"),
        ({"max_matching_ngram_size": 99}, "'max_matching_ngram_size' must be 16 or less"),
        ({"speculative_config": {"method": "ngram"}}, "prompt_lookup_num_tokens, such as 10"),
        ({"assistant_model": "x"}, "Draft models are not supported"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        GenerationConfig.model_validate(settings)


@dataclass(frozen=True)
class Prompts:
    """Three rows of a cache, read up to different positions."""

    cache: PagedCache
    table: torch.Tensor
    starts: list[int]


def read_prompts(decoder: Decoder) -> Prompts:
    cache = PagedCache.allocate(
        decoder.config, 12, page_size=16, device=torch.device("cpu"), dtype=decoder.model.norm.weight.dtype
    )
    table, starts = torch.tensor([[3, 0, 0], [1, 7, 0], [2, 5, 9]]), [5, 16, 40]  # later pages belong to others
    for row, length in zip(table, starts, strict=True):
        embeds = decoder.embed(torch.tensor([some_ids(length, length)]))
        decoder(embeds, positions=torch.arange(length)[None], cache=cache.rows(row[None]).up_to(length))
    return Prompts(cache, table, starts)


@torch.inference_mode()
@pytest.mark.parametrize("counts", [(4, 1, 3), (1, 1, 1), (2, 5, 7), (1, 9, 2)])
def test_drafts_read_as_chunks_are_drafts_read_as_rows(decoder: Decoder, counts: tuple[int, ...]) -> None:
    ids = [some_ids(count, 90 + count) for count in counts]
    ours, chunks = read_prompts(decoder), read_prompts(decoder)
    ahead = TokensAhead(ids, ours.starts)
    hidden = read_as_chunks(decoder, chunks.cache, chunks.table, ahead)
    step = TorchPagedStep(decoder, ours.cache, mock.Mock(table=ours.table))
    device = torch.device("cpu")
    embeds = decoder.embed(ahead.flat_ids(device))[:, None]
    expected = step._hidden(ahead.rows(device), ahead.positions(device), embeds)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(chunks.cache.keys, ours.cache.keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(chunks.cache.values, ours.cache.values, rtol=1e-4, atol=1e-4)


def test_what_a_draft_was_right_about() -> None:
    ahead = TokensAhead([[4, 5, 6], [7], [1, 2, 3]], [0, 9, 3])
    assert ahead.agreed([5, 8, 9, 3, 7, 7, 7]) == [range(2), range(3, 4), range(4, 5)]
    assert ahead.agreed([5, 6, 9, 3, 2, 3, -1]) == [range(3), range(3, 4), range(4, 7)]
    assert ahead.agreed([-1, 6, 9, 3, 2, 9, 0]) == [range(1), range(3, 4), range(4, 6)]


def test_a_request_is_in_a_step_as_often_as_it_gets_tokens(engine: Engine, decoder: Decoder) -> None:
    handle = engine.submit(Text(decoder, repetitive(1)), config(logit_bias={5: 100}))
    request: Request = handle._request
    for _ in range(4):
        engine.step()
        assert request.length == request.num_tokens - 1
        assert request.chosen == len(request.answer.token_ids)
        assert int(engine._runner._step.rows.positions[0]) == request.length  # pyright: ignore
    handle.cancel()
