"""Generation settings."""

from collections.abc import Sized
from typing import Annotated, Any, cast

from pydantic import Field, ValidationError, field_validator

from vila_core.config import Settings
from vila_core.engine.schema import read_schema
from vila_core.engine.settings import OTHER_NAMES, as_generation_error
from vila_core.errors import GenerationError

MAX_STOPS = 1_000
"""Limit on stop strings and stop tokens: each token of an answer is compared with all of them."""
MAX_STOP_LENGTH = 1_000
"""Limit on the characters of a stop string."""
MAX_TOP_LOGPROBS = 20
MAX_DRAFT = 64
"""Limit on the tokens of a draft."""
MAX_NGRAM = 16
MAX_BIASES = 1_000
"""Limit on the tokens of `logit_bias`."""


class GenerationConfig(Settings):
    """Settings of generation. Values are validated on construction; `GenerationError` says what is wrong.

    `temperature` 0 is greedy decoding, which ignores `top_k` and `top_p`. `top_k` 0 and `top_p` 1 keep every token.
    Penalties count generated tokens only, since media in a prompt have no token ids. `repetition_penalty` is that of
    transformers: positive logits of tokens in the answer are divided by it, negative ones multiplied (Keskar et al.
    2019, section 4.1). From the result, `presence_penalty` is subtracted once for each token in the answer, and
    `frequency_penalty` as often as it is there, and `logit_bias` (token id -> number) is added: these three are
    OpenAI's (API reference, chat completions). Grammars, temperature, top-k and top-p come after that.

    With `prompt_lookup_num_tokens` above 0, each step drafts up to so many tokens by looking up the last ones (at most
    `max_matching_ngram_size`) in the prompt and the answer, and the model checks them together. The answer is the same
    as without, greedy or sampled, but comes in fewer steps where it repeats something. See `engine/lookup.py`.

    The same `seed` gives the same answer, alone or in a batch. `logprobs` keeps the log-probability of each token;
    `top_logprobs` also keeps those of the likeliest tokens. `json_schema` is a JSON schema, as text or parsed; it takes
    precedence over `json_mode`, which asks for any JSON object or array.
    """

    max_new_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100, allow_inf_nan=False)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(default={})
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    prompt_lookup_num_tokens: int = Field(default=0, ge=0, le=MAX_DRAFT)
    max_matching_ngram_size: int = Field(default=3, ge=1, le=MAX_NGRAM)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    json_mode: bool = False
    json_schema: str | dict[str, Any] | None = None

    @classmethod
    def _as_error(cls, error: ValidationError) -> GenerationError:
        return as_generation_error(error, "generation", cls.model_fields, OTHER_NAMES)

    @field_validator("stop", "stop_token_ids", mode="before")
    @classmethod
    def _wrap_single_value(cls, given: object) -> object:
        if isinstance(given, str):
            return (given,)
        if not isinstance(given, list | tuple | set | frozenset):  # another iterable may have no end
            raise ValueError("expected a list")
        if len(cast("Sized", given)) > MAX_STOPS:
            raise ValueError(f"it has {len(cast('Sized', given)):,} entries; the limit is {MAX_STOPS:,}")
        return cast("object", given)

    @field_validator("stop")
    @classmethod
    def _check_stop_strings(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("a stop string is empty, which would end every answer at once; remove it")
        if any(len(text) > MAX_STOP_LENGTH for text in stop):
            raise ValueError(f"a stop string has more than {MAX_STOP_LENGTH:,} characters")
        if any("\ud800" <= character <= "\udfff" for text in stop for character in text):
            raise ValueError("a stop string is not valid Unicode; an answer never contains it")
        return stop

    @field_validator("stop_token_ids")
    @classmethod
    def _check_stop_token_ids(cls, ids: tuple[int, ...]) -> tuple[int, ...]:
        if any(token_id < 0 for token_id in ids):
            raise ValueError("token ids cannot be negative")
        if any(token_id >= 2**31 for token_id in ids):
            raise ValueError("token ids have at most 31 bits")
        return ids

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _check_biases(cls, given: object) -> object:
        if given is None:
            return {}
        if not isinstance(given, dict):
            raise ValueError("expected a dict of token ids and numbers, such as {1234: -100}")
        if len(cast("Sized", given)) > MAX_BIASES:
            raise ValueError(f"it has {len(cast('Sized', given)):,} entries; the limit is {MAX_BIASES:,}")
        return cast("object", given)

    @field_validator("logit_bias")
    @classmethod
    def _check_biased_ids(cls, biases: dict[int, float]) -> dict[int, float]:
        cls._check_stop_token_ids(tuple(biases))
        return biases

    @field_validator("json_schema", mode="before")
    @classmethod
    def _read_json_schema(cls, schema: object) -> object:
        if schema is None:
            return None
        parsed = read_schema(schema)
        return schema if isinstance(schema, str) else parsed
