"""Guided decoding with xgrammar: allow only tokens that keep the answer valid JSON, or valid under a JSON schema.

B batch, V vocabulary of the model, W = ceil(V / 32) words of a bitmask
"""

import json
import os
from collections.abc import Sequence
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
import xgrammar

from vila_core.child_process import ChildEndedError, ChildFailedError, run_in_child
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.schema import unenforceable
from vila_core.errors import GenerationError
from vila_core.tokenizer import Tokenizer

_ALL_TOKENS = -1  # a word of the bitmask with all bits set
_CONTROL_CHARACTERS = frozenset(range(0x20))

_ANY_JSON = {"anyOf": [{"type": "object", "additionalProperties": True}, {"type": "array", "items": {}}]}

_compilers: WeakKeyDictionary[Any, dict[tuple[int, frozenset[int]], "_Compiler"]] = WeakKeyDictionary()
"""Compilers by tokenizer: reading a vocabulary takes longer than the first token. A compiler caches its grammars."""
COMPILE_SECONDS = 20.0
"""Limit on the time to compile a schema for a small vocabulary. xgrammar has none: some small schemas take hours."""
TOKENS_PER_LIMIT = 20_000
"""A larger vocabulary takes so much longer: xgrammar checks each token in each state. With the 152,000 tokens of Qwen2,
a string with maxLength 200 or more takes 27 s of CPU time, on up to eight cores."""
_GRAMMARS_KEPT = 32


