"""Keys of pages: equal exactly if the page, and everything before it, holds the same tokens and media.

The key of a page is a BLAKE2b digest of the key before it and of the page's content, so two prompts share a page only
if they begin alike. A digest that cannot be forged keeps one user's prompt from being answered from another's.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from vila_core.language.page_size import PAGE_SIZE
from vila_core.tiles import DIGEST_BYTES

if TYPE_CHECKING:
    from vila_core.engine.inputs import EngineInput
    from vila_core.engine.limits import EngineConfig
    from vila_core.engine.runner import Runner


@dataclass(frozen=True)
class MediaSpan:
    """Where the tokens of a medium are in a prompt.

    Attributes:
        places: the positions of its tokens, in order.
        digest: of its pixels and layout.
    """

    places: Sequence[int]
    digest: bytes


class PageKeys:
    """The keys of a growing sequence of tokens.

    Args:
        ids: the token ids so far; those of media are ignored.
        media: the media among them.
    """

    def __init__(self, ids: Sequence[int], media: Sequence[MediaSpan] = ()):
        self.keys: list[bytes] = []
        self._digests: list[tuple[int, bytes]] = []  # each medium in each of its pages
        codes = np.array(ids, dtype=np.int64)
        for span in media:
            places = np.array(span.places, dtype=np.int64)
            codes[places] = -1 - np.arange(len(places))
            self._digests += [(int(page), span.digest) for page in np.unique(places // PAGE_SIZE)]
        self._rest = array("q", codes.tobytes())  # ids after the last complete page
        self._complete()

    def push(self, token_id: int) -> None:
        """Add a token."""
        self._rest.append(token_id)
        self._complete()

    @property
    def whole(self) -> bytes:
        """The key of the last page, full or not, and of everything before it."""
        key = blake2b(self.keys[-1] if self.keys else b"", digest_size=DIGEST_BYTES, person=b"whole")
        key.update(self._rest.tobytes())
        for _, digest in self._digests:
            key.update(digest)
        return key.digest()

    def _complete(self) -> None:
        while len(self._rest) >= PAGE_SIZE:
            key = blake2b(self.keys[-1] if self.keys else bytes(DIGEST_BYTES), digest_size=DIGEST_BYTES)
            key.update(self._rest[:PAGE_SIZE].tobytes())
            for digest in self._digests_of(len(self.keys)):
                key.update(digest)
            self.keys.append(key.digest())
            del self._rest[:PAGE_SIZE]

    def _digests_of(self, page: int) -> Iterator[bytes]:
        while self._digests and self._digests[0][0] == page:
            yield self._digests.pop(0)[1]


def keys_of(prompt: "EngineInput", runner: "Runner", config: "EngineConfig") -> PageKeys | None:
    """Return the keys of a prompt's pages; None if they are not shared."""
    shares = config.shares_prefixes and runner.reads_in_chunks
    return PageKeys(prompt.ids, prompt.media) if shares and prompt.ids is not None else None
