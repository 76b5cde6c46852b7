"""Prompts: media tokens in text, and conversations that a model cannot answer."""

import time
from collections.abc import Sequence

import numpy as np
import pytest

import vila_core as vila
from vila_core.chat import MEDIA_TOKENS
from vila_core.errors import PromptError

SCENE = vila.Image(np.full((60, 60, 3), (200, 30, 30), dtype=np.uint8))


@pytest.fixture(scope="module")
def model() -> vila.Vila:
    return vila.load("vila-tiny")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a <image> b"], "a  b"),
        (["<ima<image>ge>What is it?"], "What is it?"),
        (["<ima<ima<image>ge>ge> What?"], "What?"),
        (["<vila/vi<image>deo>What?<image>"], "What?"),
        (["<ima<vila/video>ge>What?"], "What?"),
        (["<ima", "ge>What?"], "What?"),
        (["<im", "a", "g", "e", ">", "What?"], "What?"),
        (["<ima<ima", "ge>ge>", "What?"], "What?"),
        (["<vila/vi", "<image>", "deo>What?"], "What?"),
        (["a <image> ", "b"], "ab"),  # each text is stripped by itself, as in the reference
        (["<imag e>What?<image"], "<imag e>What?<image"),
        (["<IMAGE>What? <|im_end|>"], "<IMAGE>What? <|im_end|>"),  # other special tokens stay, as in the reference
    ],
)
def test_media_tokens_in_text_are_removed_until_none_is_left(
    model: vila.Vila, texts: Sequence[str], expected: str
) -> None:
    text_only = model.prepare(list(texts))
    assert f"<|im_start|>user\n{expected}<|im_end|>" in text_only.text
    assert not any(token in text_only.text for token in MEDIA_TOKENS.values())
    with_image = model.prepare([SCENE, *texts])
    assert with_image.input_ids.count(model.tokenizer.media_token_ids["image"]) == 1
    assert with_image.text.count("<image>") == 1
    model.count_tokens(with_image)


def test_media_tokens_are_removed_around_media(model: vila.Vila) -> None:
    prepared = model.prepare(["<ima", SCENE, "ge> What is <image>it?"])
    assert "<ima<image>ge> What is it?" in prepared.text
    assert prepared.input_ids.count(model.tokenizer.media_token_ids["image"]) == 1


def test_deeply_nested_media_tokens_take_linear_time(model: vila.Vila) -> None:
    started = time.monotonic()
    prepared = model.prepare("<ima" * 100_000 + "ge>" * 100_000 + "What?")
    assert "<|im_start|>user\nWhat?<|im_end|>" in prepared.text
    assert time.monotonic() - started < 60


def test_a_text_of_media_tokens_alone_is_empty(model: vila.Vila) -> None:
    with pytest.raises(PromptError, match=r"empty without the media tokens.*Image\(source\)"):
        model.generate("<image>")


USER, ASSISTANT, SYSTEM = (vila.Message(role, f"text of the {role}") for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, USER], "Message 2 is from the user, but user and assistant take turns.*Join"),
        ([SYSTEM, USER, USER], "Message 3 is from the user"),
        ([ASSISTANT, USER], "Message 1 is from the assistant"),
        ([SYSTEM, ASSISTANT], "Message 2 is from the assistant"),
        ([USER, ASSISTANT, ASSISTANT], "Message 3 is from the assistant"),
        ([USER, SYSTEM], "Message 2 is from the system"),
        ([USER, ASSISTANT], "ends with a message from the assistant; it must end with one from the user"),
        ([SYSTEM], "ends with a message from the system"),
    ],
)
def test_conversations_that_cannot_be_answered(
    model: vila.Vila, messages: Sequence[vila.Message], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        model.chat(messages)


@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], [USER, ASSISTANT, USER], [SYSTEM, USER, ASSISTANT, USER]])
def test_conversations_that_can_be_answered(model: vila.Vila, messages: Sequence[vila.Message]) -> None:
    assert "text of the user" in model.prepare(messages).text
