"""Accuracy over all samples and over groups of them, always with the number of samples behind it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vila_core.errors import ConfigError, unknown_name


class Accuracy(NamedTuple):
    """A share of right answers in [0, 1], and the number of samples that it is a share of."""

    value: float
    samples: int


def accuracy(correct: Iterable[bool]) -> Accuracy:
    """Accuracy = right answers / answers, in [0, 1].

    `correct` holds one truth value per sample. Raises: ConfigError when there is none, since 0 of 0 is no score.
    """
    outcomes = list(correct)
    if not outcomes:
        raise ConfigError(
            "Got no samples, so there is no accuracy. Expected at least one; check the task's filter and --limit."
        )
    return Accuracy(sum(outcomes) / len(outcomes), len(outcomes))


def accuracy_by_group(
    kind: str, groups: Sequence[str], correct: Sequence[bool], known: Sequence[str]
) -> dict[str, Accuracy]:
    """Accuracy within each group: right answers of the group / answers of the group, in [0, 1].

    `groups` holds one name per sample, `correct` one truth value. The result follows the order of `known` and leaves out
    groups without samples: they have no accuracy, and 0 would say that every answer was wrong.
    Raises: ConfigError when the lengths differ, or when a group is not among `known` (`kind` names it in the message).
    """
    if len(groups) != len(correct):
        raise ConfigError(f"Got {len(groups)} names of a {kind} for {len(correct)} samples. Expected one per sample.")
    outcomes: dict[str, list[bool]] = {name: [] for name in known}
    for group, is_correct in zip(groups, correct, strict=True):
        if group not in outcomes:
            raise ConfigError(unknown_name(kind, group, known))
        outcomes[group].append(is_correct)
    return {name: accuracy(members) for name, members in outcomes.items() if members}
