"""Mixtures of datasets: the samples of each epoch in a pseudo-random order, with random access and without memory.

Of n samples with weight w, an epoch reads round(w n): each sample the same number of times, or once more. Where w is
not a whole number, the next epoch goes on with those that had their turn less often.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from vila_core.config import Config
from vila_train.config import DataConfig
from vila_train.data.conversations import Conversation, ConversationSource
from vila_train.data.fingerprints import dataset_fingerprint
from vila_train.data.names import Item
from vila_train.data.permutation import Permutation
from vila_train.data.registry import Registry, open_registry
from vila_train.errors import DatasetError
from vila_train.number_types import PositiveInt


@dataclass(frozen=True)
class MixturePart:
    """A dataset in a mixture.

    Attributes:
        source: its conversations.
        weight: how many times it is read per epoch.
        size: of the dataset.
        samples: that an epoch reads.
    """

    source: ConversationSource
    weight: float
    size: int
    samples: int


class PartState(Config):
    """A dataset in the mixture of a run, as the run notes it to notice changes.

    Attributes:
        name: of the dataset.
        samples: that an epoch reads.
        fingerprint: see `dataset_fingerprint`.
    """

    name: str
    samples: PositiveInt
    fingerprint: str


class Mixture:
    """The samples of a training run: position in an epoch -> conversation, the same one on every call.

    Args:
        parts: what is mixed.
        seed: of the order.
    """

    def __init__(self, parts: Sequence[MixturePart], seed: int):
        self.parts = tuple(parts)
        self.seed = seed
        self._ends = list(accumulate(part.samples for part in self.parts))
        self._order: tuple[int, Permutation] | None = None

    def __len__(self) -> int:
        """Samples per epoch."""
        return self._ends[-1]

    def conversation(self, epoch: int, position: int) -> Conversation:
        """Return a conversation.

        Args:
            epoch: from 0.
            position: below the length.

        Raises:
            SampleError: it is damaged.
            IndexError: the position is out of range.
        """
        part, index = self.locate(epoch, position)
        return self.parts[part].source[index]

    def states(self) -> tuple[PartState, ...]:
        """Return the name, samples and fingerprint of each part. Raises as `dataset_fingerprint` does."""
        return tuple(
            PartState(name=part.source.name, samples=part.samples, fingerprint=dataset_fingerprint(part.source))
            for part in self.parts
        )

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        """Return the number of the part at a position of an epoch, and of the sample in it."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, Permutation(len(self), (self.seed, epoch))
        place = self._order[1][position]
        number = bisect_right(self._ends, place)
        part = self.parts[number]
        reading = epoch * part.samples + place - (self._ends[number - 1] if number else 0)
        # Permuted within each pass over the dataset, so that a part of a pass is a random one.
        passed, rest = divmod(reading, part.size)
        return number, Permutation(part.size, (self.seed, number, passed))[rest]


def open_mixture(config: DataConfig, seed: int) -> Mixture:
    """Return the mixture of a configuration.

    Args:
        config: its `mixture` and `registries` are read.
        seed: of the order of samples.

    Raises:
        DatasetError: a name is unknown, a registry or dataset is missing, damaged or empty, or a weight leaves no
            sample.
        ConfigError: a registered dataset has no such subset.
    """
    return mix(open_registry(config.registries), config.mixture, seed)


def mix(registry: Registry, mixture: str, seed: int) -> Mixture:
    """Return a mixture of the datasets of a registry, such as `a+b*3`. Raises as `open_mixture` does."""
    return Mixture([_open_part(item, registry.open(item)) for item in registry.resolve(mixture)], seed)


def _open_part(item: Item, source: ConversationSource) -> MixturePart:
    size = len(source)
    if not size:
        raise DatasetError(f"The dataset '{item.name}' has no samples.")
    samples = round(size * item.weight)
    if not samples:
        raise DatasetError(
            f"The dataset '{item.name}' has {size:,} samples, of which the weight {item.weight:g} leaves none."
        )
    return MixturePart(source, item.weight, size, samples)
