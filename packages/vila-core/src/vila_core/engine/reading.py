"""Reads the prompts of requests, a chunk at a time: encodes their media, embeds them, and runs the language model.

n requests, D width
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vila_core.engine.failures import as_error
from vila_core.engine.inputs import EngineInput
from vila_core.engine.request import Request
from vila_core.engine.sharing import CHUNKS_AT_ONCE, share
from vila_core.language import LanguageModel

if TYPE_CHECKING:
    from vila_core.engine.drawing import OutputModes
    from vila_core.engine.limits import EngineConfig
    from vila_core.engine.runner import Runner

LoadMedia = Callable[[Sequence[tuple[EngineInput, int, int]], int], None]
"""Encodes media of prompts, at most the given number of tiles in all. Each prompt comes with the start and end of what
is read of it next; it is not read past media that are still not encoded then."""
TILE_CHUNKS_AT_ONCE = 8
"""A request that is alone may have this many times `chunk_tiles` encoded in a step."""


class Reader:
    """Reads prompts, and the answers so far of requests that had to give up their pages.

    Args:
        llm: the language model.
        config: how much is read at once.
        load: encodes media together.
        modes: embeds what has been drawn.
        fail: ends a request that cannot be read, of this runner, with its error.
    """

    def __init__(
        self,
        llm: LanguageModel,
        config: "EngineConfig",
        load: LoadMedia | None,
        modes: "OutputModes | None",
        fail: Callable[["Runner", Request, Exception], None],
    ):
        self._llm = llm
        self._config = config
        self._load = load
        self._modes = modes
        self._fail = fail

    def read(self, runner: "Runner", reading: Sequence[Request], *, others_wait: bool) -> list[tuple[Request, Tensor]]:
        """Read a part of the prompts; return those that are complete with the hidden states `[D]` of their last tokens.

        Args:
            runner: computes.
            reading: what is to be read.
            others_wait: whether the step must be short, since other requests are answered or wait to be; if not, more
                is read.
        """
        self._encode(runner, reading, others_wait=others_wait)
        complete: list[tuple[Request, Tensor]] = []
        for parts in self._parts(runner, _without_ended(reading), others_wait=others_wait):
            complete += self._read_parts(runner, [part for part in parts if not part[0].has_ended])
        return [done for done in complete if not done[0].has_ended]

    def _encode(self, runner: "Runner", reading: Sequence[Request], *, others_wait: bool) -> None:
        """Encode media of requests together; if that fails, one by one, so that only the broken one fails.

        What is encoded is about to be read: the media of a long prompt are neither all in memory at once, nor do
        others wait for all of them.
        """
        waiting = [request for request in reading if request.length < len(request.prompt)]
        if self._load is None or not waiting:
            return
        begin = time.perf_counter()
        at_once = 1 if others_wait else CHUNKS_AT_ONCE
        ahead = self._config.chunk_tokens * at_once if runner.reads_in_chunks else self._llm.config.max_length
        tiles = self._config.chunk_tiles * (1 if others_wait else TILE_CHUNKS_AT_ONCE)
        try:
            self._load([(request.prompt, request.length, request.length + ahead) for request in waiting], tiles)
        except Exception as error:  # noqa: BLE001 - it ends this request only
            if len(waiting) == 1:
                self._fail(runner, waiting[0], as_error(error))
            else:
                for request in waiting:
                    self._encode(runner, [request], others_wait=others_wait)
            return
        for request in waiting:
            request.times.encoding += (time.perf_counter() - begin) / len(waiting)

    def _parts(
        self, runner: "Runner", reading: Sequence[Request], *, others_wait: bool
    ) -> list[list[tuple[Request, int]]]:
        """Return which requests are read now, each up to which token, in groups that are read together."""
        if not runner.reads_in_chunks:
            return [[(one, one.num_tokens)] for one in reading if one.readable == one.num_tokens]
        return share(reading, self._config.chunk_tokens, others_wait=others_wait)

    def _read_parts(self, runner: "Runner", parts: Sequence[tuple[Request, int]]) -> list[tuple[Request, Tensor]]:
        """Read requests together; return those that are complete with the hidden states `[D]` of their last tokens."""
        if not parts:
            return []
        try:
            embeds = [self._embed(runner, request, end) for request, end in parts]
            hidden = runner.read([request for request, _ in parts], embeds)  # [n, D]
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends one request only
            if len(parts) == 1:
                self._fail(runner, parts[0][0], as_error(error))
                return []
            return [done for part in parts if not part[0].has_ended for done in self._read_parts(runner, [part])]
        for request, end in parts:
            request.length = end
            request.prompt.release(end)
        return [
            (request, last) for (request, end), last in zip(parts, hidden, strict=True) if end == request.num_tokens
        ]

    def _embed(self, runner: "Runner", request: Request, end: int) -> Tensor:
        """Return the embeddings of the request's tokens from `length` to `end`, those of its answer included."""
        start, own = request.length, len(request.prompt)
        parts: list[Tensor] = []
        if start < own:
            parts.append(request.prompt.embed(start, min(end, own)))
        for run in request.answer.runs(max(start - own, 0), end - own):
            if isinstance(run[0], int):
                parts.append(self._llm.embed(torch.tensor([run], device=runner.device))[0])
            else:
                assert self._modes is not None, "only a model with a head draws"
                drawn = self._modes.head.embed(torch.tensor(run, device=runner.device))
                parts.append(drawn.to(parts[0].dtype if parts else runner.dtype))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def _without_ended(requests: Sequence[Request]) -> list[Request]:
    return [request for request in requests if not request.has_ended]
