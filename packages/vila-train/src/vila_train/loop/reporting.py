"""What a run reports of each step, and to whom."""

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vila_core.errors import warn
from vila_train.callbacks import Callback, RunStart, StepRecord
from vila_train.data.bad_samples import Skipped
from vila_train.loop.loader import LoadedRow
from vila_train.loss import Counts


@dataclass(frozen=True)
class StepCounts:
    """What one rank knows of a step before it is computed.

    Attributes:
        targets: of its rows.
        tokens: all tokens of its rows.
        room: tokens that its rows could hold.
        samples: of its rows.
        truncated: samples of its rows that lost their end.
        skipped: samples that its lanes could not use since the step before.
        flops: model operations of its rows.
        seconds: that it waited for data.
        stop: whether it was asked to stop.
        problem: why it has no rows.
    """

    targets: Counts = field(default_factory=Counts)
    tokens: int = 0
    room: int = 0
    samples: int = 0
    truncated: int = 0
    flops: float = 0.0
    skipped: Sequence[Skipped] = ()
    seconds: float = 0.0
    stop: bool = False
    problem: str | None = None

    @classmethod
    def of(
        cls, rows: Sequence[LoadedRow], row_length: int, flops: float, seconds: float, *, stop: bool
    ) -> "StepCounts":
        """Return the counts of the rows of one rank."""
        return cls(
            targets=sum((one.row.counts for one in rows), Counts()),
            tokens=sum(one.row.num_tokens for one in rows),
            room=len(rows) * row_length,
            samples=sum(len(one.row.names) for one in rows),
            truncated=sum(one.row.truncated for one in rows),
            skipped=[skipped for one in rows for skipped in one.skipped],
            flops=flops,
            seconds=seconds,
            stop=stop,
        )


def add_counts(counts: Sequence[StepCounts]) -> StepCounts:
    """Return the counts of all ranks together; data are waited for as long as the slowest rank does."""
    return StepCounts(
        targets=sum((one.targets for one in counts), Counts()),
        tokens=sum(one.tokens for one in counts),
        room=sum(one.room for one in counts),
        samples=sum(one.samples for one in counts),
        truncated=sum(one.truncated for one in counts),
        flops=sum(one.flops for one in counts),
        skipped=[skipped for one in counts for skipped in one.skipped],
        seconds=max(one.seconds for one in counts),
        stop=any(one.stop for one in counts),
        problem=next((one.problem for one in counts if one.problem is not None), None),
    )


class Reporter:
    """Tells callbacks what happens. One that raises is named once, and the run continues.

    Args:
        callbacks: in order; empty on ranks other than 0.
    """

    def __init__(self, callbacks: Sequence[Callback]):
        self._callbacks = callbacks
        self._failed: Counter[str] = Counter()

    def start(self, start: RunStart) -> None:
        """Report the begin."""
        self._tell(lambda callback: callback.on_start(start))

    def step(self, record: StepRecord) -> None:
        """Report a step."""
        self._tell(lambda callback: callback.on_step(record))

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Report the results of an evaluation."""
        self._tell(lambda callback: callback.on_evaluation(step, scores))

    def checkpoint(self, step: int, folder: Path) -> None:
        """Report a saved checkpoint."""
        self._tell(lambda callback: callback.on_checkpoint(step, folder))

    def end(self, step: int, reason: str) -> None:
        """Report the end."""
        self._tell(lambda callback: callback.on_end(step, reason))

    def _tell(self, call: Callable[[Callback], None]) -> None:
        for callback in self._callbacks:
            try:
                call(callback)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin does, training continues
                name = type(callback).__name__
                self._failed[name] += 1
                if self._failed[name] == 1:
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    warn(
                        f"The callback {name} failed: {type(error).__name__}: {error} ({place.filename}, line "
                        f"{place.lineno}). Training goes on; later failures of it are not reported."
                    )
