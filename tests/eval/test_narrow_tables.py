"""Tables in a narrow terminal: names are never cut, and columns that do not fit are named."""

import re

import pytest

from vila_core.plugins.loader import load_plugins
from vila_eval.cli import listing


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_list_never_cuts_a_name(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    listing.list_tasks()
    lines = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).split("\n")
    starts = {line.split()[0] for line in lines if line.split()}
    assert not set(load_plugins().tasks.names()) - starts
    assert max(map(len, lines)) <= columns
    assert any(line.startswith("Columns left out for lack of space") for line in lines) == (columns < 200)
