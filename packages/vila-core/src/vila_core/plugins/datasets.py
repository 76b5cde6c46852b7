"""Datasets: what the hook `vila_datasets` registers, read by training, quantization and evaluation alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import PIL.Image

    from vila_core.conversation import Part


@dataclass(frozen=True)
class Sample:
    """A prompt and its reference answer.

    Attributes:
        prompt: text, `vila_core.Image`s and `vila_core.Video`s in order; media are not decoded yet.
        answer: the text that training learns and evaluation expects.
        category: a breakdown for reports, such as the type of question; empty if there is none.
        compare: for a prompt to draw, takes the drawn picture and returns how much of it is as described: the name of
            an attribute -> how often it is right, of how many. None for other samples.
    """

    prompt: Sequence[Part]
    answer: str
    category: str = ""
    compare: Callable[[PIL.Image.Image], Mapping[str, tuple[int, int]]] | None = None


@runtime_checkable
class Dataset(Protocol):
    """Named samples with random access, in subsets. Creating one is cheap: data is opened on first use."""

    @property
    def name(self) -> str: ...

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits, such as "train" and "test"."""
        ...

    def subsets(self) -> Sequence[str]:
        """Return the names of the parts that can be read separately; at least one."""
        ...

    def size(self, split: str, subset: str) -> int | None:
        """Return the number of samples, or None for a dataset that generates any number of them.

        Raises:
            ConfigError: unknown split or subset.
        """
        ...

    def sample(self, split: str, subset: str, index: int) -> Sample:
        """Return sample `index`, the same one on every call.

        Raises:
            ConfigError: unknown split or subset.
            IndexError: `index` is negative or not below `size`.
        """
        ...
