"""The commands of `vila-train`, and its plugin."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import vila_core as vila
from vila_core.errors import ConfigError
from vila_train import plugin
from vila_train.cli import app
from vila_train.tiny.evaluate import Score, table
from vila_train.tiny.recipes import Draw, tiny_stages
from vila_train.tiny.training import TinyOptions, train_tiny
from vila_train.tiny.world import make_sample


def test_world_draws_a_contact_sheet(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["world", "--sheet", str(tmp_path / "world.png"), "--samples", "1", "--split", "test"]
    )
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "world.png").width == 1260


def test_an_unknown_split_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["world", "--sheet", str(tmp_path / "world.png"), "--split", "tset"])
    assert isinstance(result.exception, ConfigError)
    assert "Did you mean 'test'?" in str(result.exception)
    assert not (tmp_path / "world.png").exists()


def test_report_prints_scores_by_task_and_kind(tmp_path: Path) -> None:
    arguments = [
        "report",
        "--samples",
        "2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "table.md"),
        "--sheet",
        str(tmp_path / "sheet.png"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "table.md").read_text()
    assert text.strip() in result.output
    assert "| **all** |" in text
    assert "| in_context: " in text
    assert (tmp_path / "sheet.png").exists()


def test_the_plugin_registers_without_importing_torch() -> None:
    code = (
        "import sys, vila_train.plugin as p; p.vila_datasets(); p.vila_commands();"
        "print('torch' in sys.modules, 'PIL' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == [
        "False",
        "False",
    ]


def test_the_drawn_world_is_a_dataset() -> None:
    (dataset,) = plugin.vila_datasets()
    assert set(dataset.splits) == {"train", "validation", "test"}
    assert {"attribute", "attribute_asked", "caption_video"} <= set(dataset.subsets())
    assert dataset.size("test", "attribute") is None
    sample = dataset.sample("test", "attribute", 0)
    assert sample.answer == make_sample("test", "attribute", 0).answer
    assert sample.category == make_sample("test", "attribute", 0).kind
    assert [type(part).__name__ for part in sample.prompt] == ["Image", "str"]
    with pytest.raises(ConfigError, match="Did you mean 'attribute'"):
        dataset.sample("test", "atribute", 0)
    with pytest.raises(ConfigError, match="Did you mean 'test'"):
        dataset.sample("tset", "attribute", 0)
    with pytest.raises(IndexError):
        dataset.sample("test", "attribute", -1)


def test_scores_have_a_standard_error() -> None:
    assert Score(80, 100).standard_error == pytest.approx(0.04)
    assert "| count | 80.0 % | 4.0 | 100 |" in table({"count": Score(80, 100)})


def test_training_runs_all_stages_and_saves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages, one step each, give a checkpoint that loads and answers."""
    one = {"caption_things": 1}
    stages = tuple(stage.model_copy(update={"steps": 1, "draws": (Draw(counts=one),)}) for stage in tiny_stages())
    for name in ("TASKS", "TESTS"):
        monkeypatch.setattr(f"vila_train.tiny.training.{name}", ("attribute",), raising=False)
    options = TinyOptions(tmp_path / "out", tmp_path / "scratch", scale=0.0001, device="cpu", compile=False, workers=1)
    scores = train_tiny(options, stages)
    assert scores["attribute"].total == 16
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records if "begins" in record] == [stage.name for stage in stages]
    assert not list((tmp_path / "scratch").iterdir())
    model = vila.load(tmp_path / "out" / "vila-tiny", device="cpu")
    assert isinstance(model.generate([vila.Image(Image.new("RGB", (96, 96))), "What is this?"], max_new_tokens=2), str)
    stored = vila.load(tmp_path / "out" / "vila-tiny", device="cpu", dtype="bfloat16").network.state_dict()
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored.values())
