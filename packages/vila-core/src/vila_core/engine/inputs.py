"""What a request gives the language model to read: text and media, embedded piece by piece.

T tokens of the prompt, D width, K tokens of a medium
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from vila_core.engine.prefix import MediaSpan
from vila_core.prompt import PreparedMedium
from vila_core.recently_used import RecentlyUsed

if TYPE_CHECKING:
    from vila_core.encoders import ExpandedPrompt
    from vila_core.model import VilaModel
    from vila_core.prompt import PreparedPrompt


class EngineInput(Protocol):
    """A prompt as the engine reads it.

    Attributes:
        ids: T token ids, any at media positions; None if the prompt is not made of tokens. Its pages are then not
            shared with other prompts.
        media: where the media are.
    """

    @property
    def ids(self) -> Sequence[int] | None: ...

    @property
    def media(self) -> Sequence[MediaSpan]: ...

    def __len__(self) -> int:
        """T."""
        ...

    def embed(self, start: int, end: int) -> Tensor:
        """Return the embeddings of tokens `start` … `end` - 1, `[end - start, D]`."""
        ...


class EmbeddedPrompt:
    """A prompt `[T, D]` that is already embedded."""

    ids = None
    media: Sequence[MediaSpan] = ()

    def __init__(self, embeds: Tensor):
        self._embeds = embeds

    def __len__(self) -> int:
        return len(self._embeds)

    def embed(self, start: int, end: int) -> Tensor:
        """Return a part of the prompt, `[end - start, D]`."""
        return self._embeds[start:end]


class MediaPrompt:
    """A prepared prompt. `MediaEmbeddings.load` must have encoded the media before their tokens are read.

    Args:
        network: embeds the text.
        prompt: text and media.
        expanded: its ids, with room for the media.
    """

    def __init__(self, network: "VilaModel", prompt: "PreparedPrompt", expanded: "ExpandedPrompt"):
        self.ids = expanded.ids
        self._network = network
        self._media = prompt.media
        self._places = _places_by_medium(expanded)
        self._tokens: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def media(self) -> Sequence[MediaSpan]:
        """Where the media are."""
        return [MediaSpan(places, one.digest) for places, one in zip(self._places, self._media, strict=True)]

    def media_from(self, start: int) -> dict[int, PreparedMedium]:
        """Return the media that have tokens at `start` or later, by number."""
        return {
            number: medium
            for number, (medium, places) in enumerate(zip(self._media, self._places, strict=True))
            if places and places[-1] >= start
        }

    def hold(self, tokens: Mapping[int, Tensor]) -> None:
        """Keep the tokens of media, `[K_i, D]` by number, until they are replaced."""
        self._tokens = dict(tokens)

    def embed(self, start: int, end: int) -> Tensor:
        """Return the embeddings of a part of the prompt, `[end - start, D]`."""
        llm = self._network.llm
        ids = torch.tensor([self.ids[start:end]], device=next(self._network.parameters()).device)
        embeds = llm.embed(ids)[0]
        for number, places in enumerate(self._places):
            first, last = bisect_left(places, start), bisect_left(places, end)
            if first < last:
                index = torch.tensor(places[first:last], device=embeds.device) - start
                embeds = embeds.index_copy(0, index, self._tokens[number][first:last].to(embeds.dtype))
        return embeds


def _places_by_medium(expanded: "ExpandedPrompt") -> list[list[int]]:
    """Return the positions of the tokens of each medium, in order."""
    places = expanded.places
    ends = [bisect_left(places, blocks[-1].stop) for blocks in expanded.blocks]
    return [places[start:end] for start, end in pairwise([0, *ends])]


class MediaEmbeddings:
    """Encodes media, and keeps the tokens of those used last.

    Args:
        network: its vision tower, projector and encoders.
        max_bytes: how much is kept.
    """

    def __init__(self, network: "VilaModel", max_bytes: int):
        self._network = network
        self._kept = RecentlyUsed[Tensor](max_bytes)

    def load(self, prompts: Sequence[tuple[EngineInput, int]]) -> None:
        """Encode the media that each prompt needs from a position on. Those of all prompts are encoded together."""
        needed = [(prompt, prompt.media_from(start)) for prompt, start in prompts if isinstance(prompt, MediaPrompt)]
        tokens = self.encode([medium for _, media in needed for medium in media.values()])
        for prompt, media in needed:
            prompt.hold({number: tokens[medium.digest] for number, medium in media.items()})

    def encode(self, media: Sequence[PreparedMedium]) -> Mapping[bytes, Tensor]:
        """Return the tokens of media, `[K_i, D]` by digest."""
        by_digest = {medium.digest: medium for medium in media}
        kept = {digest: self._kept.get(digest) for digest in by_digest}
        tokens = {digest: known for digest, known in kept.items() if known is not None}
        missing = {digest: medium for digest, medium in by_digest.items() if digest not in tokens}
        if missing:
            made = self._network.encode(list(missing.values()))
            for digest, of_medium in zip(missing, made, strict=True):
                tokens[digest] = of_medium
                if of_medium.nbytes <= self._kept.max_bytes:
                    # A copy: otherwise a small part keeps the memory of all that were encoded together.
                    self._kept.keep(digest, of_medium.clone(), of_medium.nbytes)
        return tokens
