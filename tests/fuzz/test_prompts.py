"""Prompts of any shape: each is a conversation, or a one-line error."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import vila_core as vila
from vila_core.conversation import as_messages
from vila_core.errors import VilaError

KEYS = (
    *("role", "content", "type", "text", "image", "image_url", "video", "video_url", "url", "path", "base64", "source"),
    *("data", "from", "value", "fps", "nframes", "media_type", "detail", "input_image", "\ud800", "", "x" * 300),
)
STRINGS = (
    *("user", "assistant", "system", "developer", "tool", "text", "image", "image_url", "video", "input_text", "hello"),
    *("", " ", "\0", "\ud800", "file:///etc/passwd", "file://[", "data:image/png;base64,AAAA", "https://x/a.png"),
    *("http://[::1", "~nobody/a.png", "a" * 5000, "a.png\n", "/", "..", "//", "\\\\host\\a.png"),
)
LEAVES = (
    *(None, True, 0, -1, 10**400, 1.5, float("nan"), b"", b"\x89PNG", object(), {1, 2}, range(3), len, Path("a.png")),
    *(np.zeros((2, 2), np.uint8), np.zeros((2, 2, 2, 3), np.uint8), np.array("text"), np.zeros(0), np.float64(1.5)),
    *(PIL.Image.new("RGB", (2, 2)), PIL.Image.new("P", (1, 1)), vila.Image(b"no picture"), vila.Video([]), Path("\0")),
)


def any_value(random_: random.Random, depth: int = 0) -> Any:
    kind = random_.random()
    if depth < 4 and kind < 0.35:
        return {random_.choice(KEYS): any_value(random_, depth + 1) for _ in range(random_.randint(0, 4))}
    if depth < 4 and kind < 0.6:
        make = random_.choice((list, tuple))
        return make(any_value(random_, depth + 1) for _ in range(random_.randint(0, 3)))
    return random_.choice(STRINGS) if kind < 0.85 else random_.choice(LEAVES)


def message(random_: random.Random) -> Any:
    """A value that is nearly a message, which random dicts rarely are."""
    part = {"type": random_.choice(STRINGS), random_.choice(KEYS): any_value(random_, 3)}
    role: Any = random_.choice(("user", "assistant", "system", any_value(random_, 3)))
    return {"role": role, "content": random_.choice((any_value(random_, 2), [part], [part, any_value(random_, 3)]))}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::vila_core.errors.VilaWarning")
@pytest.mark.parametrize("seed", range(8))
def test_any_prompt_is_a_conversation_or_an_error(seed: int) -> None:
    random_ = random.Random(seed)
    understood, messages_of_errors = 0, list[str]()
    for number in range(4000):
        prompt = any_value(random_) if number % 2 else [message(random_) for _ in range(random_.randint(1, 3))]
        try:
            messages = as_messages(prompt)
        except VilaError as error:
            messages_of_errors.append(str(error))
        else:
            understood += 1
            for part in (part for one in messages for part in one.content):
                assert isinstance(part, str | vila.Image | vila.Video)
                if not isinstance(part, str):
                    assert "<" in part._repr_html_()
                    assert repr(part)
    assert understood > 50
    assert all("\n" not in text and len(text) < 1100 for text in messages_of_errors)
