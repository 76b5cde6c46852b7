"""Lets requests change between writing and drawing in the middle of an answer."""

from dataclasses import replace
from typing import TYPE_CHECKING

from vila_core.engine.admission import Admission
from vila_core.engine.answer import Piece
from vila_core.engine.drawing import Drawn
from vila_core.engine.pictures import Pictures
from vila_core.engine.request import Request, State
from vila_core.engine.request_lists import RequestLists, release

if TYPE_CHECKING:
    from vila_core.engine.runner import Runner


class ModeSwitch:
    """Turns a request that writes into one that draws, and back.

    Args:
        pictures: begins them.
        requests: by state.
        admission: finds the rows and pages that a request needs then.
    """

    def __init__(self, pictures: Pictures, requests: RequestLists, admission: Admission):
        self._pictures = pictures
        self._requests = requests
        self._admission = admission

    def note_token(self, runner: "Runner", request: Request, token_id: int) -> None:
        """Let a request that has written this token draw, if it is a start token."""
        kind = self._pictures.kind_after((token_id,))
        if kind is None:
            return
        if not self._pictures.fits(request, kind):
            request.pieces.append(request.answer.end("length"))
            self._requests.end(runner, request)
            return
        self._requests.leave_rows(runner, request)
        self._pictures.begin(runner, request, kind)
        self._read_again(runner, request)

    def end_picture(self, runner: "Runner", request: Request, codes: tuple[int, ...]) -> None:
        """End a picture with the codes of its last position; the request has ended then, or writes again."""
        assert request.drawing is not None
        text, drawn = request.answer.push_drawn(Drawn(request.drawing.kind, tuple(request.drawing.codes)))
        if request.drawing.is_all:
            request.pieces.append(replace(request.answer.end("stop"), codes=codes, drawn=drawn))
            self._requests.end(runner, request)
            return
        request.pieces.append(Piece(None, text, codes=codes, drawn=drawn))
        self._requests.leave_rows(runner, request)
        if request.companion is not None:
            release(runner, request.companion)
        request.drawing = request.companion = None
        request.keys = None  # the pages that follow hold what no token ids describe
        self._read_again(runner, request)

    def _read_again(self, runner: "Runner", request: Request) -> None:
        """Let a request without a row read its last token again, and continue from there in another mode."""
        request.chosen = len(request.answer.token_ids)
        request.length = request.num_tokens - 1 if runner.reads_in_chunks else 0
        if self._admission.extend(runner, request):
            self._requests.read(request)
        else:  # it waits for rows and pages as others do
            for one in request.sequences:
                release(runner, one)
            request.state = State.QUEUED
            self._requests.queue.appendleft(request)
