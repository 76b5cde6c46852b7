"""From the pieces of the engine to the parts of an answer: text, finished pictures, and previews of one being drawn."""

from collections.abc import Sequence

from vila_core import Vila
from vila_core.engine.answer import Piece
from vila_serve.answering.facts import positions_of
from vila_serve.answering.messages import Picture


class AnswerParts:
    """Collects what an answer has gained. Pictures are decoded here, in the thread that steps the engine.

    Args:
        model: decodes pictures.
        previews: of each picture, evenly spaced between its begin and its end.
        kind: of the pictures that have previews.

    Attributes:
        picture_tokens: positions of the finished pictures.
    """

    def __init__(self, model: Vila, *, previews: int = 0, kind: str = "image"):
        self.picture_tokens = 0
        self._model = model
        self._kind = kind
        self._previews = previews
        self._shown = 0
        self._codes: list[tuple[int, ...]] = []  # of the picture that is being drawn

    def push(self, pieces: Sequence[Piece]) -> list[str | Picture]:
        """Return what these pieces add. A preview comes last: it is of the picture that is being drawn now."""
        parts: list[str | Picture] = []
        text = ""
        for piece in pieces:
            text += piece.text
            if piece.codes is not None:
                self._codes.append(piece.codes)
            if piece.drawn is not None:
                drawn = piece.drawn
                parts += [text, Picture(drawn.kind, tuple(self._model.decode_picture(drawn.kind, drawn.codes)))]
                text = ""
                self.picture_tokens += len(drawn.codes)
                self._codes.clear()
                self._shown = 0
        if text:
            parts.append(text)
        if self._previews and self._codes and (preview := self._preview()) is not None:
            parts.append(preview)
        return parts

    def _preview(self) -> Picture | None:
        """Return a preview if the next one is due."""
        done = len(self._codes) / positions_of(self._model, self._kind)
        due = int(done * (self._previews + 1))
        if due <= self._shown:
            return None
        self._shown = due
        return Picture(self._kind, (self._model.preview_picture(self._kind, self._codes),), done)
