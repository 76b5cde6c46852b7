"""Guided decoding: a model with random weights writes the JSON that was asked for."""

import json
import re
from collections.abc import Sequence

import pytest
import torch
from tests.core.answering import generate, stream
from tests.core.steered import SteeredDecoder

from vila_core.engine.answer import Generated
from vila_core.engine.enforcement import unenforceable
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError
from vila_core.language.decoder import Decoder
from vila_core.ops.reference import allowed_tokens
from vila_core.tokenizer import Tokenizer

ANIMAL = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "legs": {"type": "integer", "minimum": 0, "maximum": 8},
        "kind": {"enum": ["bird", "fish"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "legs", "kind", "tags"],
    "additionalProperties": False,
}


def prompts(decoder: Decoder, n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(21)
    return [
        decoder.embed(torch.randint(2, 300, (length,), generator=generator)).detach()
        for length in range(3, 3 + 5 * n, 5)
    ]


def check_animal(text: str) -> None:
    animal = json.loads(text)
    assert list(animal) == ["name", "legs", "kind", "tags"]
    assert 1 <= len(animal["name"]) <= 8
    assert animal["legs"] in range(9)
    assert animal["kind"] in ("bird", "fish")
    assert 1 <= len(animal["tags"]) <= 3
    assert all(isinstance(tag, bool) for tag in animal["tags"])


@pytest.mark.parametrize("schema", [ANIMAL, json.dumps(ANIMAL)], ids=["parsed", "text"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5, "seed": 2}], ids=["greedy", "sampled"])
def test_schema(
    decoder: Decoder,
    tokenizer: Tokenizer,
    end: frozenset[int],
    schema: str | dict[str, object],
    settings: dict[str, float],
) -> None:
    config = GenerationConfig(max_new_tokens=400, json_schema=schema, repetition_penalty=1.2, **settings)
    batch = prompts(decoder, 4)
    together = generate(decoder, batch, config, tokenizer, end)
    for answer in together:
        assert answer.finish_reason == "stop"
        check_animal(answer.text)
    assert len({answer.text for answer in together}) > 1
    alone = [generate(decoder, [prompt], config, tokenizer, end)[0] for prompt in batch]
    assert [answer.text for answer in alone] == [answer.text for answer in together]
    assert "".join(piece.text for piece in stream(decoder, batch[0], config, tokenizer, end)) == together[0].text


def always(decoder: Decoder, preferred: Sequence[int]):
    """Return a function that prefers the tokens of `preferred`, the first one most."""

    def prefer(logits: torch.Tensor, history: Sequence[int], number: int) -> torch.Tensor:
        for rank, token_id in enumerate(preferred):
            logits[token_id] += 1000 - rank
        return logits

    return prefer


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 6}], ids=["greedy", "sampled"])
def test_json_mode(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int], settings: dict[str, float]) -> None:
    # A random model writes endless strings; this one closes them as soon as it can.
    closing = always(decoder, [*end, *(tokenizer.encode(character)[0] for character in '"}]')])
    config = GenerationConfig(max_new_tokens=200, json_mode=True, **settings)
    answers: list[Generated] = generate(SteeredDecoder(decoder, closing), prompts(decoder, 3), config, tokenizer, end)
    for answer in answers:
        assert answer.finish_reason == "stop"
        assert isinstance(json.loads(answer.text), dict | list)


def test_json_mode_refuses_everything_else(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]) -> None:
    wish = [*tokenizer.encode("hello"), *end, tokenizer.media_token_ids["image"]]
    (answer,) = generate(
        SteeredDecoder(decoder, always(decoder, wish)),
        prompts(decoder, 1),
        GenerationConfig(max_new_tokens=12, json_mode=True),
        tokenizer,
        end,
    )
    assert answer.text[0] in "{["
    assert answer.token_ids


def test_special_tokens_and_vocabulary_padding_cannot_appear_in_a_string(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]
) -> None:
    unwanted = [tokenizer.sentinel_token_id, tokenizer.media_token_ids["image"], len(tokenizer) + 5]
    config = GenerationConfig(max_new_tokens=300, json_schema={"type": "string", "minLength": 5, "maxLength": 9})
    (answer,) = generate(
        SteeredDecoder(decoder, always(decoder, unwanted)), prompts(decoder, 1), config, tokenizer, end
    )
    assert not set(unwanted) & set(answer.token_ids)
    assert 5 <= len(json.loads(answer.text)) <= 9


def test_an_extra_stop_token_cannot_cut_off_the_json(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]
) -> None:
    (z,) = tokenizer.encode("z")
    config = GenerationConfig(max_new_tokens=300, json_schema=ANIMAL, stop_token_ids=[z])
    (answer,) = generate(SteeredDecoder(decoder, always(decoder, [z])), prompts(decoder, 1), config, tokenizer, end)
    check_animal(answer.text)
    assert answer.finish_reason == "stop"


