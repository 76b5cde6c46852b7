"""vila-eval's own plugin keeps the contract that it asks of others."""

from vila_core.testing import check_plugin


def test_registers_without_importing_anything_heavy() -> None:
    registered = check_plugin("vila_eval.plugin")
    assert {"pope", "mmmu_val", "vila/count"} <= set(registered["vila_tasks"])
    assert {"exact_match", "multiple_choice", "anls", "vqa_accuracy"} <= set(registered["vila_metrics"])
    assert registered["vila_commands"] == ("eval",)
