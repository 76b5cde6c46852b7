"""Progress on standard error: a bar on a terminal, otherwise a line every half minute."""

from collections.abc import Mapping
from contextlib import ExitStack

from vila_core.cli.progress import Progress, open_progress
from vila_train.callbacks import NoCallback, RunStart, StepRecord


class Console(NoCallback):
    """Shows loss, tokens per second, MFU, the share of time that data took, padding, and the time left."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._progress: Progress | None = None
        self._step = 0
        self._totals = Totals()

    def on_start(self, start: RunStart) -> None:
        self._step = start.first_step
        share = start.trained_parameters / max(start.parameters, 1)
        self._progress = self._stack.enter_context(open_progress("steps"))
        self._progress.start(start.config.name, start.total_steps, start.first_step)
        self._progress.report(
            f"{start.trained_parameters:,} of {start.parameters:,} parameters are trained ({share:.1%}) on "
            f"{start.world_size} rank{'s' if start.world_size > 1 else ''}, in {start.folder}"
        )

    def on_step(self, record: StepRecord) -> None:
        if self._progress is not None:
            self._totals.add(record)
            self._progress.advance(record.step - self._step, note=step_note(record))
            self._step = record.step

    def on_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        if self._progress is not None:
            self._progress.report(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))

    def on_end(self, step: int, reason: str) -> None:
        if self._progress is not None:
            if self._totals.steps:
                self._progress.report(str(self._totals))
            self._progress.finish(failed=reason != "finished")
            self._stack.close()
            self._progress = None


def step_note(record: StepRecord) -> str:
    """Return a step in a few words, such as "loss 1.234, 12.3k tokens/s, MFU 41%, data 2%, padding 1%"."""
    shares = ", ".join(f"{name} {loss:.4g}" for name, loss in record.losses.items())
    loss = f"loss {record.loss:.4g} ({shares})" if shares else f"loss {record.loss:.4g}"
    parts = [loss, f"{_short(record.tokens_per_second)} tokens/s"]
    if record.mfu is not None:
        parts.append(f"MFU {record.mfu:.0%}")
    parts += [f"waiting for data {record.data_share:.0%}", f"padding {record.padding:.0%}"]
    if skipped := sum(record.skipped.values()):
        parts.append(f"{skipped:,} skipped")
    if record.truncated:
        parts.append(f"{record.truncated:,} truncated")
    return ", ".join(parts)


class Totals:
    """Sums over the reported steps of this process."""

    def __init__(self) -> None:
        self.steps = self.tokens = 0
        self.seconds = self.data_seconds = self.room = self.used = 0.0
        self.first_loss = self.last_loss = 0.0
        self.skipped: Mapping[str, int] = {}
        self.truncated = 0

    def add(self, record: StepRecord) -> None:
        """Count a step."""
        if not self.steps:
            self.first_loss = record.loss
        self.steps, self.tokens = self.steps + 1, self.tokens + record.tokens
        self.seconds, self.data_seconds = self.seconds + record.seconds, self.data_seconds + record.data_seconds
        self.room += record.tokens / max(1 - record.padding, 1e-9)
        self.used += record.seconds * (record.mfu or 0.0)
        self.last_loss, self.skipped, self.truncated = record.loss, record.skipped, record.truncated

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        mfu = f", MFU {self.used / seconds:.1%}" if self.used else ""
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.items())
        truncated = f"; truncated: {self.truncated:,} too long" if self.truncated else ""
        return (
            f"loss {self.first_loss:.4g} -> {self.last_loss:.4g}; {_short(self.tokens / seconds)} tokens/s{mfu}, "
            f"waiting for data {min(self.data_seconds / seconds, 1):.1%}, "
            f"padding {1 - self.tokens / max(self.room, 1e-9):.1%}"
            + (f"; skipped: {skipped}" if skipped else "")
            + truncated
        )


def _short(value: float) -> str:
    """Return 950, 12.3k or 1.2M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"
