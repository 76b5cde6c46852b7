"""Reuses whole prompts: those of companions, which are the same for every picture.

Pages are shared whole, but such a prompt ends in the middle of one. The first companion that has read it lets others
find that page, and the hidden state of the prompt's last token. The next one computes nothing: it copies the
page, to which it then adds its own tokens.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from vila_core.engine.request import Request
from vila_core.language.page_size import PAGE_SIZE

if TYPE_CHECKING:
    from vila_core.engine.runner import Runner

MAX_PROMPTS = 64
"""Hidden states that are kept; there are as many as negative prompts in use."""


class KnownPrompts:
    """Remembers prompts of companions. Their pages are in the runner's pool, which may need them for something else."""

    def __init__(self) -> None:
        self._hidden: dict[bytes, Tensor] = {}  # the one used longest ago first

    def keep(self, runner: "Runner", request: Request, hidden: Tensor) -> None:
        """Remember the prompt of a companion that has read it.

        Args:
            runner: has its pages.
            request: the companion.
            hidden: of the prompt's last token, `[D]`.
        """
        assert request.keys is not None, "prompts without keys are not shared"
        key = request.keys.whole
        runner.pool.keep(request.pages[_last_page(request)], key)
        self._hidden.pop(key, None)
        self._hidden[key] = hidden.clone()  # not the states of other prompts that were read with it
        if len(self._hidden) > MAX_PROMPTS:
            del self._hidden[next(iter(self._hidden))]

    def clear(self) -> None:
        """Forget all prompts."""
        self._hidden.clear()

    def touch(self, runner: "Runner", request: Request) -> None:
        """Note that the page of a companion's prompt is about to be copied: others are given away first."""
        if request.keys is not None:
            runner.pool.release(runner.pool.find([request.keys.whole]))

    def copy(self, runner: "Runner", request: Request) -> int:
        """Copy the last page of a companion's prompt if it is known; return how many tokens need not be read then.

        The companion has all pages that it needs, and shares those before the last one if they are known.
        """
        if request.keys is None:
            return 0
        key, is_next = request.keys.whole, request.length == _last_page(request) * PAGE_SIZE
        found = runner.pool.find([key]) if is_next and key in self._hidden else []
        if not found:
            return 0
        runner.copy_page(found[0], request.pages[_last_page(request)])
        runner.pool.release(found)
        self._hidden[key] = hidden = self._hidden.pop(key)
        if not request.answer.length:
            request.last_hidden = hidden
        copied, request.length = len(request.prompt) - request.length, len(request.prompt)
        return copied


def _last_page(request: Request) -> int:
    return (len(request.prompt) - 1) // PAGE_SIZE
