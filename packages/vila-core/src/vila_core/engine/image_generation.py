"""Image generation with an engine: one request per picture, with reports of progress."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from vila_core.engine.drawing import DrawingRequest, Drawn
from vila_core.engine.drawing_settings import DrawingConfig
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import EngineInput
from vila_core.engine.request import Handle
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError, shown
from vila_core.generation.heads import GenerationHead
from vila_core.generation.pictures import DrawingProgress, row_of

MAX_PICTURES = 256
"""Limit on the pictures of one call."""
ROWS_BETWEEN_REPORTS = 4
OnProgress = Callable[[DrawingProgress], None]


def checked_count(n: object) -> int:
    """Return the number of pictures. Raises `GenerationError` unless it is an integer within the limit."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_PICTURES:
        raise GenerationError(f"n is the number of pictures, 1 to {MAX_PICTURES}, got {shown(n)}.")
    return n


def picture_request(config: DrawingConfig, number: int) -> tuple[GenerationConfig, DrawingRequest]:
    """Return what the engine is asked for picture `number` of a prompt: an answer that is this picture alone."""
    return GenerationConfig(max_new_tokens=1, seed=config.seed), DrawingRequest(config, number)


def draw_pictures(
    engine: Engine,
    head: GenerationHead,
    kind: str,
    prompts: Sequence[tuple[EngineInput, int]],
    config: DrawingConfig,
    on_progress: OnProgress | None,
    device: torch.device,
) -> list[Drawn]:
    """Draw pictures together, one for each prompt.

    Args:
        engine: answers the prompts.
        head: of the model.
        kind: what is drawn.
        prompts: each ends with the start token of this kind; the number tells pictures of one prompt apart. A picture
            has the same codes whatever is drawn beside it.
        config: with a seed.
        on_progress: called when another few rows have been drawn, and at the end.
        device: of the model.
    """
    with ExitStack() as stack:
        handles: list[Handle] = []
        for prompt, number in prompts:
            handle = engine.submit_when_free(prompt, *picture_request(config, number))
            stack.callback(handle.cancel)  # if one fails, or the user interrupts, the others end too
            handles.append(handle)
        if on_progress is not None:
            _follow(engine, handles, _Report(head, kind, len(handles), on_progress, device))
        drawn = [part for handle in handles for part in handle.result().parts]
    return [part for part in drawn if isinstance(part, Drawn)]


class _Report:
    """Collects the codes of `n` pictures, and calls `call` every few rows."""

    def __init__(self, head: GenerationHead, kind: str, n: int, call: OnProgress, device: torch.device):
        output = head.kinds[kind]
        self.codes: list[list[Sequence[int]]] = [[] for _ in range(n)]
        self._total = n * output.positions
        self._step = ROWS_BETWEEN_REPORTS * row_of(output.positions // output.frames) * n
        self._next = self._step
        self._context = head, kind, self.codes, device
        self._call = call

    def update(self) -> None:
        """Report if enough has been drawn since the last report."""
        done = sum(map(len, self.codes))
        if done >= self._next:
            self._next = min(done + self._step, self._total) if done < self._total else self._total + 1
            self._call(DrawingProgress(done, self._total, *self._context))


def _follow(engine: Engine, handles: Sequence[Handle], report: _Report) -> None:
    """Step until all pictures have ended, and report progress."""
    while True:
        have_ended = all(handle.has_ended for handle in handles)
        for handle, codes in zip(handles, report.codes, strict=True):
            codes += [piece.codes for piece in handle.take() if piece.codes is not None]
        report.update()
        if have_ended:
            return
        engine.step()
