"""The `openai` package of npm against a running server: another client with habits of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.programs import run_program

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "examples" / "media" / "word.png"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "vila_serve", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = next((match[1] for line in process.stderr if (match := re.search(r"at (http://\S+/v1)", line))), None)
    assert found is not None
    threading.Thread(target=process.stderr.read, daemon=True).start()
    yield found
    process.terminate()
    assert process.wait(timeout=240) == 0


@pytest.fixture(scope="module")
def seen(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the program in Node saw."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "client.mjs"):
        shutil.copy(HERE / name, folder / name)
    run_program(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True, seconds=300)
    environment = {**os.environ, "NODE_OPTIONS": "--unhandled-rejections=strict"}
    arguments = ["node", "client.mjs", address, str(PICTURE)]
    done = run_program(arguments, cwd=folder, env=environment, seconds=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_answers(seen: dict[str, Any]):
    assert seen["models"] == ["vila-tiny"]
    assert seen["content"] == "HINT"
    assert seen["finish"] == "stop"
    assert seen["logprobs"] == seen["tokens"] > 0


def test_streams_hold_the_same_answer(seen: dict[str, Any]):
    assert seen["streamed"] == seen["gathered"] == seen["content"]
    assert seen["usage"]["completion_tokens"] == seen["tokens"]


def test_responses(seen: dict[str, Any]):
    assert seen["response"] == "HINT"


def test_errors_become_the_classes_of_the_package(seen: dict[str, Any]):
    assert seen["errors"] == {
        "model": {"kind": "NotFoundError", "status": 404, "request": True},
        "messages": {"kind": "BadRequestError", "status": 400, "request": True},
        "media": {"kind": "BadRequestError", "status": 400, "request": True},
    }


def test_a_client_that_stops_reading_harms_nobody(seen: dict[str, Any]):
    assert seen["after"] == seen["content"]
