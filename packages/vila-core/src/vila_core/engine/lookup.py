"""Drafts by prompt lookup: an answer that copies from the prompt, or from itself, probably continues like the original.

The last tokens are looked up in the prompt and the answer, and what followed them there is the draft (Saxena 2023,
"Prompt Lookup Decoding"; transformers' `prompt_lookup_num_tokens`, vLLM's method "ngram"). The model then reads the
whole draft in one step, and keeps as much of it as it would have chosen itself.
"""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from vila_core.engine.inputs import EngineInput
    from vila_core.engine.sampling import GenerationConfig

LONGEST_PAUSE = 16
"""Steps without a draft after several drafts in a row were wrong."""
_MEDIUM = -1
"""Stands for the tokens of media, which are not drafted."""


class PromptLookup:
    """Drafts the next tokens of one answer.

    Args:
        ids: of the prompt; negative ones are neither looked up nor drafted.
        num_tokens: the longest draft.
        max_ngram: how many of the last tokens are looked up at most; if they are not found, fewer are, down to two.
        stops: tokens that end an answer. A draft ends before them, since nothing follows.
    """

    def __init__(self, ids: Sequence[int], num_tokens: int, max_ngram: int, stops: frozenset[int]):
        self._ids = array("q", ids)
        self._num_tokens = num_tokens
        self._stops = stops
        self._length = num_tokens
        self._misses = 0
        self._pause = 0
        self._places: list[dict[tuple[int, ...], int]] = [{} for _ in range(max_ngram)]
        self._smallest = min(2, max_ngram)
        self._indexed = 1

    @classmethod
    def of(cls, prompt: "EngineInput", config: "GenerationConfig", stops: frozenset[int]) -> Self | None:
        """Return what drafts the answer to `prompt`; None if `config` does not ask for drafts."""
        if not config.prompt_lookup_num_tokens:
            return None
        ids = array("q", prompt.ids or ())
        for span in prompt.media if ids else ():
            for place in span.places:
                ids[place] = _MEDIUM
        return cls(ids, config.prompt_lookup_num_tokens, config.max_matching_ngram_size, stops)

    def push(self, token_id: int) -> None:
        """Add a token of the answer."""
        self._ids.append(token_id)

    def draft(self, most: int) -> list[int]:
        """Return at most `most` tokens that may come next, perhaps none."""
        if self._pause:
            self._pause -= 1
            return []
        self._index()
        length = min(most, self._length)
        for size in reversed(range(self._smallest, len(self._places) + 1)):
            start = self._places[size - 1].get(tuple(self._ids[-size:]))
            if start is not None and (draft := self._copy(start, length)):
                return draft
        return []

    def learn(self, drafted: int, accepted: int) -> None:
        """Draft fewer tokens after one was wrong, none for some steps after all were, and more after all were right:
        refused tokens cost time."""
        self._length = min(self._num_tokens, 2 * (accepted + 1) if accepted == drafted else accepted + 1)
        self._misses = 0 if accepted else self._misses + 1
        self._pause = min(2**self._misses, LONGEST_PAUSE) if self._misses > 1 else 0

    def _copy(self, start: int, length: int) -> list[int]:
        """Return the tokens from `start` on. What repeats itself is continued beyond its end."""
        draft: list[int] = []
        for place in range(start, start + length):
            known = place - len(self._ids)
            token_id = self._ids[place] if known < 0 else draft[known]
            if token_id < 0 or token_id in self._stops:
                break
            draft.append(token_id)
        return draft

    def _index(self) -> None:
        """Note for each n-gram that something follows where that begins; of equal ones the last counts."""
        for place in range(self._indexed, len(self._ids)):
            for size in range(1, min(len(self._places), place) + 1):
                if self._ids[place - size] < 0:
                    break
                self._places[size - 1][tuple(self._ids[place - size : place])] = place
        self._indexed = max(self._indexed, len(self._ids))
