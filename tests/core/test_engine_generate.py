"""Generation: batches against single prompts, limits, stop conditions, streaming."""

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.core.answering import generate, generate_each, stream
from tests.core.steered import SteeredDecoder

from vila_core.engine.answer import Generated, Piece
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import EmbeddedPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError, PromptError
from vila_core.language.decoder import Decoder
from vila_core.tokenizer import Tokenizer

LENGTHS = [23, 5, 1, 40, 23]


def prompts(decoder: Decoder, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [decoder.embed(torch.randint(2, 300, (n,), generator=generator)).detach() for n in lengths]


def test_greedy_is_the_argmax_of_a_forward_without_cache(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]
) -> None:
    (prompt,) = prompts(decoder, [17])
    (answer,) = generate(decoder, [prompt], GenerationConfig(max_new_tokens=20), tokenizer, end)
    embeds, expected = prompt, []
    while len(expected) < 20:
        token_id = int(decoder.logits(decoder(embeds[None])[0, -1]).argmax())
        if token_id in end:
            break
        expected.append(token_id)
        embeds = torch.cat((embeds, decoder.embed(torch.tensor([token_id]))))
    assert answer.token_ids == expected
    assert answer.text == tokenizer.decode(expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.8, "frequency_penalty": 0.3, "logit_bias": {5: 1.5}},
        {"temperature": 0.8, "seed": 5},
        {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 17},
    ],
    ids=["greedy", "repetition", "penalties and a bias", "sampled", "everything"],
)
def test_batch_of_ragged_prompts_equals_one_by_one(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int], settings: dict[str, Any]
) -> None:
    config = GenerationConfig(max_new_tokens=30, **settings)
    batch = prompts(decoder)
    together = generate(decoder, batch, config, tokenizer, end)
    alone = [generate(decoder, [prompt], config, tokenizer, end)[0] for prompt in batch]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [answer.finish_reason for answer in together] == [answer.finish_reason for answer in alone]
    assert len({tuple(answer.token_ids) for answer in together}) > 1


def test_seed_repeats_and_no_seed_varies(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]) -> None:
    (prompt,) = prompts(decoder, [9])

    def answer(seed: int | None) -> list[int]:
        config = GenerationConfig(max_new_tokens=25, temperature=2.0, seed=seed)
        return generate(decoder, [prompt], config, tokenizer, end)[0].token_ids

    torch.manual_seed(0)
    first = answer(3)
    torch.manual_seed(1)
    assert answer(3) == first
    assert answer(4) != first
    torch.manual_seed(0)
    without = answer(None)
    torch.manual_seed(0)
    assert answer(None) != without


def test_sampling_leaves_the_global_generator_alone(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    generate(
        decoder, prompts(decoder, [4]), GenerationConfig(max_new_tokens=5, temperature=1.0, seed=1), tokenizer, end
    )
    torch.testing.assert_close(torch.rand(3), expected, atol=0, rtol=0)


def streamed(pieces: Sequence[Piece]) -> tuple[list[int], str, str | None]:
    return (
        [p.token_id for p in pieces if p.token_id is not None],
        "".join(p.text for p in pieces),
        pieces[-1].finish_reason,
    )


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.2, "seed": 2}, {"temperature": 1.2, "seed": 2, "stop": ["e", "STOP"]}], ids=str
)
def test_stream_joins_to_the_answer(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int], settings: dict[str, object]
) -> None:
    config = GenerationConfig(max_new_tokens=40, **settings)
    for prompt in prompts(decoder):
        (answer,) = generate(decoder, [prompt], config, tokenizer, end)
        pieces = list(stream(decoder, prompt, config, tokenizer, end))
        assert streamed(pieces) == (answer.token_ids, answer.text, answer.finish_reason)
        assert all(piece.finish_reason is None for piece in pieces[:-1])


def test_max_new_tokens_ends_with_length(decoder: Decoder, tokenizer: Tokenizer) -> None:
    (answer,) = generate(decoder, prompts(decoder, [6]), GenerationConfig(max_new_tokens=7), tokenizer, frozenset())
    assert len(answer.token_ids) == 7
    assert answer.finish_reason == "length"


def test_context_caps_each_row_by_its_own_prompt(decoder: Decoder, tokenizer: Tokenizer) -> None:
    lengths = [511, 500, 40]
    answers = generate(decoder, prompts(decoder, lengths), GenerationConfig(max_new_tokens=30), tokenizer, frozenset())
    assert [len(answer.token_ids) for answer in answers] == [1, 12, 30]
    assert {answer.finish_reason for answer in answers} == {"length"}


