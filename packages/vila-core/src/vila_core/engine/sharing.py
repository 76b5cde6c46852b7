"""Divides a step among the requests whose prompts are being read."""

from collections.abc import Sequence
from itertools import accumulate

from vila_core.engine.request import Request
from vila_core.language.page_size import PAGE_SIZE

CHUNKS_AT_ONCE = 4
"""Chunks of a prompt read in one step if its request is alone."""
MIN_TOKENS = 256
"""Fewer tokens are not read before the next media of a prompt are encoded: reading them takes as long."""


def share(reading: Sequence[Request], chunk: int, *, others_wait: bool) -> list[list[tuple[Request, int]]]:
    """Return which requests are read now, each up to which token, in groups that are read together.

    Short prompts are read whole, in the order in which they came. Long ones share what is left equally, which is at
    least half, so that neither kind waits for the other. Nothing is read past media that are still to be encoded.

    Args:
        reading: the requests.
        chunk: tokens to read.
        others_wait: whether the step must be short, since other requests are answered or wait to be; if not, more is
            read.
    """
    budget = chunk * (1 if others_wait else CHUNKS_AT_ONCE)
    short: list[Request] = []
    ends: dict[Request, int] = {}  # of the long ones
    for one, end in ((one, one.readable) for one in reading):
        if end == one.num_tokens and not one.length and end <= chunk // 2:
            short.append(one)
        elif end == one.num_tokens or end - one.length >= min(MIN_TOKENS, chunk):
            ends[one] = end
    long = list(ends)
    totals = accumulate(request.num_tokens for request in short)
    now = [one for one, total in zip(short, totals, strict=True) if total <= (budget // 2 if long else budget)]
    left = budget - sum(request.num_tokens for request in now)
    each = max(PAGE_SIZE, left // max(1, len(long)) // PAGE_SIZE * PAGE_SIZE)
    parts = [(request, min(ends[request], request.length + each)) for request in long[: max(1, left // each)]]
    return [*_groups(now, chunk), *([part] for part in parts)]


def _groups(requests: Sequence[Request], chunk: int) -> list[list[tuple[Request, int]]]:
    """Return requests that are read whole in groups of similar lengths, padded to at most `chunk` tokens together.

    The weights are read once for a group, at most half of which is padding.
    """
    groups: list[list[tuple[Request, int]]] = []
    for request in sorted(requests, key=lambda request: request.num_tokens):
        tokens = request.num_tokens
        if groups and (len(groups[-1]) + 1) * tokens <= chunk and tokens <= 2 * groups[-1][0][1]:
            groups[-1].append((request, tokens))
        else:
            groups.append([(request, tokens)])
    return groups
