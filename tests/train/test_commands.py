"""The commands of `vila-train`, and its plugin."""

import errno
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.programs import run_program
from typer.testing import CliRunner

import vila_core as vila
from vila_core.errors import ConfigError, OutputError, VilaError
from vila_train import plugin
from vila_train.cli import app
from vila_train.run_lock import LOCK
from vila_train.tiny.evaluate import Score, table
from vila_train.tiny.loop import Stage
from vila_train.tiny.recipes import Draw, StageConfig, tiny_stages
from vila_train.tiny.run_folder import RunFolder
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
    assert run_program([sys.executable, "-c", code], check=True).stdout.split() == [
        "False",
        "False",
    ]


def test_the_drawn_world_is_a_dataset() -> None:
    dataset, *_ = plugin.vila_datasets()
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


def test_scores_have_an_interval() -> None:
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert Score(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Score(0, 20).interval == pytest.approx((0, 0.1611), abs=5e-5)
    assert "| count | 100.0 % | 83.9–100.0 | 20 |" in table({"count": Score(20, 20)})


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


def trial(folder: Path) -> TinyOptions:
    return TinyOptions(folder / "out", folder / "scratch", scale=0.0001, device="cpu", compile=False, workers=1)


@pytest.fixture
def two_stages(monkeypatch: pytest.MonkeyPatch) -> tuple[StageConfig, ...]:
    """Two stages of one step, tested on one task."""
    monkeypatch.setattr("vila_train.tiny.training.TESTS", ("attribute",))
    update = {"steps": 1, "draws": (Draw(counts={"caption_things": 1}),)}
    return tuple(stage.model_copy(update=update) for stage in tiny_stages()[:2])


def weights(out: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted((out / "vila-tiny").rglob("*.safetensors")))


def test_an_interrupted_run_resumes_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_stages: tuple[StageConfig, ...]
) -> None:
    train_tiny(trial(tmp_path / "whole"), two_stages)
    ran: list[str] = []

    def interrupted(stage: Stage, *_: object) -> None:
        if len(ran) == 1:
            raise KeyboardInterrupt
        ran.append(stage.config.name)
        stage.advance()

    monkeypatch.setattr("vila_train.tiny.training.run_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(trial(tmp_path / "cut"), two_stages)
    assert not list((tmp_path / "cut" / "scratch").iterdir())
    monkeypatch.setattr(
        "vila_train.tiny.training.run_stage", lambda stage, *_: ran.append(stage.config.name) or stage.advance()
    )
    scores = train_tiny(trial(tmp_path / "cut"), two_stages)
    assert ran == [stage.name for stage in two_stages]
    assert weights(tmp_path / "cut" / "out") == weights(tmp_path / "whole" / "out")
    # A complete run is not run again, and a folder is for one run.
    monkeypatch.setattr("vila_train.tiny.training.run_stage", None)
    assert train_tiny(trial(tmp_path / "cut"), two_stages) == scores
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        train_tiny(replace(trial(tmp_path / "cut"), seed=1), two_stages)


def test_a_full_disk_leaves_no_half_written_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_stages: tuple[StageConfig, ...]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="the disk is full"):
        train_tiny(trial(tmp_path), two_stages)
    assert not list((tmp_path / "out").glob("*.pt"))
    assert [file.name for file in (tmp_path / "out").glob(".*")] == [LOCK]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["world", "--sheet", "x.evil"], "Use a suffix of .png"),
        (["world", "--sheet", "none/x.png", "--samples", "1"], "does not exist"),
        (["report", "--sheet", "x.evil"], "Use a suffix of .png"),
        (["report", "--device", "evil"], "Unknown device 'evil'"),
        (["tiny", "--out", "run", "--device", "evil"], "Unknown device 'evil'"),
        (["tiny", "--out", "run", "--device", "cuda:99"], "not on this machine"),
        (["tiny", "--out", "taken", "--device", "cpu"], "taken exists and is not empty"),
        (["tiny", "--out", "taken/file", "--device", "cpu"], "cannot be written"),
        (["tiny", "--out", "run", "--device", "cpu", "--stage", "aling"], "Did you mean 'align'?"),
    ],
)
def test_bad_options_are_one_line_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, VilaError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"pair": 7}', '{"pair": {"right": "9", "total": 10}}', '{"pair": {}}'])
def test_damaged_scores_of_a_complete_run_are_named(tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path, {"seed": 0}, "vila-tiny")
    folder.save_scores({"pair": Score(9, 10)})
    assert folder.scores == {"pair": Score(9, 10)}
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(ConfigError, match=r"scores\.json (is damaged|is not valid JSON|holds a JSON list)"):
        _ = folder.scores


def test_damaged_settings_of_a_tiny_run_are_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json is not valid JSON.* Choose another folder with --out"):
        RunFolder(tmp_path, {"seed": 0}, "vila-tiny")
