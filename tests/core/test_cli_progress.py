"""Progress of long runs, printed as lines."""

import pytest

from vila_core.cli.progress import ProgressLines, clock_time


def test_progress_lines_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = ProgressLines("samples", lambda: now)
    lines.start("pope", 100, 20)
    for now in (10.0, 40.0, 50.0):  # noqa: B007 - read by the clock
        lines.advance(10)
    lines.finish()
    lines.start("mme", 2)
    lines.advance(2)
    now = 60.0
    lines.finish()
    assert capsys.readouterr().err.splitlines() == [
        "pope: 100 samples, 20 samples already done",
        "pope: 40 of 100, 0.5 samples/s, 2:00 left",
        "pope: stopped at 50 of 100",
        "mme: 2 samples",
        "mme: done in 0:10",
    ]
    assert clock_time(3723) == "1:02:03"
