"""Encodes the media of prompts, a few tiles at a time, so that nobody waits until a long video has been encoded.

N tiles, S tokens of a tile, D width, K media tokens of a part
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from vila_core.prompt import PreparedMedium
from vila_core.recently_used import RecentlyUsed

if TYPE_CHECKING:
    from vila_core.model import VilaModel

BEGUN_TILES = 8
"""Tiles that are encoded before their prompt is complete, at most: as many as have a CUDA graph."""
SAMPLES = 10_000

PartKey = tuple[bytes, int]
"""The digest of a medium and the number of one of its parts."""


@dataclass(eq=False)
class Encoding:
    """A part of a medium on its way through the vision tower.

    Attributes:
        medium: the part.
        tiles: what the first tiles have become (see `VilaModel.tile_tokens`), `[n_i, S, D]` each.
        done: how many they are.
    """

    medium: PreparedMedium
    tiles: list[Tensor] = field(default_factory=list[Tensor])
    done: int = 0

    @property
    def left(self) -> int:
        """Tiles that have not been through the tower."""
        return len(self.medium.tiles) - self.done


@dataclass(eq=False)
class MediaPart:
    """A part of a prompt's medium.

    Attributes:
        number: of the medium in the prompt.
        key: equal for parts that become the same tokens.
        medium: the tiles of the part.
        places: of its K tokens in the prompt.
        tokens: `[K, D]` from when they are known until they have been read.
        encoding: while it is being encoded; prompts with the same part share it.
    """

    number: int
    key: PartKey
    medium: PreparedMedium
    places: Sequence[int]
    tokens: Tensor | None = None
    encoding: Encoding | None = None


class MediaEmbeddings:
    """Encodes parts of media, and keeps the tokens of those used last.

    Args:
        network: its vision tower, projector and encoders.
        max_bytes: how much is kept.
    """

    def __init__(self, network: "VilaModel", max_bytes: int):
        self._network = network
        self._kept = RecentlyUsed[Tensor](max_bytes)
        self._running: WeakValueDictionary[PartKey, Encoding] = WeakValueDictionary()
        self._begun: list[Encoding] = []
        self._samples: dict[bytes, None] = {}  # of parts that were ever encoded here, the oldest first

    def load(self, prompts: Sequence[Sequence[MediaPart]], max_tiles: int) -> None:
        """Encode at most `max_tiles` tiles of the parts that prompts wait for; those of all prompts together.

        Parts that are not complete then are continued the next time.

        Args:
            prompts: the parts that each prompt needs, in its order; the prompt that came first is the first.
            max_tiles: at least 1.
        """
        missing = [part for parts in prompts for part in parts if not self._find(part)]
        by_prompt = [[part.encoding for part in parts if part.encoding is not None] for parts in prompts]
        allotted = allot(by_prompt, max_tiles)
        if allotted:
            self._advance(allotted)
        made = self._finish({part.key: part.encoding for part in missing if part.encoding is not None})
        for part in missing:
            if part.key in made:
                part.tokens, part.encoding = made[part.key], None

    def begin(self, media: Sequence[PreparedMedium]) -> None:
        """Encode the media of a prompt before `load` asks for them, if they are few and certainly not known.

        Their digests are not needed for that. What is not asked for is forgotten with the next call.
        """
        parts = [part for medium in media for part in self._network.parts(medium)]
        is_known = any(_sample(part) in self._samples for part in parts)
        is_small = 0 < sum(len(part.tiles) for part in parts) <= BEGUN_TILES
        self._begun = [Encoding(part) for part in parts] if is_small and not is_known else []
        if self._begun:
            for medium in media:
                medium.start_digest()
            self._advance({one: one.left for one in self._begun})

    def clear(self) -> None:
        """Forget the media seen so far."""
        self._kept.clear()
        self._begun = []
        self._samples.clear()

    def _take_begun(self, medium: PreparedMedium) -> Encoding | None:
        """Return the encoding of these very tiles that `begin` made, if any."""
        for index, one in enumerate(self._begun):
            if one.medium.kind == medium.kind and one.medium.tiles.is_same(medium.tiles):
                return self._begun.pop(index)
        return None

    def _find(self, part: MediaPart) -> bool:
        """Give the part its tokens if they are known, else its place among what is being encoded."""
        if part.tokens is None:
            part.tokens = self._kept.get(part.key)
        if part.tokens is not None:
            part.encoding = None
            return True
        if part.encoding is None:
            begun = self._take_begun(part.medium)
            part.encoding = self._running.get(part.key) or begun or Encoding(part.medium)
            self._running[part.key] = part.encoding
            self._samples[_sample(part.medium)] = None
            if len(self._samples) > SAMPLES:
                del self._samples[next(iter(self._samples))]
        return False

    def _advance(self, allotted: dict[Encoding, int]) -> None:
        """Let so many more tiles of each through the tower."""
        tiles = [one.medium.tiles.part(one.done, one.done + count) for one, count in allotted.items()]
        made = self._network.tile_tokens(tiles).split(list(allotted.values()))
        for (one, count), of_one in zip(allotted.items(), made, strict=True):
            one.tiles.append(of_one)
            one.done += count

    def _finish(self, encodings: dict[PartKey, Encoding]) -> dict[PartKey, Tensor]:
        """Return the tokens `[K, D]` of those that have been through the tower."""
        complete = {key: one for key, one in encodings.items() if not one.left}
        if not complete:
            return {}
        parts = [made for one in complete.values() for made in one.tiles]
        tiles = parts[0] if len(parts) == 1 else torch.cat(parts)
        tokens = self._network.media_tokens(tiles, [one.medium for one in complete.values()])
        # Copies: otherwise a small part keeps the memory of all that were encoded together.
        made = {
            key: of_part if of_part.nbytes == of_part.untyped_storage().nbytes() else of_part.clone()
            for key, of_part in zip(complete, tokens, strict=True)
        }
        for key, of_part in made.items():
            self._kept.keep(key, of_part, of_part.nbytes)
        return made


def _sample(medium: PreparedMedium) -> bytes:
    """Return what is different only for different media."""
    return hashlib.blake2b(medium.kind.encode() + medium.tiles.sample(), digest_size=16).digest()


def allot(prompts: Sequence[Sequence[Encoding]], max_tiles: int) -> dict[Encoding, int]:
    """Return how many tiles of each encoding are next, together at most `max_tiles`.

    The prompt that came first gets at least half, and prompts with few tiles come before those with many, so that
    neither a long video nor a stream of pictures keeps the others waiting.
    """
    allotted: dict[Encoding, int] = {}

    def take(encodings: Sequence[Encoding], room: int) -> None:
        for one in encodings:
            count = min(one.left - allotted.get(one, 0), room - sum(allotted.values()))
            if count > 0:
                allotted[one] = allotted.get(one, 0) + count

    waiting = [encodings for encodings in prompts if any(one.left for one in encodings)]
    if waiting:
        take(waiting[0], -(-max_tiles // 2))
    for encodings in sorted(waiting, key=lambda encodings: sum(one.left for one in encodings)):
        take(encodings, max_tiles)
    return allotted