class GrammarProcessor:
    """Masks the logits of tokens that the grammar does not allow next. Each row has its own matcher.

    `dead_ends` holds, by row, why no token can follow: such a row is not masked any more.
    """

    def __init__(self, grammar: xgrammar.CompiledGrammar, vocab_size: int, batch_size: int):
        self.dead_ends: dict[int, GenerationError] = {}
        self._failed: set[int] = set()
        self._matchers = [xgrammar.GrammarMatcher(grammar) for _ in range(batch_size)]
        self._bitmask = xgrammar.allocate_token_bitmask(batch_size, vocab_size)  # [B, W] int32, on the CPU

    @classmethod
    def for_answers(
        cls,
        config: GenerationConfig,
        tokenizer: Tokenizer,
        vocab_size: int,
        stop_token_ids: frozenset[int],
        batch_size: int,
    ) -> Self:
        """Return a processor for `batch_size` answers that enforces the JSON schema of `config`; without one, any JSON.

        Raises:
            GenerationError: the schema is invalid or cannot be enforced, or there is no stop token to end the answer.
        """
        if not stop_token_ids:
            raise GenerationError(
                "Guided decoding needs a stop token to end the answer, but there is none. Set stop_token_ids."
            )
        return cls(
            _compile(config.json_schema, _compiler(tokenizer, vocab_size, stop_token_ids)), vocab_size, batch_size
        )

    def __call__(self, logits: torch.Tensor, history: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits `[B, V]` -> the same with `-inf` for every token that is not allowed next.

        `history` has one more token per row than in the last call; a negative one means that the row has failed. Rows
        that have failed, and rows whose JSON is complete, are not masked.
        """
        xgrammar.reset_token_bitmask(self._bitmask)
        for row, (matcher, token_ids) in enumerate(zip(self._matchers, history, strict=True)):
            if row in self._failed or (token_ids and token_ids[-1] < 0):
                self._failed.add(row)
                continue
            if token_ids and not matcher.is_terminated():
                accepted = matcher.accept_token(token_ids[-1])
                assert accepted, f"token {token_ids[-1]} was chosen although the grammar forbids it"
            if not matcher.is_terminated():
                matcher.fill_next_token_bitmask(self._bitmask, row)
                if not self._bitmask[row].any():
                    self._bitmask[row] = _ALL_TOKENS
                    self._failed.add(row)
                    self.dead_ends[row] = GenerationError(
                        f"After {len(token_ids)} tokens of JSON, no token of the vocabulary can follow: the tokenizer "
                        "lacks a character that the schema requires, or that character is a stop token."
                    )
        return logits.masked_fill(~unpack_bits(self._bitmask.to(logits.device), logits.shape[-1]), float("-inf"))


def unpack_bits(bitmask: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Words `[B, W]` int32, lowest bit first -> `[B, V]` bool."""
    bits = torch.arange(32, dtype=torch.int32, device=bitmask.device)
    return ((bitmask[:, :, None] >> bits) & 1).bool().flatten(1)[:, :vocab_size]


def _compile(schema: str | dict[str, Any] | None, compiler: "_Compiler") -> xgrammar.CompiledGrammar:
    parsed: dict[str, Any] = json.loads(schema) if isinstance(schema, str) else _ANY_JSON if schema is None else schema
    problems = unenforceable(parsed)
    if problems:
        raise GenerationError(
            f"Guided decoding cannot enforce these parts of the JSON schema: {'; '.join(problems)}. Remove them."
        )
    return compiler.compile(parsed)


class _Compiler:
    """Compiles schemas for one vocabulary, and keeps the last grammars."""

    def __init__(self, vocabulary: xgrammar.TokenizerInfo):
        self._vocabulary = vocabulary
        self._compiler = xgrammar.GrammarCompiler(vocabulary, cache_enabled=False)
        self._grammars: dict[str, xgrammar.CompiledGrammar] = {}

    @property
    def max_seconds(self) -> float:
        """Limit on the time to compile a schema."""
        return COMPILE_SECONDS * max(1.0, self._vocabulary.vocab_size / TOKENS_PER_LIMIT)

    def compile(self, schema: dict[str, Any]) -> xgrammar.CompiledGrammar:
        """Return the grammar of `schema`.

        Raises:
            GenerationError: the schema is invalid, or compiling it takes too much time or memory.
        """
        text = json.dumps(schema)
        if text not in self._grammars:
            if len(self._grammars) >= _GRAMMARS_KEPT:
                del self._grammars[next(iter(self._grammars))]
            self._grammars[text] = self._compile(schema)
        return self._grammars[text]

    def _compile(self, schema: dict[str, Any]) -> xgrammar.CompiledGrammar:
        try:
            if schema == _ANY_JSON or not hasattr(os, "fork"):
                return self._compile_here(schema)
            serialized = run_in_child(lambda: self._compile_here(schema).serialize_json().encode(), self.max_seconds)
            return xgrammar.CompiledGrammar.deserialize_json(serialized.decode(), self._vocabulary)
        except ChildFailedError as error:
            # "[time] /path/file.cc:line: reason"
            reason = str(error).strip().split(": ", 1)[-1]
            raise GenerationError(f"The JSON schema is invalid: {reason}.") from None
        except ChildEndedError:
            raise GenerationError(
                f"The JSON schema is too large to compile: it takes more than {self.max_seconds:.0f} s, or too much "
                "memory. Use fewer optional properties, shorter lengths and patterns, or fewer levels."
            ) from None

    def _compile_here(self, schema: dict[str, Any]) -> xgrammar.CompiledGrammar:
        # Only the whitespace of json.dumps: small models write whitespace forever where any amount is allowed.
        return self._compiler.compile_json_schema(schema, any_whitespace=False)


def _compiler(tokenizer: Tokenizer, vocab_size: int, stop_token_ids: frozenset[int]) -> _Compiler:
    compilers = _compilers.setdefault(tokenizer.hf, {})
    stops = frozenset(token_id for token_id in stop_token_ids if token_id < vocab_size)
    key = (vocab_size, stops)
    if key not in compilers:
        compilers[key] = _Compiler(_vocabulary(tokenizer, vocab_size, stops))
    return compilers[key]


def _vocabulary(tokenizer: Tokenizer, vocab_size: int, stop_token_ids: frozenset[int]) -> xgrammar.TokenizerInfo:
    """Describe the tokenizer to xgrammar, with empty text for tokens that must never be chosen.

    Those are special tokens, which do not appear in the text of an answer, and tokens with control characters, which
    JSON does not allow but xgrammar allows in strings of limited length.
    """
    stops = sorted(stop_token_ids)
    detected = xgrammar.TokenizerInfo.from_huggingface(tokenizer.hf, vocab_size=vocab_size, stop_token_ids=stops)
    special = {token_id for token_id, token in tokenizer.hf.added_tokens_decoder.items() if token.special}
    texts = [
        b"" if token_id in special or not _CONTROL_CHARACTERS.isdisjoint(text) else text
        for token_id, text in enumerate(detected.decoded_vocab)
    ]
    return xgrammar.TokenizerInfo(
        texts,
        xgrammar.VocabType.RAW,
        vocab_size=vocab_size,
        stop_token_ids=stops,
        add_prefix_space=detected.add_prefix_space,
    )
