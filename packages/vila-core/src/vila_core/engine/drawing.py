"""Requests that draw: which token begins a picture, how its codes are chosen, and how far it is.

D codes of a position, P positions of a picture
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vila_core.engine.drawing_settings import DrawingConfig
from vila_core.generation.drawing_rows import DrawingSampling, seed_of_picture
from vila_core.generation.heads import GenerationHead, OutputKind


@dataclass(frozen=True)
class OutputModes:
    """The output kinds of a model besides text.

    Attributes:
        head: makes it.
        kinds: the id of a start token -> the kind of output that begins with it.
        empty_prompt: returns the ids of a prompt of this kind, the start token included, that says nothing but the
            given text.
        config: how pictures are drawn that the model begins on its own.
    """

    head: GenerationHead
    kinds: Mapping[int, str]
    empty_prompt: Callable[[str, str], Sequence[int]]
    config: DrawingConfig = field(default_factory=DrawingConfig)

    def kind_after(self, ids: Sequence[int] | None) -> str | None:
        """Return what a model draws after these tokens; None if it writes."""
        return self.kinds.get(ids[-1]) if ids else None


@dataclass(frozen=True)
class DrawingRequest:
    """The part of a request that asks for a picture.

    Attributes:
        config: how.
        number: of the first picture; pictures of one seed have numbers of their own.
        is_all: whether the answer ends with the picture.
    """

    config: DrawingConfig
    number: int = 0
    is_all: bool = True


@dataclass(frozen=True)
class Drawn:
    """A finished picture as its codes.

    Attributes:
        kind: "image" or "video".
        codes: D numbers for each of P positions.
    """

    kind: str
    codes: Sequence[Sequence[int]]


@dataclass(eq=False)
class Drawing:
    """A picture that a request is drawing.

    Attributes:
        kind: "image" or "video".
        output: its start token and positions.
        config: how its codes are chosen.
        seed: of this picture.
        is_all: whether the answer ends with it.
        codes: of the positions that the host has seen.
        chosen: positions whose codes have been, or are being, chosen.
    """

    kind: str
    output: OutputKind
    config: DrawingConfig
    seed: int
    is_all: bool
    codes: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    chosen: int = 0

    @classmethod
    def begin(
        cls, modes: OutputModes, kind: str, config: DrawingConfig, seed: int, *, number: int, is_all: bool
    ) -> "Drawing":
        """Return picture `number` of a request whose seed is `seed`."""
        return cls(kind, modes.head.kinds[kind], config, seed_of_picture(seed, number), is_all)

    @property
    def left(self) -> int:
        """Positions that the host has not seen."""
        return self.output.positions - len(self.codes)

    @property
    def sampling(self) -> DrawingSampling:
        """How its codes are chosen."""
        config = self.config
        return DrawingSampling(config.guidance, config.temperature, config.top_k, config.top_p, self.seed)
