"""The official `openai` package against a server whose model draws: pictures of prompts, and pictures in chats."""

import asyncio
import base64
import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import PIL.Image
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openai.types import ImageGenCompletedEvent
from schemathesis.checks import not_a_server_error
from tests.running_server import RunningServer, running, wait_until
from tests.serve.test_queue import is_idle

import vila_core
from vila_core.engine.answer import Piece
from vila_core.media import Video
from vila_serve.answering import Answering, Picture
from vila_serve.answering.parts import AnswerParts
from vila_serve.answering.process import engine_process
from vila_serve.api.app import create_app
from vila_serve.contract.checks import pictures_are_drawn, pictures_out_of_range_are_refused
from vila_serve.contract.run import run_contract
from vila_serve.loading import loading_task
from vila_serve.settings import ServeSettings

PATH = "/v1/images/generations"
PROMPT = "a red circle"
POSITIONS = 16
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def painter(tiny_u: Path) -> vila_core.Vila:
    return vila_core.load(tiny_u, device="cpu")


@pytest.fixture(scope="module")
def drawing(painter: vila_core.Vila) -> Iterator[RunningServer]:
    with running(create_app(painter, ServeSettings(page=False, max_pictures=8))) as started:
        yield started


@pytest.fixture(scope="module")
def artist(drawing: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{drawing.url}/v1", api_key="any", max_retries=0, timeout=240) as made:
        yield made


@pytest.fixture
def draw_with(painter: vila_core.Vila) -> Iterator[Callable[..., RunningServer]]:
    """Start another server of the same model with these settings."""
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(running(create_app(painter, ServeSettings(page=False, **given))))


def opened(encoded: str | None) -> PIL.Image.Image:
    assert encoded is not None
    return PIL.Image.open(io.BytesIO(base64.b64decode(encoded)))


def pixels(images: Any) -> list[bytes]:
    return [image.convert("RGB").tobytes() for image in images]


def drawn(artist: openai.OpenAI, n: int = 1, seed: int = 3, **fields: Any) -> list[PIL.Image.Image]:
    answer = artist.images.generate(model="tiny-u", prompt=PROMPT, n=n, extra_body={"seed": seed, **fields})
    return [opened(image.b64_json) for image in answer.data or ()]


def start_token(server: RunningServer, kind: str = "image") -> str:
    return str(server.app.state.service.model.pictures[kind].start_token)


def test_pictures_are_those_of_the_library(artist: openai.OpenAI, painter: vila_core.Vila):
    own = painter.generate_image(PROMPT, n=3, seed=3)
    answer = artist.images.generate(model="tiny-u", prompt=PROMPT, n=3, size="64x64", extra_body={"seed": 3})
    assert answer.data is not None
    assert pixels(opened(image.b64_json) for image in answer.data) == pixels(own)
    assert (answer.size, answer.output_format, answer.background) == ("64x64", "png", "opaque")
    usage = answer.usage
    assert usage is not None
    assert usage.output_tokens == 3 * POSITIONS
    assert usage.input_tokens == usage.input_tokens_details.text_tokens > 10
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_a_picture_does_not_depend_on_how_many_are_drawn(artist: openai.OpenAI):
    four = pixels(drawn(artist, n=4))
    assert pixels(drawn(artist)) == four[:1]
    assert len(set(four)) == 4


def test_pictures_without_a_seed_differ(artist: openai.OpenAI):
    first, second = (artist.images.generate(prompt=PROMPT).data for _ in range(2))
    assert first is not None
    assert first != second


@pytest.mark.parametrize(
    "changes",
    [{"guidance": 1.0}, {"negative_prompt": "blurred"}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.1}],
    ids=str,
)
def test_every_setting_has_the_effect_of_the_library(
    artist: openai.OpenAI, painter: vila_core.Vila, changes: dict[str, Any]
):
    changed = pixels(drawn(artist, n=2, **changes))
    assert changed == pixels(painter.generate_image(PROMPT, n=2, seed=3, **changes))
    assert changed != pixels(drawn(artist, n=2))


