"""Time tokens to seconds and back, against the recordings."""

import json
from pathlib import Path

import pytest

from vila_core.engine.time_tokens import decode_time_token, encode_time_token


@pytest.fixture(scope="module")
def recorded(golden2: Path) -> dict[str, list[list[object]]]:
    return json.loads((golden2 / "time_tokens.json").read_text())


@pytest.mark.parametrize("direction", [decode_time_token, encode_time_token], ids=lambda function: function.__name__)
def test_recorded(recorded: dict[str, list[list[object]]], direction) -> None:
    rows = recorded[direction.__name__]
    assert len(rows) > 50
    for text, duration, count, form, result in rows:
        got = direction(text, duration=duration, num_time_tokens=count, time_token_format=form)
        assert got == result, f"{text!r}, {duration} s, {count} tokens of form {form}"


def test_single_time_token_means_the_start() -> None:
    """The reference divides by zero here."""
    assert (
        decode_time_token("<t0> to <t1>", duration=8.0, num_time_tokens=1, time_token_format="<t{t}>")
        == "<0.0> to <8.0>"
    )
    assert encode_time_token("<3.5> on", duration=8.0, num_time_tokens=1, time_token_format="<t{t}>") == "<t0> on"


def test_video_without_duration() -> None:
    """The reference divides by zero here too."""
    assert encode_time_token("<3.5> on", duration=0.0, num_time_tokens=100, time_token_format="<t{t}>") == "<t0> on"


def test_token_that_is_a_prefix_of_another() -> None:
    assert decode_time_token("t1 t10", duration=99.0, num_time_tokens=100, time_token_format="t{t}") == "<1.0> <10.0>"
