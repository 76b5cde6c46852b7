"""Tasks about pictures, from a miniature of their data to their measures."""

from vila_eval.tasks.images.pope import POPE
from vila_eval.testing import check_task


def test_pope_counts_a_false_yes() -> None:
    by_name = {measure.name: measure.estimate.mean for measure in check_task(POPE, lambda question: "yes") if measure.group is None}
    assert by_name == {"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "yes_ratio": 1.0}
    assert check_task(POPE)[0].estimate.mean == 1.0
