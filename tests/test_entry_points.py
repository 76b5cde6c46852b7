"""The programs of all distributions end quietly, whenever Ctrl-C is pressed, and when nobody reads what they print."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.programs import run_program

PACKAGES = Path(__file__).parents[1] / "packages"
ENTRY_POINTS: dict[str, str] = {
    program: target
    for path in sorted(PACKAGES.glob("*/pyproject.toml"))
    for program, target in tomllib.loads(path.read_text(encoding="utf-8"))["project"]["scripts"].items()
}
"""Programs -> their functions, as "package.module:function"."""

RUN = """
import signal, sys
moment, number, target, *sys.argv[1:] = sys.argv[1:]
class Send:
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            signal.raise_signal(int(number))
sys.meta_path.insert(0, Send())
module, _, function = target.partition(":")
sys.exit(getattr(__import__(module, fromlist=[""]), function)())
"""
"""Starts a program as its script does, with a signal when it is about to import the module `moment`."""


def run(
    program: str, *arguments: str, moment: str = "", number: int = 0, output: int = subprocess.DEVNULL
) -> tuple[int, str]:
    """Run a program; return its exit code and what it wrote to standard error."""
    ended = run_program(
        [sys.executable, "-c", RUN, moment, str(number), ENTRY_POINTS[program], *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": ""},
        stdin=subprocess.DEVNULL,
        stdout=output,
    )
    return ended.returncode, ended.stderr


IMPORTING = {
    "vila": ("doctor",),
    "vila-infer": ("-m", "vila-tiny", "--text", "?"),
    "vila-quant": ("awq", "vila-tiny", "OUT"),
    "vila-eval": ("--tasks", "vila/blocks", "--fixtures", "--output-dir", "OUT"),
    "vila-serve": ("--port", "0"),
    "vila-train": ("tiny", "--out", "OUT"),
}
"""Arguments with which a program imports what is slow to import."""
SLOW = {"vila-serve": "fastapi"}
"""What that is, if not torch."""


@pytest.mark.parametrize("program", IMPORTING)
@pytest.mark.parametrize("is_early", [True, False], ids=["early", "late"])
def test_ctrl_c_while_a_program_imports(program: str, is_early: bool, tmp_path: Path) -> None:
    arguments = [word.replace("OUT", str(tmp_path / "out")) for word in IMPORTING[program]]
    moment = "typer" if is_early else SLOW.get(program, "torch")
    code, said = run(program, *arguments, moment=moment, number=signal.SIGINT)
    assert code == 130
    assert said.splitlines()[-1] == "Stopped."
    assert "Traceback" not in said
    if is_early:
        assert said == "Stopped.\n"


@pytest.mark.parametrize("program", IMPORTING)
def test_sigterm_is_quiet(program: str) -> None:
    assert run(program, *IMPORTING[program], moment="typer", number=signal.SIGTERM) == (-signal.SIGTERM, "")


@pytest.mark.parametrize("program", ENTRY_POINTS)
def test_a_closed_pipe_is_quiet(program: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(program, "--help", output=writer) == (1, "")
    finally:
        os.close(writer)


@pytest.mark.parametrize("path", sorted(PACKAGES.glob("*/src/*/__main__.py")), ids=lambda path: path.parent.name)
def test_a_package_is_its_program(path: Path) -> None:
    """`python -m vila_serve` is `vila-serve`, and importing its module, as a child process does, starts nothing."""
    package = path.parent.name
    name = package.replace("_", "-").replace("vila-core", "vila")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for words, said in ((["-m", package, "--help"], f"Usage: {name} "), (["-c", f"import {package}.__main__"], "")):
        ended = run_program([sys.executable, *words], env=environment, check=True)
        assert said in ended.stdout
        assert bool(ended.stdout) == bool(said)
