"""How a long run tells what it does."""

from typing import Protocol


class Progress(Protocol):
    """Told of phases that follow one another, and of the steps of each."""

    def start(self, phase: str, total: int, done: int = 0) -> None:
        """A phase of `total` steps begins, `done` of which an earlier run finished."""
        ...

    def advance(self, note: str = "") -> None:
        """A step is done; `note` says what came of it."""
        ...

    def warn(self, message: str) -> None:
        """Something is not as wished, and the run goes on."""
        ...


class Silent:
    """Tells nobody."""

    def start(self, phase: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        pass
