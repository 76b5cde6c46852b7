"""Bin packing: which samples share a row."""

from bisect import bisect_left, insort
from collections.abc import Sequence

from vila_train.errors import TrainingError


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return bins of indices whose lengths sum to at most `capacity`: best fit, longest first (Johnson 1973).

    At most 11/9 of the least possible number of bins. Equal inputs give equal bins.

    Args:
        lengths: of each sample, in tokens.
        capacity: of a row.

    Raises:
        TrainingError: a sample is longer than a row.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if not 0 < length <= capacity:
            raise TrainingError(f"Sample {index} has {length:,} tokens, but a row holds 1 to {capacity:,}.")
        place = bisect_left(room, (length, -1))
        if place == len(room):
            free, chosen = capacity, len(bins)
            bins.append([])
        else:
            free, chosen = room.pop(place)
        bins[chosen].append(index)
        if free > length:
            insort(room, (free - length, chosen))
    return bins
