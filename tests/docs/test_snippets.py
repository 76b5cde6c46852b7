"""Runs the `python`, `bash` and `console` blocks of the READMEs and docs, in a folder that holds only the examples.

A block that cannot run says why in a comment on the line before it: `<!-- not run: needs a GPU -->`. The Python blocks
of a document share one namespace. A `console` block shows commands after `$ ` and their expected output below (`...`
matches anything). Commands that a translation shares with the original run there only.
"""

import doctest
import re
import subprocess
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from tests.programs import run_program

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("packages/*/README.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("docs/**/*.md")}
)
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>\S.*?) -->\n[ \t]*\Z")
RUNNABLE_FENCE = re.compile(r"^[ \t>]*(?:```+|~~~+)[ \t]*(?:python|py|pycon|bash|sh|shell|console)\b", re.MULTILINE)


def run(command: str) -> str:
    """Run a shell command and return its output. The test fails with the output if the command fails."""
    done = run_program(["bash", "-euo", "pipefail", "-c", command], stderr=subprocess.STDOUT, seconds=600)
    if done.returncode:
        pytest.fail(f"exit code {done.returncode}: {command}\n{done.stdout}", pytrace=False)
    return done.stdout


def run_bash(example: Example) -> None:
    run(example.parsed)


def run_console(example: Example) -> None:
    for command, shown in re.findall(r"^\$ (.*(?:\\\n.*)*)\n?((?:(?!\$ ).*\n?)*)", example.parsed, re.MULTILINE):
        printed = run(command)
        if shown.strip() and not doctest.OutputChecker().check_output(
            shown, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        ):
            pytest.fail(f"{command}\n\nThe document shows:\n{shown}\nThe command prints:\n{printed}", pytrace=False)


SYBIL = Sybil([PythonCodeBlockParser(), CodeBlockParser("bash", run_bash), CodeBlockParser("console", run_console)])


TRANSLATED = {ROOT / "README.zh-CN.md": ROOT / "README.md"} | {
    path: ROOT / "docs" / path.name for path in ROOT.glob("docs/zh/*.md")
}
"""Translation -> its original."""


def snippets(path: Path) -> list[Example]:
    return list(SYBIL.parse(path).examples())


def reason_not_to_run(example: Example) -> str | None:
    match = NOT_RUN.search(example.document.text, 0, example.region.start)
    return match["reason"] if match else None


def commands_of_the_original(path: Path) -> set[str]:
    """Return the `bash` and `console` blocks that run in the document of which `path` is a translation."""
    original = TRANSLATED.get(path)
    if original is None:
        return set()
    return {example.parsed for example in snippets(original) if is_command(example) and not reason_not_to_run(example)}


def is_command(example: Example) -> bool:
    return example.region.evaluator in (run_bash, run_console)


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if snippets(path)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_snippets_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shared = commands_of_the_original(path)
    for example in snippets(path):
        where = f"{path.relative_to(ROOT)}:{example.line}"
        reason = reason_not_to_run(example)
        if reason or (is_command(example) and example.parsed in shared):
            print(f"{where} not run: {reason or 'runs in the original'}")
            continue
        print(f"{where} running")
        example.evaluate()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_runnable_block_is_recognized(path: Path):
    """A block with a fence that the parsers do not know (`py`, `sh`, a title after the language) would never run."""
    text = path.read_text(encoding="utf-8")
    starts = {fence.start() for fence in RUNNABLE_FENCE.finditer(text) if not NOT_RUN.search(text, 0, fence.start())}
    unrecognized = starts - {example.region.start for example in snippets(path)}
    assert not unrecognized, [text[start:].splitlines()[0] for start in unrecognized]


def test_most_snippets_run():
    examples = [example for path in DOCUMENTS for example in snippets(path)]
    runnable = [example for example in examples if reason_not_to_run(example) is None]
    assert len(runnable) >= 10
    assert len(runnable) > len(examples) / 2