def test_async_clients_draw_at_the_same_time(drawing: RunningServer, painter: vila_core.Vila):
    async def draw_all() -> list[list[bytes]]:
        async with openai.AsyncOpenAI(base_url=f"{drawing.url}/v1", api_key="any", max_retries=0) as client:

            async def draw(seed: int) -> list[bytes]:
                answer = await client.images.generate(prompt=PROMPT, n=2, extra_body={"seed": seed})
                return pixels(opened(image.b64_json) for image in answer.data or ())

            return await asyncio.gather(*map(draw, range(4)))

    assert asyncio.run(draw_all()) == [pixels(painter.generate_image(PROMPT, n=2, seed=seed)) for seed in range(4)]


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_output_formats(artist: openai.OpenAI, name: Any):
    answer = artist.images.generate(prompt=PROMPT, output_format=name)
    assert answer.data is not None
    image = opened(answer.data[0].b64_json)
    assert (image.format, image.size) == (name.upper(), (64, 64))
    assert answer.output_format == name


def test_compressed_files_are_smaller(artist: openai.OpenAI):
    def size(compression: int) -> int:
        answer = artist.images.generate(
            prompt=PROMPT, output_format="jpeg", output_compression=compression, extra_body={"seed": 1}
        )
        assert answer.data is not None
        return len(answer.data[0].b64_json or "")

    assert size(20) < size(100)


def test_fields_without_effect(artist: openai.OpenAI):
    answer = artist.images.generate(
        prompt=PROMPT, size="auto", quality="high", background="opaque", moderation="low", user="me",
        response_format="b64_json", extra_body={"seed": 3, "style": None, "safety_identifier": "one"},
    )  # fmt: skip
    assert answer.data is not None
    assert pixels([opened(answer.data[0].b64_json)]) == pixels(drawn(artist))


def test_a_stream_has_previews_and_the_picture(artist: openai.OpenAI):
    stream = artist.images.generate(
        prompt=PROMPT, stream=True, partial_images=3, output_format="png", extra_body={"seed": 3}
    )
    *previews, last = stream
    assert [(event.type, getattr(event, "partial_image_index", None)) for event in previews] == [
        ("image_generation.partial_image", index) for index in range(3)
    ]
    assert isinstance(last, ImageGenCompletedEvent)
    assert (last.size, last.output_format, last.usage.output_tokens) == ("64x64", "png", POSITIONS)
    assert pixels([opened(last.b64_json)]) == pixels(drawn(artist))
    shown = [opened(event.b64_json) for event in previews]
    assert len({image.tobytes() for image in shown}) == 3
    assert {image.size for image in shown} == {(64, 64)}


def test_a_stream_without_previews_has_one_event_for_each_picture(artist: openai.OpenAI):
    events: list[Any] = list(artist.images.generate(prompt=PROMPT, stream=True, n=3, extra_body={"seed": 3}))
    assert {event.type for event in events} == {"image_generation.completed"}
    by_index = sorted(events, key=lambda event: event.image_index)
    assert pixels(opened(event.b64_json) for event in by_index) == pixels(drawn(artist, n=3))


