"""vila-eval's own plugin keeps the contract that it asks of others."""

import sys

from tests.programs import run_program

from vila_core.testing import check_plugin


def test_to_import_vila_eval_costs_little() -> None:
    heavy = "{'torch', 'datasets', 'numpy', 'PIL', 'av', 'transformers', 'httpx2'}"
    command = (
        f"import sys, vila_eval, vila_eval.plugin; vila_eval.JudgeMetric; print(sorted({heavy} & set(sys.modules)))"
    )
    assert run_program([sys.executable, "-c", command], check=True).stdout == "[]\n"


def test_registers_without_importing_anything_heavy() -> None:
    registered = check_plugin("vila_eval.plugin")
    assert {"pope", "mmmu_val", "vila/count"} <= set(registered["vila_tasks"])
    assert {"exact_match", "multiple_choice", "anls", "vqa_accuracy"} <= set(registered["vila_metrics"])
    assert registered["vila_commands"] == ("eval",)
