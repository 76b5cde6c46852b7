"""Runs the example notebooks: their outputs in the repository are what they give today."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = re.compile(r"\d+\.\d\d s\b")


def builder(name: str = "make_notebook") -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(notebook: Any) -> list[tuple[str, list[str]]]:
    """Return the source and the texts of each cell. Pictures may differ by the version of the decoder."""
    cells: list[tuple[str, list[str]]] = []
    for cell in notebook.cells:
        texts = []
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                texts.append("\n".join(output.traceback))
            elif output.output_type == "stream":
                texts.append(output.text)
            else:
                texts.append(SECONDS.sub("… s", output.data["text/plain"]))
        cells.append((cell.source, texts))
    return cells


def test_the_notebook_gives_the_outputs_that_it_shows() -> None:
    make = builder()
    committed = nbformat.read(make.NOTEBOOK, as_version=4)
    assert shown(make.execute(make.build())) == shown(committed), "run examples/make_notebook.py"
    assert make.NOTEBOOK.stat().st_size < 1_000_000
    outputs = [output for cell in committed.cells for output in cell.get("outputs", ()) if "data" in output]
    html = "".join(output.data.get("text/html", "") for output in outputs)
    assert html.count("<img") == 3, "the image, the video and the inspection are shown"


def test_the_notebook_on_fine_tuning_teaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many answers are right may differ by a few with the machine's rounding."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    make = builder("make_fine_tune_notebook")
    committed = nbformat.read(make.NOTEBOOK, as_version=4)
    executed = make.execute(make.build(make.CELLS))
    assert [cell.source for cell in executed.cells] == [cell.source for cell in committed.cells]
    for notebook in (committed, executed):
        texts = [text for _, of_cell in shown(notebook) for text in of_cell]
        before, after = [int(text.split()[0]) for text in texts if " of 12 right" in text]
        assert before < 4
        assert after >= 9
        assert not any("Traceback" in text for text in texts)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        assert any("image/svg+xml" in output.get("data", {}) for output in outputs), "the loss is drawn"
    assert make.NOTEBOOK.stat().st_size < 1_000_000
