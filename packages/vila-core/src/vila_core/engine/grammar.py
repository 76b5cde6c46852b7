"""Guided decoding with xgrammar: allow only tokens that keep the answer valid JSON, or valid under a JSON schema.

V vocabulary of the model, W = ceil(V / 32) words of a bitmask
"""

import json
import os
import re
import threading
from collections.abc import Sequence
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
import xgrammar

from vila_core.child_process import ChildEndedError, ChildFailedError, run_in_child
from vila_core.engine.enforcement import unenforceable
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError
from vila_core.tokenizer import Tokenizer

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


class Grammar:
    """Follows one answer, and says which tokens may come next.

    Attributes:
        dead_end: why no token can follow; None unless it happens.
    """

    def __init__(self, compiled: xgrammar.CompiledGrammar, vocab_size: int):
        self.dead_end: GenerationError | None = None
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._vocab_size = vocab_size
        self._length = 0

    @classmethod
    def for_answer(
        cls, config: GenerationConfig, tokenizer: Tokenizer, vocab_size: int, stop_token_ids: frozenset[int]
    ) -> Self:
        """Return the grammar of the JSON schema of `config`; without one, that of any JSON.

        Raises:
            GenerationError: the schema is invalid or cannot be enforced, or there is no stop token to end the answer.
        """
        if not stop_token_ids:
            raise GenerationError(
                "Guided decoding needs a stop token to end the answer, but there is none. Set stop_token_ids."
            )
        return cls(_compile(config.json_schema, _compiler(tokenizer, vocab_size, stop_token_ids)), vocab_size)

    def push(self, token_id: int) -> None:
        """Add a token of the answer. The grammar must have allowed it, or be complete."""
        self._length += 1
        if not self._matcher.is_terminated():
            accepted = self._matcher.accept_token(token_id)
            assert accepted, f"token {token_id} was chosen although the grammar forbids it"

    def allowed(self) -> torch.Tensor | None:
        """Return the tokens that may come next, int32 `[W]` on the CPU; None for all, once the JSON is complete.

        If no token may come next, this sets `dead_end` and allows all.
        """
        try:
            words = self._allowed()
        except Exception as error:  # noqa: BLE001 - it ends this answer, and not those of the same step
            self.dead_end = GenerationError(f"The grammar failed after {self._length} tokens of JSON: {error}.")
            return None
        if words is None or words.any():
            return words
        self.dead_end = GenerationError(
            f"After {self._length} tokens of JSON, no token of the vocabulary can follow: the tokenizer lacks a "
            "character that the schema requires, or that character is a stop token."
        )
        return None

    def allowed_along(self, draft: Sequence[int]) -> list[torch.Tensor | None]:
        """Return `allowed()`, and what it would be after each beginning of `draft` that the grammar allows."""
        found = [self.allowed()]
        accepted = 0
        for token_id in () if self.dead_end is not None else draft:
            if not self._matcher.is_terminated():
                if not self._matcher.accept_token(token_id):
                    break
                accepted += 1
            words = self._allowed()
            if words is not None and not words.any():
                break  # if the answer gets there, `allowed` says why it cannot continue
            found.append(words)
        if accepted:
            self._matcher.rollback(accepted)
        return found

    def _allowed(self) -> torch.Tensor | None:
        """Return the tokens that may come next, perhaps none, int32 `[W]`; None for all."""
        if self._matcher.is_terminated():
            return None
        words = xgrammar.allocate_token_bitmask(1, self._vocab_size)
        self._matcher.fill_next_token_bitmask(words, 0)
        return words[0]


def _compile(schema: str | dict[str, Any] | None, compiler: "_Compiler") -> xgrammar.CompiledGrammar:
    parsed: dict[str, Any] = json.loads(schema) if isinstance(schema, str) else _ANY_JSON if schema is None else schema
    problems = unenforceable(parsed)
    if problems:
        raise GenerationError(
            f"Guided decoding cannot enforce these parts of the JSON schema: {'; '.join(problems)}. Remove them."
        )
    return compiler.compile(parsed)


_OUT_OF_MEMORY = "bad_alloc"
"""In C++'s words for full memory."""
_WRONG_TYPE = "type mismatch"
"""In xgrammar's words for the value of a keyword whose type is wrong."""


def _reason(message: str) -> str:
    """Return what xgrammar says of a schema, without its source files: "[time] /path/file.cc:line: reason"."""
    if _WRONG_TYPE in message:
        return "the value of a keyword has the wrong type"
    return re.sub(r"^Check failed: \(.*?\) is false: ", "", message.strip().split(": ", 1)[-1])


class _Compiler:
    """Compiles schemas for one vocabulary, and keeps the last grammars."""

    def __init__(self, vocabulary: xgrammar.TokenizerInfo):
        self._vocabulary = vocabulary
        self._compiler = xgrammar.GrammarCompiler(vocabulary, cache_enabled=False)
        self._grammars: dict[str, xgrammar.CompiledGrammar] = {}
        self._lock = threading.Lock()

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
        compiled = self._grammars.get(text)
        if compiled is None:
            compiled = self._compile(schema)
            with self._lock:  # requests come from several threads
                if len(self._grammars) >= _GRAMMARS_KEPT:
                    del self._grammars[next(iter(self._grammars))]
                self._grammars[text] = compiled
        return compiled

    def _compile(self, schema: dict[str, Any]) -> xgrammar.CompiledGrammar:
        try:
            if schema == _ANY_JSON or not hasattr(os, "fork"):
                return self._compile_here(schema)
            serialized = run_in_child(lambda: self._compile_here(schema).serialize_json().encode(), self.max_seconds)
            return xgrammar.CompiledGrammar.deserialize_json(serialized.decode(), self._vocabulary)
        except ChildFailedError as error:
            if _OUT_OF_MEMORY in str(error):
                raise self._too_large() from None
            raise GenerationError(f"The JSON schema is invalid: {_reason(str(error))}.") from None
        except ChildEndedError:
            raise self._too_large() from None

    def _too_large(self) -> GenerationError:
        return GenerationError(
            f"The JSON schema is too large to compile: it takes more than {self.max_seconds:.0f} s, or too much "
            "memory. Use fewer properties, shorter lengths and patterns, or fewer levels."
        )

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
