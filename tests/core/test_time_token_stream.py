"""Time tokens that arrive in pieces become seconds, exactly as in the whole text."""

import random

import pytest

from vila_core.engine.time_tokens import TimeTokenStream, decode_time_token

TEXT = "<t0> <t99> a < b, x<y>, <t7>: done <t100> <tx> <t5"
SETTINGS = {"duration": 12.5, "num_time_tokens": 100}


@pytest.mark.parametrize("time_token_format", ["<t{t}>", "<time_{t}>"])
@pytest.mark.parametrize("seed", range(20))
def test_any_cut_gives_the_whole_text(seed: int, time_token_format: str):
    text = TEXT.replace("<t", time_token_format.partition("{")[0])
    generator = random.Random(seed)
    stream = TimeTokenStream(**SETTINGS, time_token_format=time_token_format)
    pieces, start = [], 0
    while start < len(text):
        size = generator.randint(1, 6)
        pieces.append(stream.push(text[start : start + size]))
        start += size
    pieces.append(stream.finish())
    assert "".join(pieces) == decode_time_token(text, **SETTINGS, time_token_format=time_token_format)


def test_text_without_tokens_is_not_held_back():
    stream = TimeTokenStream(**SETTINGS, time_token_format="<t{t}>")
    assert stream.push("a box moves") == "a box moves"
    assert stream.push(" at <t") == " at "
    assert stream.push("0> now") == "<0.0> now"


def test_a_model_without_time_tokens_passes_text_on():
    stream = TimeTokenStream(duration=0.0, num_time_tokens=0, time_token_format="")
    assert stream.push("<t5") + stream.push("> ") + stream.finish() == "<t5> "
