"""Generation heads: what turns hidden states of the language model into images and videos.

A head describes a picture by *codes*: D numbers below K for each of P positions. The language model reads one position
per step, as it reads one token per step; the head chooses the codes of a position from the hidden state, and makes of
them the embedding that the language model reads next. Codes are never ids of the vocabulary.

R rows, H width of the language model, D codes of a position, K codebook size, P positions, T positions of several
pictures, S pixels of a side
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vila_core.errors import ConfigError, shown

if TYPE_CHECKING:
    from torch import Tensor

    from vila_core.model import VilaModel

MODELS_THAT_DRAW = "VILA-U models (format vila-u)"
Pick = Callable[[int, "Tensor"], "Tensor"]
"""`(depth, logits [R, K]) -> codes`, int64 `[R]`: chooses one of a position's codes for each row."""


@dataclass(frozen=True)
class OutputKind:
    """A kind of output that a head can make.

    Attributes:
        start_token: the special token after which the head takes over, such as `<im_start>`.
        positions: P, which is the same for every output of this kind.
        frames: 1 for an image.
        knows_empty_prompt: whether the model was trained to draw without a prompt too, which guidance needs.
        end_token: stands after the picture in samples of training; None: nothing does.
    """

    start_token: str
    positions: int
    frames: int = 1
    knows_empty_prompt: bool = True
    end_token: str | None = None


@runtime_checkable
class GenerationHead(Protocol):
    """Chooses codes, embeds them, and decodes them. Lives at `VilaModel.generation_head`.

    `choose` and `embed` must not wait for the device: the engine captures them in a CUDA graph.
    """

    @property
    def kinds(self) -> Mapping[str, OutputKind]:
        """What it can make: "image", "video", or both."""
        ...

    @property
    def codes_per_position(self) -> int:
        """D."""
        ...

    @property
    def codebook_size(self) -> int:
        """K."""
        ...

    def choose(self, hidden: Tensor, pick: Pick) -> Tensor:
        """Choose the codes of the next position.

        Args:
            hidden: `[R, H]`, of the last position after the final norm.
            pick: called for depth 0 … D - 1 with the logits of all rows.

        Returns:
            int64 `[R, D]`.
        """
        ...

    def embed(self, codes: Tensor) -> Tensor:
        """Codes int64 `[..., D]` -> what the language model reads next, `[..., H]`."""
        ...

    def logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Hidden states `[T, H]` and the true codes `[T, D]` -> scores of each code, `[T, D, K]`."""
        ...

    def decode(self, codes: Tensor, kind: str) -> Tensor:
        """Codes int64 `[P, D]` of one output -> uint8 pixels `[frames, S, S, 3]`."""
        ...


@runtime_checkable
class TrainableHead(GenerationHead, Protocol):
    """A head that can be trained: it says which codes a picture has, and `logits` scores them."""

    def codes(self, pixels: Tensor) -> Tensor:
        """Pixels `[N, 3, S, S]`, as the vision tower reads them -> the codes of each picture, int64 `[N, P, D]`.

        `embed` of them is what the language model reads of the picture. No gradient flows back to the pixels.
        """
        ...


class HeadModule(Protocol):
    """The `torch.nn.Module` of a head's own weights, `VilaModel.generation`, built without them."""

    def head(self, network: VilaModel) -> GenerationHead:
        """Return the head of a model, which may use the model's vision tower and projector too."""
        ...


def check_kind(kinds: Collection[str], kind: str, model: str) -> None:
    """Raise `ConfigError` unless a model that draws `kinds`, which may be none, draws `kind`."""
    if not kinds:
        raise ConfigError(
            f"The model {shown(model)} answers in text only: it has no generation head. {MODELS_THAT_DRAW} draw images."
        )
    if kind not in kinds:
        raise ConfigError(f"The model {shown(model)} draws {' and '.join(kinds)} only, not {kind}.")
