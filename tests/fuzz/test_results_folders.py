"""Damaged, foreign and hostile results folders: shown, compared, reported and resumed, or refused in one line."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.eval.test_runner import Table
from tests.fuzz.bounded import assert_bounded

from vila_core.cli.progress import NoProgress
from vila_core.errors import VilaError
from vila_eval.cli.show import show
from vila_eval.data.sources import DataOptions
from vila_eval.metric import Measure
from vila_eval.options import ModelOptions, Planned, RunOptions
from vila_eval.records.schema import Counts, ModelIdentity, RunSettings, SampleRecord, TaskResult, Timings
from vila_eval.records.storage import find_results, read_result, write_record, write_records
from vila_eval.report.comparison import compare_runs
from vila_eval.report.comparison_page import write_comparison
from vila_eval.report.html import write_report
from vila_eval.report.tracking import scalars
from vila_eval.running.manifest import Manifest, begin
from vila_eval.running.runner import evaluate
from vila_eval.statistics import Estimate
from vila_eval.task import Question, Task

pytestmark = pytest.mark.slow

FACTS = {
    "task": "words",
    "task_version": 1,
    "distribution": "",
    "model": ModelIdentity(name="tiny", source="tiny", digest="0" * 64),
    "settings": RunSettings(max_new_tokens=32),
    "data": {"dataset": "table"},
}
FILES = ("results.json", "run.json", "samples.jsonl", "timings.json", "answers-0.jsonl", "judge.json", "failed-0.txt")


def write_results(folder: Path) -> None:
    samples = [
        SampleRecord(id=f"{n}", index=n, row=n, key="k", prompt=(), answer="a", reference="a", values={"right": n % 2})
        for n in range(4)
    ]
    measure = Measure("right", Estimate(0.5, 0.25, 4))
    folder.mkdir(parents=True)
    write_records(folder / "samples.jsonl", samples)
    result = TaskResult(**FACTS, metric="exact_match", measures=(measure,), counts=Counts(samples=4))  # type: ignore[arg-type]
    write_record(folder / "results.json", result)
    write_record(folder / "run.json", Manifest(**FACTS, rows=4))  # type: ignore[arg-type]
    timings = Timings(started="2026", finished="2026", answered=4, seconds=1, batch_size=1, workers=1)
    write_record(folder / "timings.json", timings)


def texts() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    yield "binary", bytes(range(256))
    yield "null", b"\0" * 1000
    yield "Latin-1", "{'é'}".encode("latin-1")
    yield "UTF-16", '{"format": 1}'.encode("utf-16")
    yield "byte order mark", b"\xef\xbb\xbf{}"
    yield "a list", b"[]\n"
    yield "a number", b"1e999\n"
    yield "digits", b"9" * 5000 + b"\n"
    yield "other program's", json.dumps({"results": {"acc": 1}}).encode() + b"\n"
    yield "newer version", json.dumps({"format": 2, "anything": {}}).encode() + b"\n"
    yield "nested", b"[" * 100_000 + b"\n"
    yield "nested objects", b'{"a":' * 50_000 + b"\n"
    yield "escape codes", b'{"\\u001b[31m": "\x1b[0m"}\n'
    yield "surrogates", b'{"task": "\\ud800", "format": 1}\n'
    yield "long line", b"x" * 3_000_000


def places(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ways to put something else where a file was."""
    yield "a folder", path.mkdir
    yield "a pipe", partial(os.mkfifo, path)
    yield "a device", partial(path.symlink_to, "/dev/zero")
    yield "a loop", partial(path.symlink_to, path.name)
    yield "a dangling link", partial(path.symlink_to, "nowhere")
    yield "a sparse terabyte", partial(_sparse, path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def mutations(content: bytes, count: int) -> Iterator[bytes]:
    chance = random.Random(12)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            position = chance.randrange(len(changed))
            if chance.random() < 0.3:
                del changed[position : position + chance.randint(1, 40)]
            else:
                changed[position] = chance.randrange(256)
            if not changed:
                break
        yield bytes(changed)


def use(root: Path, other: Path) -> None:
    """Everything that reads a results folder. Each may refuse; the last refusal is raised."""
    task = Task(
        "words",
        Table([{"id": str(n)} for n in range(4)]),
        lambda row: Question(row["id"], ["say a"], "a"),
        "exact_match",
    )
    options = RunOptions(root.parent, DataOptions(root.parent / "cache"), phase="score")
    folder = root / "words"
    refused: VilaError | None = None
    for step in (
        partial(show, folder),
        partial(show, folder, wrong=2),
        lambda: write_comparison(compare_runs(root, other, allow_different=True), root / "page.html"),
        lambda: write_report(root),
        lambda: scalars({name: read_result(found) for name, found in find_results(root).items()}),
        lambda: begin(folder, Manifest(**FACTS, rows=4), force=False, submission=None),  # type: ignore[arg-type]
        lambda: evaluate(ModelOptions(name=root.name), [Planned(task, "words")], options, NoProgress()),
        lambda: begin(folder, Manifest(**FACTS, rows=4), force=True, submission=None),  # type: ignore[arg-type]
    ):
        try:
            step()
        except VilaError as error:
            refused = error
    if refused is not None:
        raise refused


def test_damaged_results_are_refused_in_one_line(tmp_path: Path) -> None:
    write_results(tmp_path / "whole/words")
    cases: dict[str, Callable[[], object]] = {}

    def case(name: str, file: str, change: Callable[[Path], object]) -> None:
        root = tmp_path / f"case-{len(cases)}"

        def run() -> None:
            shutil.copytree(tmp_path / "whole", root)
            if file:
                (root / "words" / file).unlink(missing_ok=True)
            change(root / "words" / file)
            use(root, tmp_path / "whole")

        cases[f"{file}: {name}"] = run

    for file in FILES:
        for name, content in texts():
            case(name, file, lambda path, content=content: path.write_bytes(content))
        for name, _ in places(Path("x")):
            case(name, file, lambda path, name=name: dict(places(path))[name]())
        case("missing", file, lambda path: None)
    for name, _ in places(Path("x")):
        case(f"its folder is {name}", "", lambda path, name=name: (shutil.rmtree(path), dict(places(path))[name]()))
    case("its folder is a file", "", lambda path: (shutil.rmtree(path), path.write_text("x")))
    for file in ("results.json", "run.json", "samples.jsonl", "timings.json"):
        content = (tmp_path / "whole/words" / file).read_bytes()
        for number, changed in enumerate(mutations(content, 25)):
            case(f"mutation {number}", file, lambda path, changed=changed: path.write_bytes(changed))
        for cut in (1, len(content) // 2, len(content) - 1):
            case(f"cut at {cut}", file, lambda path, cut=cut, content=content: path.write_bytes(content[:cut]))
    assert_bounded(cases)
