"""The pages of the KV cache: which are free, which are in use, and which are kept for prompts that begin alike.

A page holds the keys and values of `PAGE_SIZE` consecutive tokens in every layer. A full page whose content is known by
its key (see `prefix.py`) stays when its last user leaves, until the space is needed: the page used longest ago goes
first. This is bookkeeping only: the tensors belong to the runner.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from vila_core.language.page_size import PAGE_SIZE


def pages_of(tokens: int) -> int:
    """Return how many pages hold so many tokens."""
    return -(-tokens // PAGE_SIZE)


class PagePool:
    """Gives out pages 0 … `num_pages` - 1."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(range(num_pages))  # sorted, so that a request gets consecutive pages where it can
        self._users: dict[int, int] = {}
        self._kept: dict[int, None] = {}  # without users, the one used longest ago first
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_available(self) -> int:
        """Pages that `take` can give: free ones, and those that are only kept."""
        return len(self._free) + len(self._kept)

    @property
    def num_used(self) -> int:
        """Pages that requests hold."""
        return len(self._users)

    @property
    def num_kept(self) -> int:
        """Pages without users that are kept for prompts that begin alike."""
        return len(self._kept)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """Return the pages with the first of `keys`, up to the first that is missing; the caller becomes a user."""
        found: list[int] = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            self._kept.pop(page, None)
            self._users[page] = self._users.get(page, 0) + 1
            found.append(page)
        return found

    def take(self, count: int, after: int | None = None) -> list[int] | None:
        """Return `count` pages that nobody uses; None, and nothing is taken, if there are too few.

        Args:
            count: how many.
            after: the page before the first of them: consecutive pages are read faster.
        """
        if count > self.num_available:
            return None
        taken: list[int] = []
        for _ in range(count):
            if not self._free:
                self._forget(next(iter(self._kept)))
            place = bisect_left(self._free, 0 if after is None else after + 1)
            after = self._free.pop(place if place < len(self._free) else 0)
            self._users[after] = 1
            taken.append(after)
        return taken

    def keep(self, page: int, key: bytes) -> None:
        """Remember what a full page in use holds. A page whose content another one already holds is not remembered."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Take a user from each page. `pages` are those of one prompt, in order: of those kept, the last goes first."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page]:
                continue
            del self._users[page]
            if page in self._key_of:
                self._kept[page] = None
            else:
                insort(self._free, page)

    def clear(self) -> None:
        """Forget the pages that are only kept."""
        for page in list(self._kept):
            self._forget(page)

    def _forget(self, page: int) -> None:
        del self._kept[page]
        del self._page_of[self._key_of.pop(page)]
        insort(self._free, page)
