"""Streams token ids as text: whole characters only, and no text that a stop string may still cut."""

from collections.abc import Sequence

from vila_core.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Turns token ids into pieces of text, which join to the text of all ids.

    The text of an id depends on the ids before it (a leading space, bytes of one character), so each id is decoded
    together with those of the previous piece. Text that ends in replacement characters is held back until the bytes
    that complete it arrive.

    There is one exception: for bytes that are not UTF-8, a tokenizer with byte fallback also replaces the valid bytes
    before them. These have already been returned here, so they stay.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._window: list[int] = []  # ids of the previous piece, then ids whose text is not complete
        self._num_context = 0  # how many ids belong to the previous piece
        self._num_given = 0  # characters of the window's text that have been returned

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
        """Return the remaining text, with replacement characters for missing bytes."""
        piece = self._tokenizer.decode(self._window)[self._num_given :]
        self._num_given += len(piece)
        return piece


class StopStrings:
    """Cuts a growing text at the first stop string, and holds back text that may be the beginning of one."""

    def __init__(self, stop: Sequence[str]):
        self._stop = stop
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Add text; return the part that certainly comes before any stop string."""
        text = self._held + piece
        starts = [text.find(stop) for stop in self._stop if stop in text]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        """Return the text that was held back for a stop string that did not come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
