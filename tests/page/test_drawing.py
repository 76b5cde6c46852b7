"""The chat page of a model that draws: pictures of prompts, and pictures in answers."""

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from tests.page.conftest import API, PageClient, apply, serving
from tests.page.test_browser import CHROMEDRIVER, CHROMIUM, WIDE, Browser, shoot, wait
from tests.running_server import RunningServer

import vila_core
from vila_serve.affinity import affinity_key
from vila_serve.page.question import Choices, Question
from vila_serve.page.texts import CHINESE, ENGLISH

PROMPT = "a red circle"
DRAW: dict[str, Any] = {"mode": "draw", "pictures": 2, "guidance": 3, "negative_prompt": None}


@pytest.fixture(scope="module")
def painter(tiny_u: Path) -> vila_core.Vila:
    return vila_core.load(tiny_u, device="cpu")


@pytest.fixture(scope="module")
def drawing(painter: vila_core.Vila) -> Iterator[RunningServer]:
    with serving(painter, default_max_tokens=4) as started:
        yield started


@pytest.fixture
def easel(drawing: RunningServer) -> Iterator[PageClient]:
    client = PageClient(drawing.url)
    yield client
    client.http.close()


def shown(page: PageClient) -> list[list[Any]]:
    """Return what each message of the running function shows: conversation, box, status, what the model saw."""
    states, state = list[list[Any]](), list[Any]()
    for event in page.events():
        data = event.get("output", {}).get("data") or []
        if event["msg"] == "process_generating" and state:
            data = [apply(old, change) for old, change in zip(state, data, strict=True)]
        if event["msg"] in ("process_generating", "process_completed") and data:
            assert event["success"], event
            state = data
            states.append(data)
    return states


def last_conversation(states: list[list[Any]]) -> list[dict[str, Any]]:
    return [state[0] for state in states if isinstance(state[0], list)][-1]


def statuses(states: list[list[Any]]) -> list[str]:
    return [state[2] for state in states if isinstance(state[2], str)]


