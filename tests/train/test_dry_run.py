"""`vila-train run`, `sft` and `--dry-run` from the command line, on the embedded model."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

import vila_core as vila
from vila_core.errors import VilaError, VilaWarning
from vila_train.cli import app

TEXT = "<script>alert('x')</script> & \"quotes\" </pre>"


def write_data(folder: Path, count: int = 12, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    lines = []
    for index in range(count):
        PIL.Image.new("RGB", (64 + index, 48), (index * 20 % 256, 0, 0)).save(folder / f"{index}.png")
        turns = [{"from": "human", "value": f"<image>\nWhat is {TEXT}?"}, {"from": "gpt", "value": f"A red {index}."}]
        lines.append(json.dumps({"id": str(index), "image": f"{index}.png", "conversations": turns, **changes}))
    path = folder / "my.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {"learned": "", "context": "", "media": ""}
        self._kind: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._kind = dict(attrs).get("class") if tag == "span" else None

    def handle_data(self, data: str) -> None:
        if self._kind in self.text:
            self.text[self._kind] += data


def test_a_dry_run_counts_samples_also_of_a_stated_number_of_steps(tmp_path: Path):
    data = write_data(tmp_path / "data")
    settings = ["--set", "data.rows_per_step=2", "--set", "max_steps=50"]
    result = run("sft", "--model", "vila-tiny", "--data", data, *settings, "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    per_row = float(re.search(r"([0-9.]+) samples in each", result.output)[1])
    per_step = float(re.search(r"hold about ([0-9.]+) samples", result.output)[1])
    assert per_row > 3
    assert per_step == pytest.approx(2 * per_row, rel=0.1)
    assert "50 (max_steps)" in result.output


def test_a_dry_run_shows_data_memory_and_label_masks(tmp_path: Path):
    data = write_data(tmp_path / "data")
    result = run("sft", "--model", "vila-tiny", "--data", data, "--lora", "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    for text in ("12 samples per epoch", "12 images and videos, 12 tiles", "padding", "at the peak", "1 x H100"):
        assert text in result.output
    assert "method: lora" in result.output
    assert not (tmp_path / "run").exists()
    page = (tmp_path / "run-dry-run.html").read_text(encoding="utf-8")
    parsed = Tags()
    parsed.feed(page)
    names = [tag for tag, _ in parsed.tags]
    assert "script" not in names
    assert "link" not in names
    assert names.count("img") == 12
    sources = [value for _, attributes in parsed.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(value is not None and value.startswith("data:image/png;base64,") for value in sources)
    assert "A red 3." in parsed.text["learned"]
    assert "What is" not in parsed.text["learned"]
    assert TEXT in parsed.text["context"]
    assert "image 1: " in parsed.text["media"]


def test_skipped_samples_are_counted_and_named(tmp_path: Path):
    data = write_data(tmp_path / "data")
    (tmp_path / "data" / "3.png").unlink()
    (tmp_path / "data" / "4.png").write_bytes(b"no picture")
    result = run("sft", "-m", "vila-tiny", "-d", data, "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "Samples (the first 10)" in result.output
    assert re.search(r"skipped +(1|2) ", result.output)
    assert "Skipped: " in (tmp_path / "run-dry-run.html").read_text(encoding="utf-8")


def test_truncated_samples_are_counted(tmp_path: Path):
    data = write_data(tmp_path / "data")
    turns = [
        {"from": one, "value": text}
        for one, text in [("human", "a"), ("gpt", "b"), ("human", "c " * 500), ("gpt", "d")]
    ]
    with data.open("a") as file:
        file.write(json.dumps({"id": "long", "conversations": turns}) + "\n")
    limit = ["-s", "data.max_length=400"]
    result = run("sft", "-m", "vila-tiny", "-d", data, "--out", tmp_path / "run", "--dry-run", *limit)
    assert result.exit_code == 0, result.output
    assert re.search(r"truncated +1 longer than data\.max_length = 400", result.output)


def test_one_sample_that_cannot_be_used(tmp_path: Path):
    data = write_data(tmp_path / "data", 1)
    (tmp_path / "data" / "0.png").unlink()
    for dry in ([], ["--dry-run"]):
        result = run("sft", "-m", "vila-tiny", "-d", data, "--out", tmp_path / "run", *dry)
        assert re.search(
            r"^The only sample cannot be used: .*my\.jsonl/0: its image .* is missing", str(result.exception)
        )


def test_a_stage_runs_and_the_next_starts_from_it(tmp_path: Path):
    data = write_data(tmp_path / "data")
    small = ["-s", "max_steps=1", "-s", "compute.precision=fp32", "-s", "data.workers=0", "-s", "data.max_length=512"]
    small += ["-s", "data.samples_per_step=4"]
    done = run("run", "nvila-lite-stage1.5", "--model", "vila-tiny", "--data", data, "--out", tmp_path / "a", *small)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a" / "model" / "config.json").exists()
    assert "name: nvila-lite-stage1.5" in (tmp_path / "a" / "run.yaml").read_text()
    text = ["run", "nvila-lite-sft", "--stage-from", tmp_path / "a", "--data", data, "--out", tmp_path / "b", *small]
    done = run(*text)
    assert done.exit_code == 0, done.output
    before, after = (vila.load(tmp_path / name / "model", device="cpu").network.state_dict() for name in ("a", "b"))
    assert any(not before[name].equal(after[name]) for name in before)
    refused = run(*text, "-s", "optimizer.learning_rate=1e-3")
    assert isinstance(refused.exception, VilaError)
    assert "optimizer.learning_rate was 2e-05 and is 0.001" in str(refused.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nvila-stf"], "Did you mean 'nvila-sft'"),
        (["run", "nvila-sft"], "--model MODEL, or --stage-from RUN"),
        (["run", "nvila-sft", "-m", "vila-tiny", "--stage-from", "x"], "Give one"),
        (["run", "nvila-sft", "--stage-from", "none"], "there is no folder 'none'"),
        (["run", "none.yaml"], "none.yaml"),
        (
            ["run", "nvila-sft", "-m", "vila-tiny", "-s", "max_length=3", "--dry-run"],
            "Did you mean 'model.max_length' or",
        ),
        (["run", "nvila-sft", "-m", "vila-tiny", "-d", "DATA", "--dry-run"], "the model's context is 2,048 tokens"),
        (["run", "nvila-sft", "-m", "vila-tiny", "-d", "DATA"], "the model's context is 2,048 tokens"),
        (["run", "vila-tiny", "--model", "x"], "leave out --model"),
        (["run", "vila-tiny", "-s", "scale=0"], "scale"),
        (["sft", "-m", "vila-tiny", "-d", "DATA", "--adapter", "lorra"], "Did you mean 'lora'"),
        (["sft", "-m", "vila-tiny", "-d", "DATA", "--lora", "--adapter", "dora"], "Got both --lora"),
        (["sft", "-m", "no/such/model", "-d", "DATA"], "No folder"),
        (["sft", "-m", "vila-tiny", "-d", "none.jsonl", "--dry-run"], "none.jsonl"),
        (["sft", "-m", "vila-tiny", "-d", "no_such_set", "--dry-run"], "no_such_set"),
        (["sft", "-m", "vila-tiny", "-d", "EMPTY", "--dry-run"], "empty"),
        (["sft", "-m", "vila-tiny", "-d", "DATA", "--epochs", "0"], "epochs must be more than 0"),
        (["sft", "-m", "vila-tiny", "-d", "DATA", "--registry", "none.yaml", "--dry-run"], "none.yaml"),
        (["sft", "-m", "vila-tiny", "-d", "DATA", "--plugin", "none.py"], "none.py"),
        (["sft", "-m", "vila-tiny", "-d", "DATA", "--lr", "0"], "learning_rate must be more than 0"),
        (["sft", "-m", "", "-d", "DATA"], "The name of the model is empty"),
        (["run", "nvila-sft", "-m", "", "-d", "DATA"], "--model is empty"),
        (["sft", "-m", "vila-tiny", "-d", "DATA", "-s", "name=../../x"], "expected the name of one folder"),
        (["sft", "-m", "vila-tiny", "-d", "DATA", "-s", "data.row_length=5000000"], "must be 4194304 or less"),
        (["show", "nope"], "Unknown recipe 'nope'"),
    ],
)
def test_wrong_commands_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    data = write_data(tmp_path / "data", 3)
    (tmp_path / "data" / "empty.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    places = {"DATA": str(data), "EMPTY": str(tmp_path / "data" / "empty.jsonl")}
    result = run(*[places.get(argument, argument) for argument in arguments])
    assert isinstance(result.exception, VilaError), result.output
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["logging.callbacks=tensorbord"],
            "Unknown callback 'tensorbord'. Known: .*console.* Did you mean 'tensorboard'",
        ),
        (["evaluation.tasks=pop"], "Unknown task 'pop'. Known: .*pope"),
        (["evaluation.mixture=held_out"], "Unknown dataset 'held_out'"),
        (["data.mixture=no_such_set"], "Unknown dataset 'no_such_set'"),
        (["tune="], "No weights are trained. Name parts to train in `tune`: vision_tower, projector, language_model"),
        (["tune=generation_head"], "`tune` names generation_head, but this model has none"),
        (["adapter.targets=q_porj"], "Unknown linear layer for an adapter 'q_porj'. Known: .*q_proj"),
        (["adapter.parts="], "adapter.parts must have 1 or more entries"),
        (["soft_time_tokens=1"], "soft_time_tokens needs a model with time tokens"),
        (["data.row_length=100"], "data.row_length is 100, but samples may have"),
        (["model.chat_template=none_such"], "Unknown chat template 'none_such'"),
        (["model.projector=none_such"], "Unknown projector 'none_such'"),
        (["model.path=no/such"], "no/such"),
        (["model.path="], "model.path must have 1 or more characters"),
        (["model.chat_template="], "model.chat_template must have 1 or more characters"),
        (["adapter.method=norms", "adapter.targets=q_proj"], "adapter.targets is for linear layers"),
        (["data.registries=none.yaml"], "none.yaml"),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, list) else "",
)
def test_a_dry_run_finds_what_the_run_would_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], message: str
):
    data = write_data(tmp_path / "data", 3)
    monkeypatch.chdir(tmp_path)
    small = ["max_steps=1", "compute.precision=fp32", "data.workers=0", "data.max_length=512", *settings]
    command = ["sft", "-m", "vila-tiny", "-d", data, *(part for setting in small for part in ("-s", setting))]
    for dry in (["--dry-run"], []):
        result = run(*command, *dry)
        assert isinstance(result.exception, VilaError), result.output
        assert re.search(message, str(result.exception))
        assert not (tmp_path / "runs" / "sft-dry-run.html").exists()


def test_a_dry_run_of_several_ranks_checks_that_they_share_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    data = write_data(tmp_path / "data")
    command = ["sft", "-m", "vila-tiny", "-d", data, "--dry-run", "-o", tmp_path / "run"]
    refused = run(*command, "-s", "data.rows_per_step=6")
    assert "4 ranks cannot share 6 rows per step" in str(refused.exception)
    done = run(*command, "-s", "data.rows_per_step=8")
    assert "Memory of each GPU, 4 in all" in done.output
    monkeypatch.setenv("RANK", "1")
    assert run(*command, "-s", "data.rows_per_step=8").output == "", "the first process shows it"


def test_a_dry_run_looks_into_the_run_s_folder(tmp_path: Path):
    data = write_data(tmp_path / "data")
    small = ["max_steps=2", "compute.precision=fp32", "data.workers=0", "data.rows_per_step=1", "saving.every=1"]
    command = ["sft", "-m", "vila-tiny", "-d", data, "--lora"]
    command += [*(part for setting in small for part in ("-s", setting)), "-o", tmp_path / "run"]
    assert run(*command).exit_code == 0
    assert "holds a complete run" in run(*command, "--dry-run").output
    shutil.rmtree(tmp_path / "run" / "model")  # as if it was interrupted
    assert run(*command, "--dry-run").exit_code == 0
    for changes, message in (
        (["-s", "seed=1"], "seed was 0 and is 1"),
        (["-s", "data.rows_per_step=2", "--accept-changes"], "the run started with 1"),
        (["-s", "adapter.rank=8", "--accept-changes"], r"of shape \(64, 256\), but this run's has \(8, 256\)"),
    ):
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        for dry in (["--dry-run"], []):
            refused = run(*command, *changes, *dry)
            assert isinstance(refused.exception, VilaError)
            assert re.search(message, str(refused.exception))
            if dry:
                assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    data.write_text("".join(reversed(lines)), encoding="utf-8")
    refused = run(*command, "--dry-run")
    assert "my.jsonl' are not those that the run started with" in str(refused.exception)
    assert run(*command, "--dry-run", "--accept-changes").exit_code == 0
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for place, message in (("file", "cannot be written"), ("other", "is not empty")):
        refused = run(*command[:-1], tmp_path / place, "--dry-run")
        assert message in str(refused.exception)


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("vila-tiny", ["stages=algn"], "Unknown stage 'algn'. Known: align, .* Did you mean 'align'"),
        ("vila-tiny", ["init=no/such"], "no/such"),
        ("vila-tiny-u", ["init=vila-tiny-u"], "choose later stages"),
        ("vila-tiny-u", ["init=no/such", "stages=[sft]"], "No folder 'no/such'"),
        ("vila-tiny", ["scale=0.5"], "holds a run with other settings"),
    ],
)
def test_a_dry_run_of_a_tiny_model_finds_what_the_run_would_find(
    tmp_path: Path, recipe: str, settings: list[str], message: str
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    small = [part for setting in ["device=cpu", *settings] for part in ("-s", setting)]
    for dry in (["--dry-run"], []):
        result = run("run", recipe, *small, "-o", tmp_path / "run", *dry)
        assert isinstance(result.exception, VilaError), result.output
        assert re.search(message, str(result.exception))


def test_what_this_machine_cannot_do_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A dry run may be done on a machine without the GPU of the run."""
    monkeypatch.setattr("vila_train.dry_run.measuring.choose_device", lambda device: torch.device("cpu"))
    data = write_data(tmp_path / "data")
    with pytest.warns(VilaWarning, match=r"On this machine, the run would stop: compute\.fp8 cannot be used here"):
        done = run("sft", "-m", "vila-tiny", "-d", data, "-o", tmp_path / "run", "--dry-run", "-s", "compute.fp8=true")
    assert done.exit_code == 0, done.output