@pytest.mark.parametrize(("length", "message"), [(0, "empty"), (512, "512 tokens"), (600, "600 tokens")])
def test_prompts_that_do_not_fit(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int], length: int, message: str
) -> None:
    batch = [*prompts(decoder, [3]), torch.zeros(length, 48)]
    with pytest.raises(PromptError, match=message):
        generate(decoder, batch, GenerationConfig(), tokenizer, end)
    with pytest.raises(PromptError, match=message):
        stream(decoder, batch[1], GenerationConfig(), tokenizer, end)


SPOILT = {
    "NaN": lambda row: row.clone().index_fill_(0, torch.tensor([5]), torch.nan),
    "all NaN": lambda row: torch.full_like(row, torch.nan),
    "infinity": lambda row: row.clone().index_fill_(0, torch.tensor([9]), torch.inf),
    "minus infinity": lambda row: row.clone().index_fill_(0, torch.tensor([9]), -torch.inf),
    "all minus infinity": lambda row: torch.full_like(row, -torch.inf),
    "all zero, from a norm that overflows": torch.zeros_like,
}


def spoil(decoder: Decoder, kind: str, row: int, step: int) -> SteeredDecoder:
    """Return a model whose logits for token `step` (from 0) of `row` cannot be used."""

    def steer(logits: torch.Tensor, history: Sequence[int], number: int) -> torch.Tensor:
        return SPOILT[kind](logits) if number == row and len(history) == step else logits

    return SteeredDecoder(decoder, steer)


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("step", [0, 1, 6])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.1, "seed": 4, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2},
        {"json_schema": {"type": "string", "minLength": 9, "maxLength": 12}},
        {"json_mode": True, "temperature": 1.1, "seed": 5},
    ],
    ids=["greedy", "sampled", "schema", "json"],
)
def test_values_that_are_not_finite_fail_their_own_row(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int], kind: str, step: int, settings: dict[str, object]
) -> None:
    config = GenerationConfig(max_new_tokens=12, **settings)
    batch = prompts(decoder, [8, 3, 5])
    sound = generate(decoder, batch, config, tokenizer, end)
    first, failed, last = generate_each(spoil(decoder, kind, 1, step), batch, config, tokenizer, end)
    assert isinstance(failed, GenerationError)
    assert re.search(rf"not finite in float32, at token {step + 1} of the answer", str(failed))
    assert "\n" not in str(failed)
    assert isinstance(first, Generated)
    assert isinstance(last, Generated)
    assert (first.token_ids, last.token_ids) == (sound[0].token_ids, sound[2].token_ids)
    with pytest.raises(GenerationError, match="not finite"):
        generate(spoil(decoder, kind, 1, step), batch, config, tokenizer, end)
    pieces = stream(spoil(decoder, kind, 0, step), batch[1], config, tokenizer, end)
    for _ in range(step):
        next(pieces)
    with pytest.raises(GenerationError, match="not finite"):
        next(pieces)


def test_a_prompt_that_is_not_finite(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]) -> None:
    batch = prompts(decoder, [3, 5])
    batch[1][2, 7] = torch.nan
    sound, failed = generate_each(decoder, batch, GenerationConfig(), tokenizer, end)
    assert isinstance(sound, Generated)
    assert isinstance(failed, GenerationError)
    assert "token 1 of the answer" in str(failed)


def test_a_row_that_has_ended_does_not_fail_later(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]) -> None:
    batch = prompts(decoder, [510, 5])  # the first prompt leaves room for two tokens
    outcomes = generate_each(spoil(decoder, "NaN", 0, 2), batch, GenerationConfig(max_new_tokens=6), tokenizer, end)
    assert not any(isinstance(outcome, GenerationError) for outcome in outcomes)


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.float16, r"in float16.*bfloat16 or float32 \(--dtype\)"),
        (torch.bfloat16, r"in bfloat16.*load it in float32 \(--dtype\)"),
        (torch.float32, "in float32.*download the checkpoint again"),
    ],
)
def test_the_advice_names_the_other_dtypes(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int], dtype: torch.dtype, advice: str
) -> None:
    model = copy.deepcopy(decoder).to(dtype)
    (prompt,) = prompts(model, [4])
    with pytest.raises(GenerationError, match=advice):
        generate(spoil(model, "NaN", 0, 3), [prompt], GenerationConfig(max_new_tokens=5), tokenizer, end)


