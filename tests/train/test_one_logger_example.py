"""The example of a callback in a file: `--set logging.callbacks=[one_logger]` for VILA's `use_one_logger`."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tests.train.loop_runs import micro_config, run

from vila_core.plugins import loader
from vila_core.plugins.loader import load_plugin_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "one_logger.py"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(loader, "_plugin_files", {})
    yield load_plugin_file(EXAMPLE)
    loader._load.cache_clear()


def test_it_writes_the_milestones_of_a_run(micro_checkpoint: Path, tmp_path: Path, example: Any) -> None:
    out = tmp_path / "run"
    run(micro_config(micro_checkpoint, **{"logging.callbacks": ("one_logger",)}), out)
    events = [json.loads(line) for line in (out / "one_logger.jsonl").read_text().splitlines()]
    first, last = events[0], events[-1]
    assert (first["app_tag"], first["train_iterations_target"], first["world_size"]) == ("micro", 6, 1)
    assert (last["app_finish_reason"], last["train_iterations_end"]) == ("finished", 6)
    assert [event["save_checkpoint_iteration"] for event in events if "save_checkpoint_iteration" in event] == [2, 4, 6]
    assert first["app_start_time"] <= last["app_finish_time"]


def test_nvidias_package_gets_the_same(
    micro_checkpoint: Path, tmp_path: Path, example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []

    class Client:
        def __init__(self, settings: dict[str, Any]):
            assert settings["project"] == "vila-train"

        def log_metrics(self, metrics: dict[str, Any]) -> None:
            sent.append(metrics)

    fake: Any = types.ModuleType("one_logger_utils")
    fake.OneLoggerUtils = Client
    fake.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "one_logger_utils", fake)
    out = tmp_path / "run"
    run(micro_config(micro_checkpoint, **{"logging.callbacks": ("one_logger",), "max_steps": 2}), out)
    assert sent[0]["app_tag"] == "micro"
    assert sent[-1]["app_finish_reason"] == "finished"
    assert not (out / "one_logger.jsonl").exists()
