"""Token ids to text as they come: never half a character, never text that a stop string may still cut."""

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decodes(Protocol):
    """The part of `Tokenizer` that this file needs."""

    def decode(self, ids: Sequence[int]) -> str: ...


class Detokenizer:
    """Token ids in, pieces of text out; the pieces joined are the text of all ids.

    (Where a tokenizer with byte fallback writes bytes that are no UTF-8, it would call the valid bytes before them
    unknown too; here those stay, since they are out already.)

    What an id means depends on those before it (a leading space, bytes of one character), so each is decoded behind
    the ids of the piece before. Text that ends in replacement characters waits for the bytes that complete it.
    """

    def __init__(self, tokenizer: Decodes):
        self._tokenizer = tokenizer
        self._window: list[int] = []  # ids of the piece before, then those not yet wholly given out
        self._num_context = 0  # ids of the piece before
        self._num_given = 0  # characters of the window's text that are already out

    def push(self, token_id: int) -> str:
        """Add an id; return the text that is now certain, often empty."""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        certain = text.rstrip(_REPLACEMENT)
        piece = certain[self._num_given :]
        if piece:
            self._num_given = len(certain)
            if certain == text:
                self._window = self._window[self._num_context :]
                self._num_context = len(self._window)
                self._num_given = len(self._tokenizer.decode(self._window))
        return piece

    def finish(self) -> str:
        """Return the rest, with replacement characters where bytes are missing."""
        piece = self._tokenizer.decode(self._window)[self._num_given :]
        self._num_given += len(piece)
        return piece


class StopStrings:
    """Cuts a growing text at the first stop string, and holds back whatever may be the beginning of one."""

    def __init__(self, stop: Sequence[str]):
        self._stop = stop
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Add text; return what is certain to come before any stop string."""
        text = self._held + piece
        starts = [text.find(stop) for stop in self._stop if stop in text]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        """Return what was held back for a stop string that never came."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
