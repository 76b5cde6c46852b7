"""Recordings of the reference: the ones committed under `data/`, or the folders given with `--recordings`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parent / "data"
STAGES = ("features", "media_embeddings", "inputs_embeds", "last_hidden", "logits")
ERRORS: dict[str, dict[str, float]] = {}
"""The largest absolute difference from the recording by case and stage, filled by `test_cases`."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ERRORS:
        terminalreporter.section("largest difference from the reference")
        terminalreporter.write_line(f"{'case':44}" + "".join(f"{stage:>18}" for stage in STAGES))
        for name, errors in ERRORS.items():
            cells = [f"{errors[stage]:18.1e}" if stage in errors else " " * 18 for stage in STAGES]
            terminalreporter.write_line(f"{name:44}" + "".join(cells))


@dataclass(frozen=True)
class Case:
    """One recorded prompt: its inputs and the intermediate results of the reference."""

    name: str
    record: dict[str, Any]
    folder: Path
    checkpoint: Path
    inputs: Path

    @property
    def tensors(self) -> dict[str, Tensor]:
        file = self.folder / "tensors.safetensors"
        return load_file(file) if file.exists() else {}


def recordings(config: pytest.Config) -> list[Path]:
    """Return the folders of recordings, laid out like `golden` and `golden2`."""
    given: list[str] = config.getoption("--recordings") or []
    return [Path(folder).resolve() for folder in given] or [DATA / "golden", DATA / "golden2"]


def find_cases(config: pytest.Config) -> list[Case]:
    """Return every case of the recordings. Checkpoints and inputs may be in a sibling folder."""
    cases: list[Case] = []
    for home in recordings(config):
        homes = [home, home.parent / "golden", home.parent / "golden2", DATA / "golden", DATA / "golden2"]
        inputs = next(folder for folder in homes if (folder / "inputs").exists())
        for file in sorted(home.rglob("case.json")):
            record = json.loads(file.read_text())
            checkpoints = [folder / record["variant"] / "checkpoint" for folder in homes]
            checkpoint = next(folder for folder in checkpoints if folder.exists())
            cases.append(Case(f"{record['variant']}/{record['case']}", record, file.parent, checkpoint, inputs))
    return cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = find_cases(metafunc.config)
        metafunc.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> Path:
    """The folder `functions/` of `golden`."""
    return _functions(pytestconfig, "tiling.json")


@pytest.fixture(scope="session")
def golden2(pytestconfig: pytest.Config) -> Path:
    """The folder `functions/` of `golden2`."""
    return _functions(pytestconfig, "stop_tokens.json")


def _functions(config: pytest.Config, member: str) -> Path:
    folders = [*recordings(config), DATA / "golden", DATA / "golden2"]
    return next(folder / "functions" for folder in folders if (folder / "functions" / member).exists())
