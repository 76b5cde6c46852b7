"""From scores to the samples that are kept.

Dimensions: N samples.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vila_core.errors import ConfigError


@dataclass(frozen=True)
class Selection:
    """The samples of a dataset that are kept.

    Attributes:
        kept: numbers of the samples, ascending.
        scored: samples with a score.
        distracting: dropped, with a score below 0.
        easy: dropped, with a low score of 0 or more.
        hardest: dropped for the highest scores.
        kept_distracting: kept, with a score below 0.
    """

    kept: npt.NDArray[np.int64]
    scored: int
    distracting: int
    easy: int
    hardest: int
    kept_distracting: int


def select(
    scores: npt.NDArray[np.float64],
    keep: float = 0.5,
    drop_hardest: float = 0.0,
    min_score: float | None = None,
) -> Selection:
    """Choose the samples with the highest scores: with the defaults, the published rule (see the package).

    Args:
        scores: of all samples, `[N]`; NaN for those without one, which are never kept.
        keep: share of the samples with a score that is kept, rounded up.
        drop_hardest: share of them that is dropped for the highest scores.
        min_score: samples with a lower score are dropped, even if fewer than `keep` are left.

    Raises:
        ConfigError: a share is out of range.
    """
    if not (0 < keep <= 1 and 0 <= drop_hardest < 1):
        raise ConfigError(
            f"Expected 0 < keep <= 1 and 0 <= drop_hardest < 1, got keep={keep:g} and drop_hardest={drop_hardest:g}."
        )
    known = np.flatnonzero(np.isfinite(scores))
    # Equal scores in the order of the data, so that the choice is the same everywhere.
    order = known[np.argsort(-scores[known], kind="stable")]
    hardest, rest = np.split(order, [round(drop_hardest * len(order))])
    kept = rest[: math.ceil(keep * len(order) - 1e-9)]  # 0.1 * 30 is a little more than 3
    if min_score is not None:
        kept = kept[scores[kept] >= min_score]
    dropped = rest[len(kept) :]
    distracting = int((scores[dropped] < 0).sum())
    return Selection(
        np.sort(kept).astype(np.int64),
        len(known),
        distracting,
        len(dropped) - distracting,
        len(hardest),
        int((scores[kept] < 0).sum()),
    )