def test_a_stop_token_that_the_schema_needs(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]) -> None:
    config = GenerationConfig(max_new_tokens=300, json_schema={"const": "zzz"}, stop_token_ids=tokenizer.encode("z"))
    with pytest.raises(GenerationError, match="no token of the vocabulary can follow"):
        generate(decoder, prompts(decoder, 1), config, tokenizer, end)


def test_control_characters_cannot_appear_in_a_string(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]
) -> None:
    controls = [tokenizer.encode(character)[0] for character in "\t\x01\x1f"]
    config = GenerationConfig(max_new_tokens=300, json_schema={"type": "string", "minLength": 5, "maxLength": 9})
    (answer,) = generate(
        SteeredDecoder(decoder, always(decoder, controls)), prompts(decoder, 1), config, tokenizer, end
    )
    assert 5 <= len(json.loads(answer.text)) <= 9


def test_whitespace_is_limited(decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int]) -> None:
    blanks = [token_id for text, token_id in tokenizer.hf.get_vocab().items() if re.fullmatch("[ĠĊĉč]+", text)]
    config = GenerationConfig(max_new_tokens=300, json_schema=ANIMAL)
    (answer,) = generate(SteeredDecoder(decoder, always(decoder, blanks)), prompts(decoder, 1), config, tokenizer, end)
    check_animal(answer.text)
    assert answer.text == json.dumps(json.loads(answer.text), ensure_ascii=False)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strng"}, 'Unsupported type "strng"'),
        ({"type": "object", "properties": 5}, "properties must be an object"),
        ({"$ref": "#/$defs/nope"}, "nope"),
        ({"type": "string", "pattern": "["}, "Unclosed"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum greater than maximum"),
        ({"enum": []}, "must not be empty"),
        ({"type": "array", "uniqueItems": True}, r"cannot enforce .*: /: 'uniqueItems'"),
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, r"/properties/a: 'not'"),
    ],
)
def test_bad_schemas(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int], schema: dict[str, object], message: str
) -> None:
    config = GenerationConfig(json_schema=schema)
    with pytest.raises(GenerationError, match=message) as caught:
        generate(decoder, prompts(decoder, 1), config, tokenizer, end)
    assert ".cc" not in str(caught.value)
    with pytest.raises(GenerationError, match=message):
        stream(decoder, prompts(decoder, 1)[0], config, tokenizer, end)


def test_no_stop_token(decoder: Decoder, tokenizer: Tokenizer) -> None:
    with pytest.raises(GenerationError, match="needs a stop token"):
        generate(decoder, prompts(decoder, 1), GenerationConfig(json_mode=True), tokenizer, frozenset())


@pytest.mark.parametrize(
    "schema",
    [
        ANIMAL,
        {"type": "object"},
        {"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": ["string", "null"], "title": "A"}}},
        {"anyOf": [{"type": "integer", "multipleOf": 3}, {"const": "x"}], "description": "d", "default": 3},
        {"type": "object", "properties": {"not": {"type": "integer"}, "if": {"type": "string"}}, "required": ["not"]},
        {"type": "object", "properties": {"anyOf": {"type": "string"}, "uniqueItems": {"const": True}}},
        {"allOf": [{"type": "integer"}]},
    ],
    ids=str,
)
def test_schemas_that_a_grammar_can_enforce(schema: dict[str, object]) -> None:
    assert unenforceable(schema) == []


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "array", "contains": {"type": "integer"}}, "/: 'contains'"),
        ({"if": {}, "then": {}}, "/: 'if'"),
        ({"items": {"multipleOf": 3}}, "/items: 'multipleOf'"),
        ({"prefixItems": [{}, {"type": "string", "pattern": "a", "maxLength": 3}]}, "/prefixItems/1: 'pattern'"),
        ({"type": "object", "required": ["a"]}, "/: 'required' without"),
        ({"allOf": [{"type": "integer"}, {"type": "integer", "minimum": 3}]}, "/: 'allOf' of several"),
        ({"$ref": "https://example.org/schema"}, "/: a '$ref' to another"),
        ({"$defs": {"x": {"anyOf": [{}], "properties": {}}}}, "/$defs/x: 'anyOf' beside 'properties'"),
        ({"anyOf": [{}], "oneOf": [{}]}, "/: 'anyOf' beside 'oneOf'"),
    ],
)
def test_schemas_that_a_grammar_cannot_enforce(schema: dict[str, object], problem: str) -> None:
    problems = unenforceable(schema)
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_lowest_bits_come_first() -> None:
    bitmask = torch.tensor([[-(2**31), 5], [-1, 0]], dtype=torch.int32)
    allowed = allowed_tokens(bitmask, 40)
    assert allowed.shape == (2, 40)
    assert allowed[0].nonzero().flatten().tolist() == [31, 32, 34]
    assert allowed[1].nonzero().flatten().tolist() == list(range(32))