def files(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    parts = [part for message in conversation if message["role"] == "assistant" for part in message["content"]]
    return [part["file"] for part in parts if part["type"] == "file"]


def fetched(page: PageClient, file: dict[str, Any]) -> bytes:
    response = page.http.get(f"{API}/file={file['path']}")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    return PIL.Image.open(io.BytesIO(response.content)).convert("RGB").tobytes()


def test_a_model_that_does_not_draw_has_no_switch(page: PageClient, easel: PageClient):
    def switches(client: PageClient) -> int:
        return sum(one["props"].get("elem_id") == "mode" for one in client.config()["components"])

    assert (switches(page), switches(easel)) == (0, 1)


def test_pictures_are_those_of_the_library(easel: PageClient, painter: vila_core.Vila):
    assert easel.ask(PROMPT, seed="3", **DRAW).status_code == 200
    states = shown(easel)
    drawn = [fetched(easel, file) for file in files(last_conversation(states))]
    assert drawn == [image.tobytes() for image in painter.generate_image(PROMPT, n=2, seed=3)]
    lines = statuses(states)
    assert any("data:image/png;base64," in line and "Drawing" in line for line in lines), "there are previews"
    assert "32 tokens of pictures · seed 3" in lines[-1]
    assert "<img" not in lines[-1]


def test_settings_have_an_effect(easel: PageClient, painter: vila_core.Vila):
    easel.ask(PROMPT, seed="3", **{**DRAW, "pictures": 1, "guidance": 1, "negative_prompt": "blurred"})
    (file,) = files(last_conversation(shown(easel)))
    assert fetched(easel, file) == painter.generate_image(PROMPT, seed=3, guidance=1)[0].tobytes()


def test_a_drawn_picture_can_be_asked_about(easel: PageClient):
    easel.ask(PROMPT, **{**DRAW, "pictures": 1})
    history = last_conversation(shown(easel))
    question = {"role": "user", "content": [{"type": "text", "text": "Which color is it?"}]}
    values = [None, 4, 0, 1, None, 8, None, "ask", 1, 3, None]
    easel.session += "2"
    assert easel.join(easel.answering_function(), [[*history, question], "en", *values]).status_code == 200
    assert "(16 of media" in statuses(shown(easel))[-1]


def test_a_picture_in_an_answer(easel: PageClient, painter: vila_core.Vila, monkeypatch: pytest.MonkeyPatch):
    """The model draws whenever it may."""
    start, logits = painter.drawn_kinds["image"], painter.network.llm.logits

    def steered(hidden: Any) -> Any:
        scores = logits(hidden)
        scores[..., start] = scores.amax() + 50
        return scores

    monkeypatch.setattr(painter.network.llm, "logits", steered)
    easel.ask("Draw a circle.", seed="4", max_tokens=3, **{**DRAW, "mode": "ask"})
    drawn = [fetched(easel, file) for file in files(last_conversation(shown(easel)))]
    own: Any = painter.complete("Draw a circle.", max_new_tokens=3, seed=4).parts
    assert drawn == [part.tobytes() for part in own]
    assert len(drawn) == 2


@pytest.mark.parametrize(
    ("text", "choices", "message"),
    [
        ("<image>", {}, "Say what to draw"),
        (PROMPT, {"seed": "one"}, "must be a whole number"),
        ("word " * 2000, {}, "Shorten the prompt"),
    ],
)
def test_what_cannot_be_drawn_goes_back_into_the_box(
    easel: PageClient, text: str, choices: dict[str, Any], message: str
):
    easel.ask(text, **{**DRAW, **choices})
    states = shown(easel)
    assert message in statuses(states)[-1]
    assert states[-1][1]["value"]["text"] == text


def test_pictures_are_drawn_from_text_alone(easel: PageClient):
    (path,) = easel.upload(("a.png", (Path(__file__).parents[2] / "examples/media/scene.png").read_bytes())).json()
    easel.ask(PROMPT, [path], **DRAW)
    assert ENGLISH.text_only in statuses(shown(easel))[-1]


def test_drawings_are_routed_by_their_prompt():
    turns = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    question = Question(turns, Choices(None, 4, 0, 1, None, 8, None, mode="draw"), "en")
    assert question.affinity == affinity_key({"prompt": PROMPT, "seed": 5})
    assert question.affinity != Question(turns, Choices(None, 4, 0, 1, None, 8, None), "en").affinity


@pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs Chromium and chromedriver")
def test_drawing_in_a_browser(drawing: RunningServer):
    page = Browser(drawing.url, WIDE, dark=False)
    try:
        page.all("#mode label")[1].click()
        wait(lambda: page.one("#box textarea").get_attribute("placeholder") == ENGLISH.draw)
        page.ask(PROMPT)
        wait(lambda: "tokens of pictures" in page.status)
        wait(lambda: page.one("#chat .bot.message img").size["width"] >= 32)
        assert not any(button.is_displayed() for button in page.all("#chat button[aria-label=Share]"))
        assert page.overflow() <= 0
        assert page.complaints() == []
        page.all("#language label")[1].click()
        wait(lambda: page.one("#box textarea").get_attribute("placeholder") == CHINESE.draw)
        assert [label.text for label in page.all("#mode label")] == [CHINESE.mode_ask, CHINESE.mode_draw]
    finally:
        page.driver.quit()


@pytest.mark.skipif("VILA_SCREENSHOTS" not in os.environ, reason="draws the pictures of the docs")
def test_screenshots_of_drawing():
    with serving(vila_core.load("vila-tiny-u", device="cpu")) as server:
        page = Browser(server.url, WIDE, dark=False)
        try:
            page.all("#mode label")[1].click()
            wait(lambda: page.one("#box textarea").get_attribute("placeholder") == ENGLISH.draw)
            page.ask("A purple triangle (top), a black cross (center), an orange star (bottom right).")
            wait(lambda: "tokens of pictures" in page.status)
            wait(lambda: page.one("#chat .bot.message img").size["width"] >= 32)
            time.sleep(1)
            shoot(page, "chat-page-drawing")
        finally:
            page.driver.quit()
