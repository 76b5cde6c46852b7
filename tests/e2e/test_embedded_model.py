"""A fresh machine: the installed programs and the embedded model, from any folder and without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.programs import run_program

import vila_core as vila
from vila_core.checkpoint.embedded import EMBEDDED_MODELS
from vila_core.media import open_media

MEDIA = Path(__file__).parents[2] / "examples" / "media"
CASES = json.loads((MEDIA / "questions.json").read_text(encoding="utf-8"))


def program(name: str, *arguments: str, folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `vila_core.cli.<name>` in `folder`, without GPU and hub."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
    script = f"import sys; from vila_core.cli.{name} import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", script, *arguments]
    return run_program(command, cwd=folder, env=environment, input=stdin)


@pytest.fixture(scope="module")
def model() -> vila.Vila:
    return vila.load("vila-tiny", device="cpu")


@pytest.mark.parametrize("case", CASES, ids=lambda case: "+".join(case["media"]))
def test_questions_about_the_bundled_media_are_answered_correctly(case: dict[str, str], model: vila.Vila) -> None:
    media = [open_media(MEDIA / name) for name in case["media"]]
    assert model.generate([*media, case["text"]]) == case["answer"]


def test_vila_infer_prints_only_the_answer(tmp_path: Path) -> None:
    case = CASES[-1]
    media = [str(MEDIA / name) for name in case["media"]]
    done = program("infer", "-m", "vila-tiny", "--media", *media, "--text", case["text"], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == case["answer"]
    assert done.stderr == ""


def test_vila_infer_reads_a_pipe_explains_and_prints_json(tmp_path: Path) -> None:
    case = CASES[0]
    done = program(
        "infer", "--media", str(MEDIA / case["media"][0]), "--json", "--explain", folder=tmp_path, stdin=case["text"]
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == case["answer"]
    assert "Token budget" in done.stderr
    assert (tmp_path / "vila-explain.png").read_bytes().startswith(b"\x89PNG")


def test_info_and_doctor_find_the_embedded_models(tmp_path: Path) -> None:
    info = json.loads(program("main", "info", "--json", folder=tmp_path).stdout)
    assert 4_000_000 < info["parameters"] < 16_000_000
    assert info["license"] is not None
    assert info["chat_template"] != "none stated: name one with --conv-mode"
    findings = json.loads(program("main", "doctor", "--json", folder=tmp_path).stdout)["findings"]
    status = {finding["name"]: finding["status"] for finding in findings}
    assert [status[name] for name in EMBEDDED_MODELS] == ["ok", "ok"]
