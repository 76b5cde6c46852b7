"""Drafts of next tokens, as far as there are pages for them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core.engine.request import Request
from vila_core.language.page_size import PAGE_SIZE

if TYPE_CHECKING:
    from vila_core.engine.runner import Runner


class Drafts:
    """Drafts by prompt lookup, and counts what they saved since the start."""

    def __init__(self) -> None:
        self.drafted = 0
        self.accepted = 0

    def make(self, runner: "Runner", answering: Sequence[Request]) -> dict[Request, list[int]]:
        """Return what the next tokens of requests may be, as far as pages without users are left for them."""
        drafts: dict[Request, list[int]] = {}
        for request in answering:
            left = request.answer.max_new_tokens - request.chosen - 1
            draft = request.lookup.draft(left) if request.lookup is not None and left > 0 else []
            missing = runner.pages_for(request.length + 1 + len(draft)) - len(request.pages)
            if missing > 0 and runner.pool.num_available >= missing + len(answering):
                request.pages += runner.pool.take(missing, request.pages[-1]) or []
            draft = draft[: len(request.pages) * PAGE_SIZE - request.length - 1]
            if draft:
                drafts[request] = draft
        return drafts

    def count(self, request: Request, drafted: int, accepted: int) -> None:
        """Note how many tokens of a draft were right."""
        assert request.lookup is not None, "only a lookup drafts"
        request.lookup.learn(drafted, accepted)
        request.drafted += drafted
        request.accepted += accepted
        self.drafted += drafted
        self.accepted += accepted