def test_the_page_of_a_run_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_data(tmp_path / "data")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("sft", "-m", "vila-tiny", "-d", data, "-o", ".", "--dry-run").exit_code == 0
    assert (tmp_path / "here-dry-run.html").exists()


@pytest.mark.parametrize(
    "command", [["sft", "-m", "vila-tiny", "-d", "DATA"], ["run", "vila-tiny", "-s", "device=cpu"]]
)
@pytest.mark.parametrize("place", ["x" * 300, "my.jsonl", "my.jsonl/x"])
def test_a_folder_that_cannot_be_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], place: str
):
    data = write_data(tmp_path / "data", 3)
    monkeypatch.chdir(tmp_path / "data")
    for dry in (["--dry-run"], []):
        result = run(*[str(data) if part == "DATA" else part for part in command], "-o", place, *dry)
        assert isinstance(result.exception, VilaError), result.output
        assert re.search("cannot be written: (File name too long|Not a directory)", str(result.exception))


def test_rates_of_parts_that_are_not_trained_are_a_warning(tmp_path: Path):
    data = write_data(tmp_path / "data", 3)
    settings = ["-s", "tune=projector", "-s", "optimizer.part_learning_rates={vision_tower: 1e-5}"]
    with pytest.warns(VilaWarning, match="has a rate for vision_tower, which `tune` does not name"):
        done = run("sft", "-m", "vila-tiny", "-d", data, "-o", tmp_path / "run", "--dry-run", *settings)
    assert done.exit_code == 0, done.output


