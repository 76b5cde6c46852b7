"""The page's texts and its conversations, without a server."""

import string
from dataclasses import fields
from typing import Any

import pytest

from vila_serve.page.history import in_turns, one_by_one, paths_of, text_of, up_to_question, user_message
from vila_serve.page.texts import CHINESE, ENGLISH, LANGUAGES, Texts, language_of


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("field", [field.name for field in fields(Texts)])
def test_both_languages_say_the_same(field: str):
    english, chinese = getattr(ENGLISH, field), getattr(CHINESE, field)
    assert english
    assert chinese
    assert placeholders(english) == placeholders(chinese)
    if field not in ("top_p", "code", "schema"):
        assert any("\u4e00" <= character <= "\u9fff" for character in chinese)


@pytest.mark.parametrize(
    ("accept", "code"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("zh", "zh"),
        ("ZH-Hant", "zh"),
        ("en-US,zh;q=0.9", "en"),
        ("de-DE,zh;q=0.5", "zh"),
        ("de,fr;q=0.5", "en"),
        ("", "en"),
        (None, "en"),
        (";;,,q=1", "en"),
        ("zhx", "en"),
        ("x" * 100_000, "en"),
        ("en\r\nx: y", "en"),
    ],
)
def test_the_language_that_a_browser_prefers(accept: str | None, code: str):
    assert language_of(accept) == code
    assert code in LANGUAGES


def text(role: str, value: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": value}]}


def test_a_question_with_files_is_one_turn_however_gradio_splits_it():
    question = user_message("What is it?", ["/tmp/a.png", "/tmp/b.mp4"])
    shown = one_by_one([question, text("assistant", "a cat")])
    assert [len(message["content"]) for message in shown] == [1, 1, 1, 1]
    assert in_turns(shown) == [question, text("assistant", "a cat")]
    assert paths_of(question) == ["/tmp/a.png", "/tmp/b.mp4"]
    assert [part["file"]["mime_type"] for part in question["content"][:2]] == ["image/png", "video/mp4"]
    assert text_of(question) == "What is it?"


def test_indented_text_stays_indented():
    code = "def f():\n    return 1"
    assert text_of(in_turns(one_by_one([user_message(code, [])]))[0]) == code


@pytest.mark.parametrize("index", [0, 1, 2, 5, 100])
def test_an_answer_is_taken_back_to_its_question(index: int):
    first = one_by_one([user_message("One?", ["/tmp/a.png"]), text("assistant", "1")])
    history = [*first, text("user", "Two?"), text("assistant", "2")]
    kept = in_turns(up_to_question(history, index))
    assert text_of(kept[-1]) == ("One?" if index <= 2 else "Two?")
    assert kept[-1]["role"] == "user"
    assert paths_of(kept[0]) == ["/tmp/a.png"]


def test_an_empty_history_has_no_question():
    assert up_to_question([], 3) == []
    assert up_to_question([text("assistant", "hm")], 0) == []


def test_messages_with_a_plain_text_or_another_role_are_read():
    assert in_turns([{"role": "user", "content": "Hi"}, {"role": "system", "content": "there"}]) == [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]}
    ]
