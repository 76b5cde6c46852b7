"""The row of each request in a step. Rows have no gaps, and those that draw come first."""

from typing import TYPE_CHECKING

from vila_core.language.paged_rows import StepRows

if TYPE_CHECKING:
    from vila_core.engine.request import Request
    from vila_core.generation.drawing_rows import DrawingRows


class RowOrder:
    """The requests in rows; a companion has a row of its own.

    Args:
        rows: their state.
    """

    def __init__(self, rows: StepRows):
        self._rows = rows
        self.requests: list[Request] = []
        self.num_drawing = 0
        """How many of the first rows draw."""
        self.drawing: DrawingRows | None = None
        """Their state, from the first drawing on."""
        self._num_pages: list[int] = []  # pages of each row that the step knows

    @property
    def writing(self) -> "list[Request]":
        """The requests that get tokens, behind those that draw."""
        return self.requests[self.num_drawing :]

    def add(self, request: "Request", *, draws: bool) -> None:
        """Give a row to a request: the last, or the last of those that draw."""
        row = len(self.requests)
        self.requests.append(request)
        self._num_pages.append(0)
        if draws:
            if self.num_drawing < row:
                self._move(self.num_drawing, row)
            row = self.num_drawing
            self.requests[row] = request
            self.num_drawing += 1
        request.row = row
        self._num_pages[row] = len(request.pages)
        answered = request.answer.token_ids  # it has answered already if it had to give up its pages
        self._rows.start(row, request.length, request.pages, request.sampling, answered)

    def remove(self, request: "Request") -> None:
        """Take the row of a request away, and fill the gap."""
        gap = request.row
        request.row = -1
        self._rows.stop(gap)
        if gap < self.num_drawing:
            assert self.drawing is not None
            self.drawing.stop(gap)
            self.num_drawing -= 1
            gap = self._fill(gap, self.num_drawing)
        self._fill(gap, len(self.requests) - 1)
        self.requests.pop()
        self._num_pages.pop()

    def update_pages(self) -> None:
        """Let the step know the pages that requests got since the last call."""
        for row, request in enumerate(self.requests):
            known = self._num_pages[row]
            if len(request.pages) > known:
                self._rows.set_pages(row, request.pages[known:], known)
                self._num_pages[row] = len(request.pages)

    def _fill(self, gap: int, last: int) -> int:
        """Move the request in row `last` to an earlier gap; return where the gap is then."""
        if gap != last:
            self._move(last, gap)
        return last

    def _move(self, source: int, target: int) -> None:
        request = self.requests[source]
        self._rows.move(source, target)
        self.requests[target], self._num_pages[target], request.row = request, self._num_pages[source], target
        if source < self.num_drawing or target < self.num_drawing:
            assert self.drawing is not None
            self.drawing.move(source, target)
            rows = [one.row for one in (request.leader or request).sequences]
            if min(rows) >= 0:  # while both leave, one has no row any more
                self.drawing.link(rows[0], rows[1] if len(rows) > 1 else None)
