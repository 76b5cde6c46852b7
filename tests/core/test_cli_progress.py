"""Progress of long runs, printed as lines."""

import numpy as np
import pytest

import vila_core as vila
from vila_core.cli.progress import ProgressLines, clock_time, open_progress, show_phases


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


def test_slow_and_single_steps_read_naturally(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = ProgressLines("steps", lambda: now)
    lines.start("Layers", 6)
    now = 35.0
    lines.advance()
    lines.start("Writing the checkpoint", 1)
    now = 36.0
    lines.advance()
    lines.finish()
    assert capsys.readouterr().err.splitlines() == [
        "Layers: 6 steps",
        "Layers: 1 of 6, 35 s per step, 2:55 left",
        "Layers: stopped at 1 of 6",
        "Writing the checkpoint: started",
        "Writing the checkpoint: done in 0:01",
    ]


@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
def test_what_failed_after_its_steps_is_not_done(
    terminal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All layers are converted, and then the disk is full."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", terminal)

    def convert() -> None:
        with open_progress("tensors") as progress:
            progress.start("Converting", 2)
            progress.advance(2)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        convert()
    printed = capsys.readouterr().err
    assert "Converting: stopped at 2 of 2" in printed
    assert "done" not in printed
    with open_progress("tensors") as progress:
        progress.start("Converting", 2)
        progress.advance(2)
    assert "Converting: done in 0:00" in capsys.readouterr().err


def test_phases_of_an_answer() -> None:
    model = vila.load("vila-tiny")
    seen: list[str] = []
    model.on_phase = seen.append
    picture = vila.Image(np.zeros((8, 8, 3), np.uint8))
    model.generate([picture, picture, vila.Video(np.zeros((9, 8, 8, 3), np.uint8)), "?"], max_new_tokens=1)
    tokens = model.inspect([picture, picture, vila.Video(np.zeros((9, 8, 8, 3), np.uint8)), "?"]).inputs_embeds.shape[0]
    assert seen[:3] == [
        "Preparing the prompt",
        "Encoding 2 images and 1 video (10 tiles)",
        f"Reading the prompt ({tokens:,} tokens)",
    ]


def test_phases_are_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with show_phases("Loading") as show:
        show("Answering")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with show_phases("Loading") as show:
        show("Loading: 1 of 2 GB")
        show("Encoding [3] images")
    assert "Encoding [3] images" in capsys.readouterr().err
