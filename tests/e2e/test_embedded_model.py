"""A fresh machine: the programs as installed, from any folder, without a network, on the embedded model and the bundled media."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MEDIA = Path(__file__).parents[2] / "examples" / "media"
CASES = json.loads((MEDIA / "questions.json").read_text(encoding="utf-8"))


def program(name: str, *arguments: str, folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `vila_core.cli.<name>` in another folder, with no GPU and the hub switched off."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
    script = f"import sys; from vila_core.cli.{name} import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, input=stdin)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "+".join(case["media"]))
def test_bundled_media_are_answered_truly(case: dict[str, object], tmp_path: Path) -> None:
    media = [str(MEDIA / str(name)) for name in case["media"]]
    done = program("infer", "--media", *media, "--text", str(case["text"]), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == case["answer"]
    assert done.stderr == ""


def test_question_from_a_pipe_explained_and_as_json(tmp_path: Path) -> None:
    case = CASES[0]
    done = program(
        "infer", "--media", str(MEDIA / case["media"][0]), "--json", "--explain", folder=tmp_path, stdin=case["text"]
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == case["answer"]
    assert "Token budget" in done.stderr
    assert (tmp_path / "vila-explain.png").read_bytes().startswith(b"\x89PNG")


def test_info_and_doctor_know_the_embedded_model(tmp_path: Path) -> None:
    info = json.loads(program("main", "info", "--json", folder=tmp_path).stdout)
    assert 4_000_000 < info["parameters"] < 16_000_000
    assert info["license"] is not None
    assert info["chat_template"] != "none stated: name one with --conv-mode"
    findings = json.loads(program("main", "doctor", "--json", folder=tmp_path).stdout)["findings"]
    assert next(finding["status"] for finding in findings if finding["name"] == "vila-tiny") == "ok"
