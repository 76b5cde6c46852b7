"""Inputs of the language model: the text and media of a request, embedded piece by piece.

T tokens of the prompt, D width
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from vila_core.engine.media import MediaPart
from vila_core.engine.prefix import MediaSpan
from vila_core.prompt import PreparedMedium
from vila_core.uploads import upload

if TYPE_CHECKING:
    from vila_core.encoders import ExpandedPrompt
    from vila_core.language import LanguageModel
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

    def ready(self, start: int) -> int:
        """Return up to which token `embed` can read from `start` on: T, unless media are still to be encoded."""
        ...

    def embed(self, start: int, end: int) -> Tensor:
        """Return the embeddings of tokens `start` … `end` - 1, `[end - start, D]`."""
        ...

    def release(self, end: int) -> None:
        """Forget the media tokens before `end`, which have been read."""
        ...


class EmbeddedPrompt:
    """A prompt `[T, D]` that is already embedded."""

    ids = None
    media: Sequence[MediaSpan] = ()

    def __init__(self, embeds: Tensor):
        self._embeds = embeds

    def __len__(self) -> int:
        return len(self._embeds)

    def ready(self, start: int) -> int:
        """See `EngineInput`."""
        del start
        return len(self)

    def embed(self, start: int, end: int) -> Tensor:
        """Return a part of the prompt, `[end - start, D]`."""
        return self._embeds[start:end]

    def release(self, end: int) -> None:
        """See `EngineInput`: there is nothing to forget."""


class TextPrompt:
    """A prompt of token ids.

    Args:
        llm: embeds them.
        ids: at least one.
    """

    media: Sequence[MediaSpan] = ()

    def __init__(self, llm: "LanguageModel", ids: Sequence[int]):
        self._llm = llm
        self.ids = list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def ready(self, start: int) -> int:
        """See `EngineInput`."""
        del start
        return len(self)

    def embed(self, start: int, end: int) -> Tensor:
        """Return the embeddings of a part of the prompt, `[end - start, D]`."""
        weight = next(cast("nn.Module", self._llm).parameters())
        return self._llm.embed(torch.tensor([self.ids[start:end]], device=weight.device))[0]

    def release(self, end: int) -> None:
        """See `EngineInput`: there is nothing to forget."""


class MediaPrompt:
    """A prepared prompt. `MediaEmbeddings.load` encodes its media, part by part.

    Args:
        network: embeds the text.
        prompt: text and media.
        expanded: its ids, with room for the media.
    """

    def __init__(self, network: "VilaModel", prompt: "PreparedPrompt", expanded: "ExpandedPrompt"):
        self.ids = expanded.ids
        places = _places_by_medium(expanded)
        self.media: Sequence[MediaSpan] = [
            MediaSpan(of_medium, one.digest) for of_medium, one in zip(places, prompt.media, strict=True)
        ]
        self._network = network
        self._parts = [
            part
            for number, (medium, span) in enumerate(zip(prompt.media, self.media, strict=True))
            for part in _parts(network, number, medium, span)
            if part.places
        ]

    def __len__(self) -> int:
        return len(self.ids)

    def missing(self, start: int, end: int | None = None) -> list[MediaPart]:
        """Return the parts of media that have tokens in `start` … `end` - 1 (None: the end) and are not encoded."""
        stop = len(self) if end is None else end
        return [
            part for part in self._parts if part.tokens is None and part.places[-1] >= start and part.places[0] < stop
        ]

    def ready(self, start: int) -> int:
        """See `EngineInput`."""
        missing = next(iter(self.missing(start)), None)
        return len(self) if missing is None else max(start, missing.places[0])

    def embed(self, start: int, end: int) -> Tensor:
        """Return the embeddings of a part of the prompt, `[end - start, D]`."""
        device = next(self._network.parameters()).device
        places: list[int] = []
        tokens: list[Tensor] = []
        for part in self._parts:
            first, last = bisect_left(part.places, start), bisect_left(part.places, end)
            if first < last:
                assert part.tokens is not None, "media are encoded before they are read"
                places += [place - start for place in part.places[first:last]]
                tokens.append(part.tokens[first:last])
        ids, where = upload([*self.ids[start:end], *places], device).split([end - start, len(places)])
        embeds = self._network.llm.embed(ids[None])[0]
        if not places:
            return embeds
        of_media = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
        return embeds.index_copy(0, where, of_media.to(embeds.dtype))

    def release(self, end: int) -> None:
        """See `EngineInput`."""
        for part in self._parts:
            if part.places[-1] < end:
                part.tokens = part.encoding = None


def _places_by_medium(expanded: "ExpandedPrompt") -> list[list[int]]:
    """Return the positions of the tokens of each medium, in order."""
    places = expanded.places
    ends = [bisect_left(places, blocks[-1].stop) for blocks in expanded.blocks]
    return [places[start:end] for start, end in pairwise([0, *ends])]


def _parts(network: "VilaModel", number: int, medium: PreparedMedium, span: MediaSpan) -> list[MediaPart]:
    """Return the parts of a medium whose tokens have the places of `span`."""
    parts = network.parts(medium)
    ends = list(accumulate(map(network.num_tokens, parts)))
    if ends[-1] != len(span.places):  # an encoder of a plugin that counts its frames in its own way
        parts, ends = [medium], [len(span.places)]
    return [
        MediaPart(number, (span.digest, index), part, span.places[start:end])
        for index, (part, (start, end)) in enumerate(zip(parts, pairwise([0, *ends]), strict=True))
    ]