def test_no_usable_sample_is_an_error(tmp_path: Path):
    data = write_data(tmp_path / "data", 3, image="none.png")
    result = run("sft", "-m", "vila-tiny", "-d", data, "--dry-run", "--out", tmp_path / "run")
    assert isinstance(result.exception, VilaError)
    assert "None of the first 3 samples can be used" in str(result.exception)


def test_a_run_that_never_started_may_change(tmp_path: Path):
    """An empty data file stops a run before its first step. The right one needs no other folder."""
    (tmp_path / "empty.jsonl").write_text("")
    small = ["max_steps=1", "compute.precision=fp32", "data.workers=0", "data.rows_per_step=1"]
    small = [*(part for setting in small for part in ("-s", setting)), "-o", tmp_path / "run"]
    failed = run("sft", "-m", "vila-tiny", "-d", tmp_path / "empty.jsonl", *small)
    assert isinstance(failed.exception, VilaError)
    assert not (tmp_path / "run" / "run.yaml").exists()
    done = run("sft", "-m", "vila-tiny", "-d", write_data(tmp_path / "data"), *small)
    assert done.exit_code == 0, done.output


def test_longer_rows_are_suggested_where_samples_do_not_fill_them(tmp_path: Path):
    data = write_data(tmp_path / "data")
    result = run("sft", "-m", "vila-tiny", "-d", data, "--dry-run", "-o", tmp_path / "run", "-s", "data.max_length=128")
    assert re.search(r"[0-9.]+% padding; data\.row_length=256 would leave [0-9.]+%", result.output), result.output
