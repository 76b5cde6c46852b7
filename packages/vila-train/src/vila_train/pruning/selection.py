"""From scores to the samples that are kept."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vila_core.errors import ConfigError


@dataclass(frozen=True)
class Selection:
    """What is kept of a dataset.

    Attributes:
        kept: numbers of the samples, ascending.
        scored: samples with a score.
        distracting: with a score below 0.
        easy: with a score of 0, or too low for the share that is kept.
        hardest: dropped for the highest scores.
    """

    kept: npt.NDArray[np.int64]
    scored: int
    distracting: int
    easy: int
    hardest: int


def select(scores: npt.NDArray[np.float64], keep: float = 0.5, drop_hardest: float = 0.0) -> Selection:
    """Choose samples: first those with a score below 0 go, then the highest scores, then the lowest.

    With `drop_hardest=0` this is the published rule, the top K of each dataset (see the package).

    Args:
        scores: of all samples; NaN for those without one, which are never kept.
        keep: share of the samples with a score that is kept, at most.
        drop_hardest: share of them that is dropped for the highest scores: among these are wrong labels.

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
    learnable = order[scores[order] > 0]
    start = min(round(drop_hardest * len(known)), len(learnable))
    kept = np.sort(learnable[start : start + max(round(keep * len(known)), 1)]).astype(np.int64)
    distracting = int((scores[known] < 0).sum())
    return Selection(kept, len(known), distracting, len(known) - distracting - start - len(kept), start)
