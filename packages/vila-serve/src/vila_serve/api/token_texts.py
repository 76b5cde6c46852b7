"""The text and the bytes of single tokens, for log-probabilities."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from vila_core.engine.completion import TokenLogprobs
from vila_serve.api.schemas.chat import TokenLogprob, TopLogprob

LOWEST = -9999.0
"""What OpenAI reports in place of minus infinity, which JSON cannot hold."""
_WORD_START = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Return the character that stands for each byte in a byte-level vocabulary (from GPT-2's `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


class TokenTexts:
    """Describes the tokens of a vocabulary: byte-level as Qwen's and Llama 3's, or with byte tokens as LLaMA's.

    Args:
        tokens: the tokenizer's spelling of each id.
    """

    def __init__(self, tokens: Sequence[str | None]):
        self._tokens = tokens
        self._is_byte_level = "Ġ" in tokens and _WORD_START not in tokens
        self.bytes_of = lru_cache(maxsize=65_536)(self._bytes_of)

    def _bytes_of(self, token_id: int) -> bytes:
        """Return what the token contributes to the bytes of a text."""
        token = self._tokens[token_id] if token_id < len(self._tokens) else None
        if token is None:  # the model's vocabulary is larger than the tokenizer's
            return b""
        if self._is_byte_level and all(character in _ALPHABET for character in token):
            return bytes(_ALPHABET[character] for character in token)
        if found := _BYTE.fullmatch(token):
            return bytes([int(found[1], 16)])
        return token.replace(_WORD_START, " ").encode(errors="replace")

    def entry(self, logprobs: TokenLogprobs) -> TokenLogprob:
        """Return a token of an answer as OpenAI reports it."""
        return TokenLogprob(
            **self._fields(logprobs.token_id, logprobs.logprob),
            top_logprobs=[TopLogprob(**self._fields(token, value)) for token, value in logprobs.top],
        )

    def _fields(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self.bytes_of(token_id)
        return {"token": data.decode(errors="replace"), "logprob": max(logprob, LOWEST), "bytes": list(data)}