def test_too_little_memory_for_the_cache(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]) -> None:
    page = 2 * 2 * 2 * 12 * 64 * 4  # keys and values, layers, heads, width, tokens, bytes
    engine = Engine(decoder, tokenizer, end, EngineConfig(cache_bytes=3 * page))
    (prompt,) = prompts(decoder, [100])
    with pytest.raises(GenerationError, match=r"193 tokens \(100 of the prompt.*memory for 192.*cache_bytes"):
        engine.submit(EmbeddedPrompt(prompt), GenerationConfig(max_new_tokens=93))
    engine.submit(EmbeddedPrompt(prompt), GenerationConfig(max_new_tokens=92)).result()


def test_no_prompts(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]) -> None:
    assert generate(decoder, [], GenerationConfig(), tokenizer, end) == []


def script(answer: Sequence[int], vocab_size: int):
    """Return a function that makes every prompt's answer be `answer`, whatever the model computes."""

    def say(logits: torch.Tensor, history: Sequence[int], number: int) -> torch.Tensor:
        forced = torch.full_like(logits, -1e9)
        forced[answer[len(history) % len(answer)]] = 0.0
        assert logits.shape[-1] == vocab_size
        return forced

    return say


def say(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int], ids: Sequence[int], **settings: object
) -> tuple[Generated, list[Piece]]:
    """Make the model write `ids`; return the answer and its streamed pieces."""
    config = GenerationConfig(**settings)
    processor = script(ids, decoder.config.vocab_size)
    (prompt,) = prompts(decoder, [4])
    (answer,) = generate(SteeredDecoder(decoder, processor), [prompt], config, tokenizer, end)
    pieces = list(stream(SteeredDecoder(decoder, processor), prompt, config, tokenizer, end))
    assert streamed(pieces) == (answer.token_ids, answer.text, answer.finish_reason)
    return answer, pieces


def test_stop_token_is_in_neither_ids_nor_text(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]) -> None:
    ids = tokenizer.encode("hello fox")
    answer, pieces = say(decoder, tokenizer, end, [*ids, *end])
    assert (answer.token_ids, answer.text, answer.finish_reason) == (ids, "hello fox", "stop")
    assert pieces[-1] == Piece(None, "", "stop")


def test_stop_token_ids_of_the_config_are_added(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]) -> None:
    ids = tokenizer.encode("the quick brown fox")
    answer, _ = say(decoder, tokenizer, end, [*ids, *end], stop_token_ids=[ids[2]])
    assert (answer.token_ids, answer.finish_reason) == (ids[:2], "stop")


@pytest.mark.parametrize(
    ("written", "stop", "expected"),
    [
        ("one, two, three", ["wo, th"], "one, t"),
        ("one STOOP two STOP three", ["STOP"], "one STOOP two "),
        ("aaaab", ["aab"], "aa"),
        ("Grüße 🙂 aus Köln", ["🙂"], "Grüße "),
        ("one, two", ["two!", "xyz"], "one, two"),
        ("one, two, three", ["three", "two"], "one, "),
        ("STOP at once", ["STOP"], ""),
    ],
)
def test_stop_strings(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int], written: str, stop: list[str], expected: str
) -> None:
    ids = tokenizer.encode(written)
    answer, pieces = say(decoder, tokenizer, end, [*ids, *end], stop=stop)
    assert answer.text == expected
    assert answer.finish_reason == "stop"
    assert answer.token_ids == ids[: len(answer.token_ids)]
    for piece in pieces:
        assert not any(string in piece.text for string in stop)


def test_stop_string_that_ends_on_the_last_allowed_token(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]
) -> None:
    ids = tokenizer.encode("one STOP")
    answer, _ = say(decoder, tokenizer, end, ids, stop="STOP", max_new_tokens=len(ids))
    assert (answer.text, answer.finish_reason) == ("one ", "stop")


@pytest.mark.parametrize("text", ["日本語 🙂🚀!", "🙂", "mixed é🙃e日"])
def test_streamed_characters_are_whole(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int], text: str) -> None:
    ids = tokenizer.encode(text)
    assert len(ids) > len(text) / 2
    answer, pieces = say(decoder, tokenizer, end, [*ids, *end])
    assert answer.text == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece.text for piece in pieces)


def test_character_cut_off_by_the_length(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]) -> None:
    ids = tokenizer.encode("ab🚀")
    answer, _ = say(decoder, tokenizer, end, ids, max_new_tokens=len(ids) - 1)
    assert answer.text == tokenizer.decode(ids[:-1])
    assert answer.text.startswith("ab")
