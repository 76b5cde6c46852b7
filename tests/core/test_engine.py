"""The engine: requests that join, leave and share; pages that are found, kept and given back."""

import random
import resource
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tests.core.answering import PAGE_BYTES, Text, all_pages_are_free, answer, greedy, some_ids
from tests.core.steered import SteeredDecoder

from vila_core.engine.answer import Generated
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import EmbeddedPrompt, EngineInput
from vila_core.engine.limits import EngineConfig, QueueFullError
from vila_core.engine.paged_runner import PagedRunner
from vila_core.engine.prefix import MediaSpan
from vila_core.engine.request import Handle, Request
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import ConfigError, GenerationError, MediaError
from vila_core.language.decoder import Decoder
from vila_core.language.page_size import PAGE_SIZE
from vila_core.tokenizer import Tokenizer


@pytest.fixture
def engine(decoder: Decoder, tokenizer: Tokenizer) -> Engine:
    """An engine without stop tokens, whose cache has 40 pages."""
    return Engine(decoder, tokenizer, frozenset(), EngineConfig(cache_bytes=40 * PAGE_BYTES, max_batch=8))


def test_a_prompt_that_begins_like_an_earlier_one(engine: Engine, decoder: Decoder) -> None:
    ids = some_ids(200)
    first = answer(engine, Text(decoder, ids))
    again = answer(engine, Text(decoder, ids))
    longer = answer(engine, Text(decoder, [*ids, *some_ids(30, seed=1)]))
    assert (first.cached_tokens, again.cached_tokens, longer.cached_tokens) == (0, 192, 192)
    assert again.token_ids == first.token_ids
    engine.clear_cache()
    alone = answer(engine, Text(decoder, [*ids, *some_ids(30, seed=1)]))
    assert (alone.cached_tokens, alone.token_ids) == (0, longer.token_ids)


def test_the_answer_of_a_turn_is_found_in_the_next(engine: Engine, decoder: Decoder) -> None:
    ids = some_ids(100)
    first = answer(engine, Text(decoder, ids), greedy(60))
    following = answer(engine, Text(decoder, [*ids, *first.token_ids, *some_ids(9, seed=2)]))
    assert following.cached_tokens == 128
    engine.clear_cache()
    assert (
        answer(engine, Text(decoder, [*ids, *first.token_ids, *some_ids(9, seed=2)])).token_ids == following.token_ids
    )


def test_a_prompt_whose_pages_are_all_known_is_still_read(engine: Engine, decoder: Decoder) -> None:
    ids = some_ids(2 * PAGE_SIZE)
    first = answer(engine, Text(decoder, ids))
    again = answer(engine, Text(decoder, ids))
    assert again.cached_tokens == PAGE_SIZE
    assert again.token_ids == first.token_ids


def test_prompts_of_one_batch_share(engine: Engine, decoder: Decoder) -> None:
    begin = some_ids(3 * PAGE_SIZE)
    prompts = [Text(decoder, [*begin, *some_ids(5, seed=seed)]) for seed in range(6)]
    outcomes = engine.answer_all(prompts, greedy())
    answers = [outcome for outcome in outcomes if isinstance(outcome, Generated)]
    assert [one.cached_tokens for one in answers] == [0, *[3 * PAGE_SIZE] * 5]
    engine.clear_cache()
    assert [answer(engine, prompt).token_ids for prompt in prompts] == [one.token_ids for one in answers]


def test_media_are_told_apart_by_their_digests(engine: Engine, decoder: Decoder) -> None:
    ids, places = some_ids(150), range(10, 90)

    def prompt(digest: bytes) -> Text:
        return Text(decoder, ids, [MediaSpan(places, digest)])

    answer(engine, prompt(b"a" * 20))
    assert answer(engine, prompt(b"b" * 20)).cached_tokens == 0
    assert answer(engine, prompt(b"a" * 20)).cached_tokens == 128
    assert answer(engine, Text(decoder, ids)).cached_tokens == 0


