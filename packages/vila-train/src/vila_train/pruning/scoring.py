"""Log-probabilities of the answers of a dataset under one model, in a file that a stopped run continues."""

import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vila_core.cli.progress import Progress
from vila_core.errors import ConfigError
from vila_core.input_files import open_regular_file
from vila_core.new_file import cannot_write, make_folder, open_log
from vila_core.runtime import Vila
from vila_train.data.bad_samples import as_skipped
from vila_train.data.conversations import ConversationSource
from vila_train.packing.rows import PackedRow, packed_loss
from vila_train.samples import Encoder, TrainingSample

AHEAD = 4
"""Samples that are prepared per thread while the model computes."""


@dataclass(frozen=True)
class AnswerScore:
    """Log-probability of the answers of a sample under a model.

    Attributes:
        index: of the sample in its dataset.
        log_p: natural logarithm of the probability of all answer tokens; None if the sample cannot be used.
        tokens: of the answers.
        reason: why there is no score.
        message: the same in full, with the sample's name.
    """

    index: int
    log_p: float | None = None
    tokens: int = 0
    reason: str | None = None
    message: str | None = None


def score_answers(
    load: Callable[[], Vila],
    source: ConversationSource,
    path: Path,
    max_length: int,
    progress: Progress,
    threads: int = 2,
) -> list[AnswerScore]:
    """Score all samples of a dataset that `path` does not hold yet, and return all scores in order.

    Args:
        load: returns the model; called only if a score is missing.
        source: the dataset.
        path: receives one line per sample.
        max_length: longer samples are left out, with the reason "too long".
        progress: counts samples.
        threads: that load media and tokenize.

    Raises:
        ConfigError: `path` cannot be read.
        OutputError: it cannot be written.
    """
    scores = {score.index: score for score in read_scores(path) if score.index < len(source)}
    missing = [index for index in range(len(source)) if index not in scores]
    if not missing:
        return [scores[index] for index in sorted(scores)]
    model = load()
    progress.start(source.name, len(source), len(scores))
    make_folder(path.parent)
    try:
        is_cut_off = _is_cut_off(path)
        with open_log(path) as file:
            file.write("\n" if is_cut_off else "")
            for score in _scores(model, source, missing, max_length, threads):
                file.write(json.dumps(vars(score)) + "\n")
                scores[score.index] = score
                progress.advance(note=_note(scores.values()) if score.reason else "")
    except OSError as error:
        raise cannot_write(path, error) from error
    progress.finish()
    return [scores[index] for index in sorted(scores)]


def read_scores(path: Path) -> Iterator[AnswerScore]:
    """Yield the scores in a file. Half a line, which a killed run leaves, and other damaged ones are left out.

    Raises `ConfigError` if it cannot be read.
    """
    if not path.exists():
        return
    try:
        with open_regular_file(path)[0] as file:
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror or error}.") from None
    for line in text.splitlines():
        try:
            score = AnswerScore(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            continue
        if _is_valid(**vars(score)):
            yield score


def _is_valid(index: object, log_p: object, tokens: object, reason: object, message: object) -> bool:
    """Return whether these are the fields of a score, and not of a line that was changed or damaged."""
    if type(index) is not int or index < 0:
        return False
    if log_p is None:
        return isinstance(reason, str)
    return isinstance(log_p, float) and math.isfinite(log_p) and type(tokens) is int and tokens > 0


def _is_cut_off(path: Path) -> bool:
    """Return whether a file ends with half a line."""
    return path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")


def _note(scores: Any) -> str:
    failed = Counter(score.reason for score in scores if score.reason)
    return ", ".join(f"{count:,} {reason}" for reason, count in failed.items())


def _scores(
    model: Vila, source: ConversationSource, indices: Sequence[int], max_length: int, threads: int
) -> Iterator[AnswerScore]:
    encoder = Encoder(model.network, model.tokenizer, model.template, model.limits)

    def prepare(index: int) -> TrainingSample | AnswerScore:
        try:
            return encoder.fit(source[index], max_length, "drop")
        except Exception as error:  # noqa: BLE001 - `as_skipped` raises what is not the sample's fault
            bad = as_skipped(error, f"{source.name}/{index}")
            named = bad.message if bad.message.startswith(bad.name) else f"{bad.name}: {bad.message}"
            return AnswerScore(index, reason=bad.reason, message=named)

    for index, sample in _in_order(prepare, indices, threads):
        if isinstance(sample, AnswerScore):
            yield sample
            continue
        with torch.inference_mode():
            row = PackedRow.of([sample], model.device)
            log_p = -float(packed_loss(model.network, row))
        if not -float("inf") < log_p <= 1e-3:  # not NaN, and a probability
            yield AnswerScore(index, reason="not finite", message=f"{sample.name}: the model's values are not finite.")
        else:
            yield AnswerScore(index, min(log_p, 0.0), row.num_labels)


def _in_order(
    prepare: Callable[[int], TrainingSample | AnswerScore], indices: Sequence[int], threads: int
) -> Iterator[tuple[int, TrainingSample | AnswerScore]]:
    """Yield what `prepare` makes of each index, in order; threads are a few samples ahead."""
    waiting: deque[tuple[int, Future[TrainingSample | AnswerScore]]] = deque()
    pool = ThreadPoolExecutor(threads, "prepare")
    try:
        for index in indices:
            waiting.append((index, pool.submit(prepare, index)))
            if len(waiting) > AHEAD * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