def test_a_picture_that_fails_ends_the_stream_with_an_error(
    artist: openai.OpenAI, painter: vila_core.Vila, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(painter, "decode_picture", fail)
        with pytest.raises(openai.InternalServerError, match="The server failed to answer"):
            artist.images.generate(prompt=PROMPT, n=2)
        with pytest.raises(openai.APIError, match="The server failed to answer"):
            list(artist.images.generate(prompt=PROMPT, stream=True))
    assert drawn(artist)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": ""}, "prompt", "1 or more characters"),
        ({"prompt": " \n"}, "prompt", "Say what to draw"),
        ({"prompt": "<image>"}, "prompt", "Say what to draw"),
        ({"prompt": "word " * 6_000}, "prompt", "takes at most 1,024 together"),
        ({"prompt": "x" * 32_001}, "prompt", "32000 or fewer characters"),
        ({"negative_prompt": "word " * 6_000}, "prompt", "the context holds 1,024"),
        ({"n": 0}, "n", "1 or more"),
        ({"n": 11}, "n", "10 or less"),
        ({"n": 9}, "n", "at most 8 pictures at a time"),
        ({"size": "1024x1024"}, "size", "draws pictures of 64x64 pixels only"),
        ({"response_format": "url"}, "response_format", "keeps no files"),
        ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"output_compression": 50}, "output_compression", "PNG loses nothing"),
        ({"background": "transparent"}, "background", "opaque pictures only"),
        ({"style": "vivid"}, "style", "Describe the style in the prompt"),
        ({"partial_images": 2}, "partial_images", "needs 'stream'"),
        ({"partial_images": 4, "stream": True}, "partial_images", "3 or less"),
        ({"guidance": -1}, "guidance", "0 or more"),
        ({"temperature": "hot"}, "temperature", "must be"),
        ({"cfg_scale": 3}, "cfg_scale", "Unknown field"),
        ({"frame_count": 9}, "frame_count", "Unknown field"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused(drawing: RunningServer, fields: dict[str, Any], param: str, message: str):
    response = httpx2.post(f"{drawing.url}{PATH}", json={"prompt": PROMPT, **fields}, timeout=60)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error
    assert message in error["message"]


def test_an_unknown_model(artist: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="'dall-e-3' does not exist"):
        artist.images.generate(model="dall-e-3", prompt=PROMPT)


def test_a_model_that_does_not_draw(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match=r"it has no generation head\. VILA-U models") as refused:
        client.images.generate(model="vila-tiny", prompt=PROMPT)
    assert (refused.value.code, refused.value.param) == ("model_does_not_draw", "model")


def test_models_say_what_they_draw(artist: openai.OpenAI, client: openai.OpenAI):
    def kinds(asked: openai.OpenAI) -> Any:
        return asked.models.list().data[0].model_dump()["output_modalities"]

    assert (kinds(artist), kinds(client)) == (["text", "image", "video"], ["text"])


def test_the_key_is_needed(draw_with: Callable[..., RunningServer]):
    url = f"{draw_with(api_key='secret').url}{PATH}"
    assert httpx2.post(url, json={"prompt": PROMPT}).status_code == 401
    headers = {"authorization": "Bearer secret"}
    assert httpx2.post(url, json={"prompt": PROMPT}, headers=headers, timeout=60).status_code == 200


def test_more_pictures_than_the_queue_holds(tiny_u: Path):
    engine = vila_core.EngineConfig(max_batch=2, max_queue=4)
    with running(create_app(vila_core.load(tiny_u, device="cpu", engine=engine), ServeSettings(page=False))) as one:
        response = httpx2.post(f"{one.url}{PATH}", json={"prompt": PROMPT, "n": 10}, timeout=60)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert response.headers["retry-after"]
        wait_until(lambda: is_idle(one))
        assert httpx2.post(f"{one.url}{PATH}", json={"prompt": PROMPT, "n": 3}, timeout=60).status_code == 200


def test_guidance_without_room_for_two_rows(tiny_u: Path):
    engine = vila_core.EngineConfig(max_batch=1)
    with running(create_app(vila_core.load(tiny_u, device="cpu", engine=engine), ServeSettings(page=False))) as one:
        response = httpx2.post(f"{one.url}{PATH}", json={"prompt": PROMPT}, timeout=60)
        assert response.status_code == 400
        assert "Set guidance=1" in response.json()["error"]["message"]
        assert httpx2.post(f"{one.url}{PATH}", json={"prompt": PROMPT, "guidance": 1}, timeout=60).status_code == 200


def test_a_picture_ends_when_its_client_leaves(
    drawing: RunningServer, painter: vila_core.Vila, monkeypatch: pytest.MonkeyPatch
):
    """The pictures would be complete at once; here they wait until the client has left."""
    has_left, step = threading.Event(), painter.engine.step
    side = drawing.app.state.service.answering.link.side

    def slow_step() -> bool:
        if side._answers:
            assert has_left.wait(60)
        return step()

    monkeypatch.setattr(painter.engine, "step", slow_step)
    address, body = urlsplit(drawing.url), json.dumps({"prompt": PROMPT, "n": 4}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: bool(side._answers))
    wait_until(lambda: all(answer.is_unwanted for answer in side._answers.values()))
    has_left.set()
    wait_until(lambda: is_idle(drawing))


def test_drawing_is_counted(drawing: RunningServer, artist: openai.OpenAI):
    def counted() -> dict[str, float]:
        lines = httpx2.get(f"{drawing.url}/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] != "#"}

    before = counted()
    drawn(artist, n=2)
    after = counted()

    def gained(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert gained("vila_picture_tokens_total") == 2 * POSITIONS
    assert gained('vila_answers_total{reason="stop"}') == 2
    assert gained("vila_time_to_first_token_seconds_count") == 2
    assert gained(f'vila_requests_total{{path="{PATH}",status="200"}}') == 1


def chat(server: RunningServer, **fields: Any) -> dict[str, Any]:
    """Return a request whose answer is a picture: the start token is the likeliest, and the answer ends after it."""
    return {
        "model": "tiny-u",
        "messages": [{"role": "user", "content": "Draw a circle."}],
        "logit_bias": {start_token(server): 100},
        "max_tokens": 2,
        "seed": 4,
        **fields,
    }


def of_uri(image: dict[str, Any]) -> PIL.Image.Image:
    assert image["type"] == "image_url"
    head, _, encoded = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return opened(encoded)


def test_an_answer_with_a_picture(artist: openai.OpenAI, drawing: RunningServer, painter: vila_core.Vila):
    answer = artist.chat.completions.create(**chat(drawing))
    biased = {int(start_token(drawing)): 100.0}
    own = painter.complete("Draw a circle.", max_new_tokens=2, seed=4, temperature=0.2, top_p=0.9, logit_bias=biased)
    message = answer.choices[0].message.model_dump()
    assert message["content"] == own.text == ""
    assert pixels(map(of_uri, message["images"])) == pixels(own.parts)
    usage = answer.usage
    assert usage is not None
    assert usage.completion_tokens == 2 + POSITIONS
    assert usage.model_dump()["completion_tokens_details"]["image_tokens"] == POSITIONS
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_several_answers_have_pictures_of_their_own(artist: openai.OpenAI, drawing: RunningServer):
    answer = artist.chat.completions.create(**chat(drawing, n=2))
    first, second = (choice.message.model_dump()["images"] for choice in answer.choices)
    assert pixels(map(of_uri, first)) != pixels(map(of_uri, second))


def test_a_stream_with_pictures(artist: openai.OpenAI, drawing: RunningServer):
    chunks = list(artist.chat.completions.create(**chat(drawing, max_tokens=3), stream=True))
    images = [image for chunk in chunks for image in chunk.choices[0].delta.model_dump().get("images") or ()]
    whole = artist.chat.completions.create(**chat(drawing, max_tokens=3)).choices[0].message.model_dump()
    assert [image["index"] for image in images] == [0, 1]
    assert images == whole["images"]


def test_a_video_in_an_answer_is_an_animation(artist: openai.OpenAI, drawing: RunningServer, painter: vila_core.Vila):
    token = start_token(drawing, "video")
    answer = artist.chat.completions.create(**chat(drawing, logit_bias={token: 100}))
    (image,) = answer.choices[0].message.model_dump()["images"]
    head, _, encoded = image["image_url"]["url"].partition(",")
    assert head == "data:image/webp;base64"
    shown: Any = opened(encoded)
    own = painter.complete("Draw a circle.", max_new_tokens=2, seed=4, temperature=0.2, logit_bias={int(token): 100.0})
    (video,) = own.parts
    assert isinstance(video, Video)
    assert (shown.n_frames, shown.size) == (len(video.load(8, 0).frames), (64, 64))


def test_pictures_of_earlier_answers_are_read(artist: openai.OpenAI, drawing: RunningServer):
    question = {"role": "user", "content": "Draw a circle."}
    answer = artist.chat.completions.create(**chat(drawing)).choices[0].message
    part = {"type": "image_url", "image_url": answer.model_dump()["images"][0]["image_url"]}
    follow_up = {"role": "user", "content": "Which color is it?"}
    answers = [
        artist.chat.completions.create(
            model="tiny-u", messages=[question, earlier, follow_up], max_tokens=6, temperature=0
        )
        for earlier in (answer, {"role": "assistant", "content": [part]})  # pyright: ignore[reportArgumentType]
    ]
    usages = [one.usage for one in answers]
    assert answers[0].choices[0].message == answers[1].choices[0].message
    for usage in usages:
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.image_tokens == POSITIONS


def test_a_broken_picture_of_an_earlier_answer(artist: openai.OpenAI):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}, "index": 0}
    messages: list[Any] = [
        {"role": "user", "content": "Draw."},
        {"role": "assistant", "content": "", "images": [image]},
        {"role": "user", "content": "Again."},
    ]
    with pytest.raises(openai.BadRequestError) as refused:
        artist.chat.completions.create(model="tiny-u", messages=messages)
    assert (refused.value.param, refused.value.code) == ("messages[1].images[0]", "invalid_media")


def test_modalities(artist: openai.OpenAI, client: openai.OpenAI, drawing: RunningServer):
    """With text alone the start token is impossible; both is the default."""
    text = artist.chat.completions.create(**chat(drawing, modalities=["text"], max_tokens=4)).choices[0].message
    assert "images" not in text.model_dump()
    both = artist.chat.completions.create(**chat(drawing, modalities=["image", "text"])).choices[0].message
    assert len(both.model_dump()["images"]) == 1
    with pytest.raises(openai.BadRequestError, match="Send both"):
        artist.chat.completions.create(**chat(drawing, modalities=["image"]))
    body: Any = {"model": "vila-tiny", "messages": [{"role": "user", "content": "Draw."}]}
    with pytest.raises(openai.BadRequestError, match="it has no generation head"):
        client.chat.completions.create(**body, modalities=["text", "image"])


DRAWING_TOOL: Any = {"type": "image_generation"}


@pytest.fixture
def eager(painter: vila_core.Vila, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model draws whenever it may."""
    start, logits = painter.drawn_kinds["image"], painter.network.llm.logits

    def steered(hidden: Any) -> Any:
        scores = logits(hidden)
        scores[..., start] = scores.amax() + 50
        return scores

    monkeypatch.setattr(painter.network.llm, "logits", steered)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer has a text, two previews and a picture, and a text."""

    def push(self: AnswerParts, pieces: Sequence[Piece]) -> list[str | Picture]:
        if self.picture_tokens:
            return []
        self.picture_tokens = POSITIONS
        colors = {0.3: "red", 0.6: "green", 1.0: "blue"}
        pictures = [Picture("image", (PIL.Image.new("RGB", (64, 64), colors[done]),), done) for done in colors]
        return ["Look: ", *pictures, " Nice."]

    monkeypatch.setattr(AnswerParts, "push", push)


def respond(artist: openai.OpenAI, **fields: Any) -> Any:
    return artist.responses.create(**{"model": "tiny-u", "input": PROMPT, **fields})


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("fields", [{}, {"tools": [DRAWING_TOOL], "tool_choice": "none"}], ids=["no tool", "none"])
def test_responses_hold_texts_only_without_the_tool(artist: openai.OpenAI, fields: Any):
    """A model that would draw next writes instead."""
    answer = respond(artist, max_output_tokens=4, **fields)
    assert [item.type for item in answer.output] == ["message"]
    assert answer.usage.output_tokens <= 4


@pytest.mark.usefixtures("eager")
def test_a_model_that_begins_a_picture_in_a_response(artist: openai.OpenAI):
    answer = respond(artist, tools=[DRAWING_TOOL], max_output_tokens=3)
    assert [(item.type, item.status) for item in answer.output] == [("image_generation_call", "completed")] * 2
    assert [opened(item.result).size for item in answer.output] == [(64, 64)] * 2
    assert answer.usage.output_tokens == 3 + 2 * POSITIONS
    assert (answer.status, answer.tools[0].type, answer.tool_choice) == ("incomplete", "image_generation", "auto")


@pytest.mark.usefixtures("scripted")
def test_a_response_with_a_picture_between_texts(artist: openai.OpenAI):
    answer = respond(artist, tools=[DRAWING_TOOL], max_output_tokens=2)
    before, picture, after = answer.output
    assert (before.content[0].text.strip(), after.content[0].text.strip()) == ("Look:", "Nice.")
    assert opened(picture.result).getpixel((0, 0)) == (0, 0, 255)
    assert (before.status, picture.status, after.status) == ("completed", "completed", "incomplete")


@pytest.mark.usefixtures("scripted")
def test_the_events_of_a_response_with_a_picture(artist: openai.OpenAI):
    tool = {**DRAWING_TOOL, "partial_images": 2, "output_format": "webp", "size": "64x64"}
    events = list(respond(artist, tools=[tool], max_output_tokens=2, stream=True))
    text = ["content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
    call = [f"image_generation_call.{name}" for name in ("in_progress", "generating", "partial_image", "partial_image")]
    items = [text, [*call, "image_generation_call.completed"], text]
    of_items = [kind for kinds in items for kind in ("output_item.added", *kinds, "output_item.done")]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds == ["created", "in_progress", *of_items, "incomplete"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    previews = [event for event in events if event.type.endswith("partial_image")]
    assert [event.partial_image_index for event in previews] == [0, 1]
    assert {opened(event.partial_image_b64).format for event in previews} == {"WEBP"}
    picture = events[-1].response.output[1]
    assert {event.item_id for event in events if "image_generation_call" in event.type} == {picture.id}
    assert {event.output_index for event in events if "image_generation_call" in event.type} == {1}
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == events[-1].response.output
    assert (picture.output_format, picture.size, opened(picture.result).format) == ("webp", "64x64", "WEBP")


def test_a_response_that_has_to_be_a_picture(artist: openai.OpenAI, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vila_serve.answer_settings.choose_seed", lambda asked: 3)
    expected = artist.images.generate(prompt=PROMPT)
    for choice in (DRAWING_TOOL, "required"):
        answer = respond(artist, tools=[DRAWING_TOOL], tool_choice=choice)
        (picture,) = answer.output
        assert picture.result == expected.data[0].b64_json
        assert answer.status == "completed"
        assert expected.usage is not None
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (expected.usage.input_tokens, POSITIONS)
    stream = respond(artist, tools=[{**DRAWING_TOOL, "partial_images": 1}], tool_choice="required", stream=True)
    kinds = [event.type.rpartition(".")[2] for event in stream]
    call = ["added", "in_progress", "generating", "partial_image", "completed", "done"]
    assert kinds == ["created", "in_progress", *call, "completed"]


@pytest.mark.parametrize("how", [{"guidance": 1.0}, {"temperature": 0.0, "top_k": 2, "top_p": 0.0}])
def test_the_tool_says_how_to_draw_as_a_request_for_pictures_does(artist: openai.OpenAI, how: dict[str, Any]):
    how = {"seed": 5, "negative_prompt": "blurred", **how}
    expected = artist.images.generate(prompt=PROMPT, extra_body=how)
    assert expected.data[0].b64_json != artist.images.generate(prompt=PROMPT, extra_body={"seed": 5}).data[0].b64_json
    (picture,) = respond(artist, tools=[{**DRAWING_TOOL, **how}], tool_choice="required").output
    assert picture.result == expected.data[0].b64_json


def test_pictures_of_earlier_responses_are_read(artist: openai.OpenAI):
    question, follow_up = {"role": "user", "content": PROMPT}, {"role": "user", "content": "Which color is it?"}
    drawn = respond(artist, tools=[{**DRAWING_TOOL, "output_format": "jpeg"}], tool_choice="required").output
    earlier = [item.model_dump(exclude_none=True) for item in drawn]
    with_picture = respond(artist, input=[question, *earlier, follow_up], max_output_tokens=2)
    without = respond(artist, input=[question, {"role": "assistant", "content": ""}, follow_up], max_output_tokens=2)
    assert with_picture.usage.input_tokens > without.usage.input_tokens + POSITIONS - 2
    earlier[0]["result"] = "aGVsbG8="
    with pytest.raises(openai.BadRequestError) as refused:
        respond(artist, input=[question, *earlier, follow_up])
    assert (refused.value.param, refused.value.code) == ("input[1].content[0]", "invalid_media")


FORCED: dict[str, Any] = {"tools": [DRAWING_TOOL], "tool_choice": "required"}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "only tool in /v1/responses is 'image_generation'"),
        ({"tools": [DRAWING_TOOL, {"type": "function", "name": "f"}]}, "tools", "more than once|only tool"),
        ({"tools": [DRAWING_TOOL, DRAWING_TOOL]}, "tools", "more than once"),
        ({"tools": [{**DRAWING_TOOL, "size": "1x1"}]}, "tools[0].size", "64x64 pixels only"),
        ({"tools": [{**DRAWING_TOOL, "action": "edit"}]}, "tools[0].action", "'auto' or 'generate'"),
        ({"tools": [{**DRAWING_TOOL, "input_image_mask": {}}]}, "tools[0].input_image_mask", "Unknown field"),
        ({"tools": [{**DRAWING_TOOL, "background": "transparent"}]}, "tools[0].background", "opaque"),
        ({"tools": [{**DRAWING_TOOL, "partial_images": 1}]}, "tools[0].partial_images", "needs 'stream'"),
        ({"tools": [{**DRAWING_TOOL, "partial_images": 4}], "stream": True}, "tools[0].partial_images", "3 or less"),
        ({"tools": [{**DRAWING_TOOL, "guidance": -1}], "tool_choice": "required"}, "tools[0].guidance", "0 or more"),
        ({"tools": [{**DRAWING_TOOL, "seed": 0}]}, "tools[0].seed", "a picture that 'tool_choice' asks for"),
        ({"tool_choice": "required"}, "tool_choice", "has no"),
        ({"tool_choice": DRAWING_TOOL}, "tool_choice", "has no"),
        ({**FORCED, "instructions": "Be brief."}, "tool_choice", "one text"),
        ({**FORCED, "input": [{"role": "user", "content": "a"}] * 2}, "tool_choice", "one text"),
        ({**FORCED, "input": " "}, "input", "Say what to draw"),
        ({"input": [{"type": "image_generation_call", "result": None}]}, "input[0].result", "must be"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_pictures_that_responses_refuse(drawing: RunningServer, fields: dict[str, Any], param: str, message: str):
    body = {"model": "tiny-u", "input": PROMPT, **fields}
    response = httpx2.post(f"{drawing.url}/v1/responses", json=body, timeout=60)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert re.search(message, error["message"]), error


def test_a_model_that_does_not_draw_has_no_drawing_tool(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="it has no generation head") as refused:
        client.responses.create(model="vila-tiny", input="Draw.", tools=[DRAWING_TOOL])
    assert (refused.value.param, refused.value.code) == ("tools", "model_does_not_draw")


def test_the_contract(drawing: RunningServer, monkeypatch: pytest.MonkeyPatch):
    checks = (pictures_are_drawn, pictures_out_of_range_are_refused)
    monkeypatch.setattr("vila_serve.contract.run.CHECKS", checks)
    assert [one.problem for one in run_contract(f"{drawing.url}/v1")] == ["", ""]


def test_the_contract_of_a_server_that_draws_one_picture_only(drawing: RunningServer, monkeypatch: pytest.MonkeyPatch):
    async def draw_one(self: Answering, prompt: str, config: Any, n: int, **options: Any) -> Any:
        return await draw(self, prompt, config, 1, **options)

    draw = Answering.draw
    monkeypatch.setattr(Answering, "draw", draw_one)
    monkeypatch.setattr("vila_serve.contract.run.CHECKS", (pictures_are_drawn,))
    assert [one.problem for one in run_contract(f"{drawing.url}/v1")] == ["1 pictures instead of 2"]


def test_no_request_of_the_document_is_a_server_error(drawing: RunningServer):
    operation = schemathesis.openapi.from_url(f"{drawing.url}/openapi.json")[PATH]["POST"]
    statuses: set[int] = set()

    @settings(
        max_examples=25, deadline=None, derandomize=True, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        response = case.call(timeout=120)
        statuses.add(response.status_code)
        case.validate_response(response, checks=[not_a_server_error])

    check()
    assert 400 in statuses


def test_the_engine_in_a_process_of_its_own(tiny_u: Path, painter: vila_core.Vila, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT)
    served = ServeSettings(model_path=str(tiny_u), device="cpu", page=False)
    with (
        engine_process(loading_task(served)) as answering,
        running(create_app(answering, served)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=240) as client,
    ):
        assert pixels(drawn(client, n=3)) == pixels(painter.generate_image(PROMPT, n=3, seed=3))
        events: list[Any] = list(client.images.generate(prompt=PROMPT, stream=True, partial_images=1))
        assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "completed"]
        answer = client.chat.completions.create(**chat(server)).choices[0].message.model_dump()
        biased = {int(start_token(server)): 100.0}
        own = painter.complete("Draw a circle.", max_new_tokens=2, seed=4, temperature=0.2, logit_bias=biased)
        assert pixels(map(of_uri, answer["images"])) == pixels(own.parts)