def test_embedded_prompts_are_not_shared(engine: Engine, decoder: Decoder) -> None:
    prompt = EmbeddedPrompt(decoder.embed(torch.tensor(some_ids(150))).detach())
    answer(engine, prompt)
    assert answer(engine, prompt).cached_tokens == 0
    assert engine.stats().pages_kept == 0


def test_sharing_can_be_switched_off(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(decoder, tokenizer, frozenset(), EngineConfig(cache_bytes=40 * PAGE_BYTES, shares_prefixes=False))
    for _ in range(2):
        assert answer(engine, Text(decoder, some_ids(150))).cached_tokens == 0


def test_pages_used_longest_ago_go_first(engine: Engine, decoder: Decoder) -> None:
    for seed in range(20):  # 20 × 3 pages do not fit into 40
        answer(engine, Text(decoder, some_ids(190, seed)))
    assert answer(engine, Text(decoder, some_ids(190, 19))).cached_tokens == 128
    assert answer(engine, Text(decoder, some_ids(190, 0))).cached_tokens == 0
    assert all_pages_are_free(engine)


def test_an_answer_that_fails_leaves_no_pages_to_others(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(decoder, tokenizer, frozenset(), EngineConfig(cache_bytes=40 * PAGE_BYTES))
    prompt = Text(decoder, some_ids(150))
    prompt._embeds[140] = torch.nan
    with pytest.raises(GenerationError, match="not finite"):
        answer(engine, prompt)
    assert engine.stats().pages_kept == 0
    assert answer(engine, Text(decoder, some_ids(150))).cached_tokens == 0


@pytest.mark.parametrize("chunk", [64, 128, 4096])
def test_chunks_change_nothing(decoder: Decoder, tokenizer: Tokenizer, chunk: int) -> None:
    prompts = [Text(decoder, some_ids(length, length)) for length in (400, 5, 130, 64)]
    config = EngineConfig(cache_bytes=40 * PAGE_BYTES, chunk_tokens=chunk)
    chunked = Engine(decoder, tokenizer, frozenset(), config).answer_all(prompts, greedy(20))
    alone = [answer(Engine(decoder, tokenizer, frozenset(), config), prompt, greedy(20)) for prompt in prompts]
    assert [one.token_ids for one in chunked if isinstance(one, Generated)] == [one.token_ids for one in alone]


def test_a_long_prompt_does_not_stall_the_others(decoder: Decoder, tokenizer: Tokenizer) -> None:
    config = EngineConfig(cache_bytes=40 * PAGE_BYTES, chunk_tokens=64)
    engine = Engine(decoder, tokenizer, frozenset(), config)
    short = engine.submit(Text(decoder, some_ids(5)), greedy(30))
    engine.step()
    long = engine.submit(Text(decoder, some_ids(480)), greedy(2))
    for _ in range(4):
        engine.step()
    assert (short.state, long.state) == ("answering", "reading its prompt")
    assert len(short._request.answer.token_ids) >= 5
    assert len(long.result().token_ids) == 2
    assert len(short.result().token_ids) == 30


def test_requests_join_and_leave_between_steps(engine: Engine, decoder: Decoder) -> None:
    prompts = [Text(decoder, some_ids(10 + 7 * n, n)) for n in range(12)]
    configs = [GenerationConfig(max_new_tokens=3 + 5 * (n % 4), temperature=0.9 * (n % 2), seed=n) for n in range(12)]
    handles = []
    for prompt, config in zip(prompts, configs, strict=True):
        handles.append(engine.submit(prompt, config))
        engine.step()
    together = [handle.result().token_ids for handle in handles]
    assert [answer(engine, *one).token_ids for one in zip(prompts, configs, strict=True)] == together
    assert all_pages_are_free(engine)


def test_settings_belong_to_their_requests(engine: Engine, decoder: Decoder) -> None:
    ids = some_ids(20)
    configs = [
        GenerationConfig(max_new_tokens=12),
        GenerationConfig(max_new_tokens=12, temperature=1.3, seed=1),
        GenerationConfig(max_new_tokens=12, temperature=1.3, seed=1, top_k=3),
        GenerationConfig(max_new_tokens=12, temperature=1.3, seed=2, top_p=0.5),
        GenerationConfig(max_new_tokens=12, repetition_penalty=1.5),
        GenerationConfig(max_new_tokens=12, presence_penalty=1.5, logit_bias={7: 3}),
        GenerationConfig(max_new_tokens=40, stop_token_ids=[0], json_schema={"enum": ["yes", "no"]}),
    ]
    handles = [engine.submit(Text(decoder, ids), config) for config in configs]
    together = [handle.result() for handle in handles]
    assert together[6].text in ('"yes"', '"no"')
    assert len({tuple(one.token_ids) for one in together}) >= 5
    assert [answer(engine, Text(decoder, ids), config).token_ids for config in configs] == [
        one.token_ids for one in together
    ]


def test_a_bias_for_a_token_that_does_not_exist(engine: Engine, decoder: Decoder) -> None:
    last = decoder.config.vocab_size - 1
    forced = answer(engine, Text(decoder, some_ids(9)), GenerationConfig(max_new_tokens=3, logit_bias={last: 100}))
    assert forced.token_ids == [last] * 3
    with pytest.raises(GenerationError, match=rf"names token {last + 1}, but the vocabulary has"):
        engine.submit(Text(decoder, some_ids(9)), GenerationConfig(logit_bias={last + 1: 1}))


def test_a_full_queue_refuses(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(decoder, tokenizer, frozenset(), EngineConfig(cache_bytes=4 * PAGE_BYTES, max_queue=3))
    prompts = [Text(decoder, some_ids(5, seed)) for seed in range(10)]
    handles = [engine.submit(prompt, greedy()) for prompt in prompts[:3]]
    with pytest.raises(QueueFullError, match="3 requests wait"):
        engine.submit(prompts[3], greedy())
    assert all(len(handle.result().token_ids) == 8 for handle in handles)
    assert len(engine.answer_all(prompts, greedy())) == 10


def test_cancelling(engine: Engine, decoder: Decoder) -> None:
    handles = [engine.submit(Text(decoder, some_ids(100, seed)), greedy(50)) for seed in range(12)]
    assert handles[11].state == "queued"
    handles[11].cancel()
    engine.step()
    handles[3].cancel()
    engine.step()
    handles[0].cancel()
    handles[0].cancel()
    for number in (0, 3, 11):
        with pytest.raises(GenerationError, match="cancelled"):
            handles[number].result()
    rest = [handles[n].result().token_ids for n in range(12) if n not in (0, 3, 11)]
    assert rest == [
        answer(engine, Text(decoder, some_ids(100, n)), greedy(50)).token_ids for n in range(11) if n not in (0, 3)
    ]
    assert all_pages_are_free(engine)


def test_an_abandoned_stream_is_cancelled(engine: Engine, decoder: Decoder) -> None:
    pieces = iter(engine.submit(Text(decoder, some_ids(30)), greedy(50)))
    next(pieces)
    assert engine.stats().answering == 1
    pieces.close()
    assert all_pages_are_free(engine)


def test_pages_that_run_out_send_the_youngest_back(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(decoder, tokenizer, frozenset(), EngineConfig(cache_bytes=6 * PAGE_BYTES))
    prompts = [Text(decoder, some_ids(50 + n, n)) for n in range(4)]
    penalties = {"repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.2, "logit_bias": {5: 2}}
    config = GenerationConfig(max_new_tokens=150, temperature=0.8, seed=3, **penalties)
    outcomes = engine.answer_all(prompts, config)
    assert engine.stats().preemptions > 0
    assert all_pages_are_free(engine)
    alone = [answer(engine, prompt, config).token_ids for prompt in prompts]
    assert [one.token_ids for one in outcomes if isinstance(one, Generated)] == alone


def test_threads_are_answered_together(engine: Engine, decoder: Decoder) -> None:
    prompts = [Text(decoder, some_ids(40, seed)) for seed in range(6)]
    answers: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        answers[number] = answer(engine, prompts[number], greedy(40)).token_ids

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[n] for n in range(6)] == [answer(engine, prompt, greedy(40)).token_ids for prompt in prompts]
    assert all_pages_are_free(engine)


def test_a_thread_that_steps_all_the_time_does_not_keep_others_waiting(engine: Engine, decoder: Decoder) -> None:
    long = engine.submit(Text(decoder, some_ids(20)), greedy(480))
    started = threading.Event()

    def read() -> None:
        for _ in long:
            started.set()

    thread = threading.Thread(target=read)
    thread.start()
    started.wait()
    assert len(answer(engine, Text(decoder, some_ids(9)), greedy(5)).token_ids) == 5
    cancelled = engine.submit(Text(decoder, some_ids(9)), greedy(300))
    cancelled.cancel()
    assert cancelled.has_ended
    assert not long.has_ended
    thread.join()
    assert len(long.result().token_ids) == 480
    assert all_pages_are_free(engine)


@pytest.mark.parametrize("chunk", [64, 256])
def test_short_and_long_prompts_do_not_wait_for_each_other(decoder: Decoder, tokenizer: Tokenizer, chunk: int) -> None:
    config = EngineConfig(cache_bytes=60 * PAGE_BYTES, chunk_tokens=chunk, max_batch=4)
    engine = Engine(decoder, tokenizer, frozenset(), config)
    long = [engine.submit(Text(decoder, some_ids(450, seed)), greedy(3)) for seed in range(2)]
    for seed in range(60):  # short prompts keep coming
        short = engine.submit(Text(decoder, some_ids(20, seed)), greedy(2))
        steps = 0
        while not short.has_ended:
            engine.step()
            steps += 1
        assert steps < 8
    assert all(handle.has_ended for handle in long)


def test_many_short_prompts_are_read_together(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(decoder, tokenizer, frozenset(), EngineConfig(cache_bytes=99 * PAGE_BYTES, max_batch=32))
    calls: list[int] = []
    read = PagedRunner.read

    def count(self: PagedRunner, requests: Sequence[Request], embeds: Sequence[torch.Tensor]) -> torch.Tensor:
        calls.append(len(requests))
        return read(self, requests, embeds)

    with mock.patch.object(PagedRunner, "read", count):
        engine.answer_all([Text(decoder, some_ids(40 + n, n)) for n in range(32)], greedy(2))
    assert sum(calls) == 32
    assert len(calls) == 2  # a group has at most 2048 tokens, padding included


def test_prompts_that_come_together_are_read_a_chunk_a_step(decoder: Decoder, tokenizer: Tokenizer) -> None:
    config = EngineConfig(cache_bytes=40 * PAGE_BYTES, chunk_tokens=128, max_batch=8)
    engine = Engine(decoder, tokenizer, frozenset(), config)
    handles = [engine.submit(Text(decoder, some_ids(60, seed)), greedy()) for seed in range(8)]
    engine.step()
    assert [handle.state for handle in handles].count("answering") == 2  # and the others have not been waited for
    for handle in handles:
        handle.result()


def test_a_prompt_that_is_alone_is_read_in_fewer_steps(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(decoder, tokenizer, frozenset(), EngineConfig(cache_bytes=40 * PAGE_BYTES, chunk_tokens=64))
    handle = engine.submit(Text(decoder, some_ids(256)), greedy())
    engine.step()
    assert handle.state == "answering"
    handle.cancel()


class Broken(EmbeddedPrompt):
    """A prompt that cannot be embedded."""

    def embed(self, start: int, end: int) -> torch.Tensor:
        raise MediaError("This picture is broken.")


def test_a_request_that_fails_harms_no_other(engine: Engine, decoder: Decoder) -> None:
    sound = engine.submit(Text(decoder, some_ids(20)), greedy())
    broken = engine.submit(Broken(torch.zeros(9, 48)), greedy())
    with pytest.raises(MediaError, match="broken"):
        broken.result()
    assert sound.result().token_ids == answer(engine, Text(decoder, some_ids(20))).token_ids
    assert all_pages_are_free(engine)


def test_media_that_cannot_be_encoded_fail_their_own_request(decoder: Decoder, tokenizer: Tokenizer) -> None:
    bad = Text(decoder, some_ids(9, 7))

    def load(prompts: Sequence[tuple[EngineInput, int, int]], max_tiles: int) -> None:
        if any(prompt is bad for prompt, *_ in prompts):
            raise MediaError("This picture is broken.")

    engine = Engine(decoder, tokenizer, frozenset(), EngineConfig(cache_bytes=9 * PAGE_BYTES), load)
    handles = [
        engine.submit(prompt, greedy()) for prompt in (Text(decoder, some_ids(9)), bad, Text(decoder, some_ids(8)))
    ]
    assert len(handles[0].result().token_ids) == len(handles[2].result().token_ids) == 8
    with pytest.raises(MediaError, match="broken"):
        handles[1].result()
    assert all_pages_are_free(engine)


@pytest.mark.parametrize("broken", ["_allowed", "push"])
def test_a_grammar_that_fails_harms_no_other(
    decoder: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    engine = Engine(decoder, tokenizer, frozenset({0}), EngineConfig(cache_bytes=40 * PAGE_BYTES, max_batch=8))
    expected = answer(engine, Text(decoder, some_ids(20)), greedy(30))
    plain = engine.submit(Text(decoder, some_ids(20)), greedy(30))
    guided = engine.submit(Text(decoder, some_ids(9)), GenerationConfig(max_new_tokens=60, json_mode=True))
    for _ in range(3):
        engine.step()
    grammar = guided._request.grammar
    assert grammar is not None
    monkeypatch.setattr(grammar, broken, mock.Mock(side_effect=RuntimeError("it is lost")))
    with pytest.raises((GenerationError, RuntimeError), match="it is lost"):
        guided.result()
    assert plain.result().token_ids == expected.token_ids
    assert all_pages_are_free(engine)


def test_text_that_fails_harms_no_other(engine: Engine, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answer(engine, Text(decoder, some_ids(20)), greedy(30))
    sound, broken = (engine.submit(Text(decoder, some_ids(20)), greedy(30)) for _ in range(2))
    engine.step()
    detokenizer = broken._request.answer._detokenizer
    monkeypatch.setattr(detokenizer, "push", mock.Mock(side_effect=ValueError("no such token")))
    with pytest.raises(ValueError, match="no such token"):
        broken.result()
    assert sound.result().token_ids == expected.token_ids
    assert all_pages_are_free(engine)


def test_after_an_interrupt_the_engine_goes_on(decoder: Decoder, tokenizer: Tokenizer) -> None:
    def interrupt(logits: torch.Tensor, history: Sequence[int], number: int) -> torch.Tensor:
        if number == 1 and len(history) == 3:
            raise KeyboardInterrupt
        return logits

    engine = Engine(SteeredDecoder(decoder, interrupt), tokenizer, frozenset(), EngineConfig(max_batch=4))
    prompts = [Text(decoder, some_ids(9, seed)) for seed in range(3)]
    first, second = engine.submit(prompts[0], greedy()), engine.submit(prompts[1], greedy())
    with pytest.raises(KeyboardInterrupt):
        second.result()
    with pytest.raises(GenerationError, match="interrupted"):
        first.result()
    assert len(answer(engine, prompts[2]).token_ids) == 8
    assert all_pages_are_free(engine)


def test_a_model_that_raises_ends_the_requests_and_not_the_engine(decoder: Decoder, tokenizer: Tokenizer) -> None:
    def fail(logits: torch.Tensor, history: Sequence[int], number: int) -> torch.Tensor:
        if number == 0 and len(history) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return logits

    engine = Engine(SteeredDecoder(decoder, fail), tokenizer, frozenset(), EngineConfig(max_batch=4))
    with pytest.raises(GenerationError, match="too little memory"):
        answer(engine, Text(decoder, some_ids(9)))
    assert len(answer(engine, Text(decoder, some_ids(9))).token_ids) == 8


def test_logprobs_are_those_of_the_model(engine: Engine, decoder: Decoder) -> None:
    ids = some_ids(20)
    config = GenerationConfig(max_new_tokens=6, temperature=1.2, seed=4, logprobs=True, top_logprobs=3)
    got = answer(engine, Text(decoder, ids), config)
    assert len(got.logprobs) == len(got.token_ids) == 6
    with torch.no_grad():
        whole = decoder.logits(decoder(decoder.embed(torch.tensor([[*ids, *got.token_ids]]))))[0].log_softmax(-1)
    for step, (token_id, one) in enumerate(zip(got.token_ids, got.logprobs, strict=True)):
        line = whole[len(ids) - 1 + step]
        assert one.token_id == token_id
        assert one.logprob == pytest.approx(float(line[token_id]), abs=1e-4)
        values, likeliest = line.topk(3)
        assert [token for token, _ in one.top] == likeliest.tolist()
        assert [value for _, value in one.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert answer(engine, Text(decoder, ids), config.model_copy(update={"logprobs": False})).logprobs == []


def soak(decoder: Decoder, tokenizer: Tokenizer, steps: int, seed: int) -> None:
    """Let requests of random lengths and settings join, end and be cancelled at random."""
    chance = random.Random(seed)
    engine = Engine(
        decoder, tokenizer, frozenset({0}), EngineConfig(cache_bytes=24 * PAGE_BYTES, max_batch=6, chunk_tokens=128)
    )
    handles: list[tuple[list[int], GenerationConfig, Handle]] = []
    cancelled: list[Handle] = []
    begins = [some_ids(PAGE_SIZE * n, n) for n in range(4)]
    for step in range(steps):
        if chance.random() < 0.35:
            ids = [*chance.choice(begins), *some_ids(chance.randint(1, 150), step)]
            sampled = chance.random() < 0.5
            config = GenerationConfig(
                max_new_tokens=chance.randint(1, 90),
                temperature=1.1 if sampled else 0.0,
                seed=step,
                top_k=chance.choice([0, 5]),
                repetition_penalty=chance.choice([1.0, 1.2]),
                presence_penalty=chance.choice([0.0, 0.5]),
                frequency_penalty=chance.choice([0.0, 0.4]),
                json_mode=chance.random() < 0.1,
            )
            handles.append((ids, config, engine.submit(Text(decoder, ids), config)))
        if handles and chance.random() < 0.05:
            handle = chance.choice(handles)[2]
            cancelled += [] if handle.has_ended else [handle]
            handle.cancel()
        engine.step()
    finished = 0
    for ids, config, handle in handles:
        if handle in cancelled:
            continue
        got = handle.result()
        finished += 1
        if finished % 25 == 0:
            fresh = Engine(decoder, tokenizer, frozenset({0}), EngineConfig(cache_bytes=24 * PAGE_BYTES))
            assert answer(fresh, Text(decoder, ids), config).token_ids == got.token_ids
    assert finished > len(handles) // 2
    assert all_pages_are_free(engine)
    engine.clear_cache()
    assert engine.stats().pages_kept == 0


@pytest.mark.slow
def test_ten_minutes_of_random_requests(decoder: Decoder, tokenizer: Tokenizer) -> None:
    end, seed = time.monotonic() + 600, 1
    soak(decoder, tokenizer, 400, seed=0)
    before = resident_bytes()
    while time.monotonic() < end:
        soak(decoder, tokenizer, 400, seed)
        seed += 1
    assert resident_bytes() - before < 64 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_short_soak(decoder: Decoder, tokenizer: Tokenizer) -> None:
    soak(decoder, tokenizer, 400, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch": 0}, "EngineConfig: max_batch must be 1 or more, got 0"),
        ({"kv_cache_dtype": "int8"}, "EngineConfig: kv_cache_dtype must be 'auto' or 'fp8', got 'int8'"),
        ({"max_batches": 3}, "EngineConfig: max_batches"),
    ],
)
def test_wrong_settings_of_an_engine_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**settings)
