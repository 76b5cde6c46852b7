"""The official `openai` package against the running server: responses."""

import asyncio
import json
from typing import Any

import httpx2
import openai
import pytest
from tests.running_server import RunningServer
from tests.serve.conftest import MEDIA, data_uri

import vila_core

SCENE = "A pink diamond (top), a green moon (left), a yellow circle (bottom right)."


def question(name: str, text: str) -> dict[str, Any]:
    image = {"type": "input_image", "image_url": data_uri(name), "detail": "auto"}
    return {"role": "user", "content": [image, {"type": "input_text", "text": text}]}


def question_with(url: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "input_image", "image_url": url, "detail": "auto"}]}


def ask(client: openai.OpenAI, *messages: Any, **fields: Any) -> Any:
    return client.responses.create(model="vila-tiny", temperature=0, input=list(messages), **fields)


def test_an_image(client: openai.OpenAI, model: vila_core.Vila):
    answer = ask(client, question("scene.png", "What is in the picture?"))
    direct = model.complete([vila_core.Image(MEDIA / "scene.png"), "What is in the picture?"])
    assert answer.output_text == direct.text == SCENE
    assert (answer.status, answer.object, answer.model) == ("completed", "response", "vila-tiny")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (
        direct.usage.prompt_tokens,
        direct.usage.completion_tokens,
    )
    assert answer.output[0].content[0].annotations == []


def test_a_text_and_instructions(client: openai.OpenAI, model: vila_core.Vila):
    answer = client.responses.create(
        model="vila-tiny", temperature=0, input="What is this?", instructions="Answer in one word."
    )
    direct = model.generate(
        [vila_core.Message("system", "Answer in one word."), vila_core.Message("user", "What is this?")]
    )
    assert answer.output_text == direct


def test_fields_of_an_image_that_are_null(client: openai.OpenAI):
    image = {"type": "input_image", "image_url": data_uri("word.png"), "detail": None, "file_id": None}
    text = {"type": "input_text", "text": "What word is written?"}
    assert ask(client, {"role": "user", "content": [image, text]}).output_text == "HINT"


def test_a_video(client: openai.OpenAI):
    video = {"type": "input_video", "video_url": data_uri("motion.mp4")}
    text = {"type": "input_text", "text": "Which way does the yellow moon move?"}
    assert ask(client, {"role": "user", "content": [video, text]}).output_text == "right"


def test_a_conversation_with_an_earlier_answer_as_it_came(client: openai.OpenAI, model: vila_core.Vila):
    first = question("word.png", "What word is written?")
    answer = ask(client, first)
    second = {"role": "user", "content": "What word is written?"}
    again = ask(client, first, *(item.model_dump(exclude_none=True) for item in answer.output), second)
    direct = model.complete(
        [
            vila_core.Message("user", [vila_core.Image(MEDIA / "word.png"), "What word is written?"]),
            vila_core.Message("assistant", "HINT"),
            vila_core.Message("user", "What word is written?"),
        ]
    )
    assert again.output_text == direct.text
    assert again.usage.input_tokens == direct.usage.prompt_tokens


def test_the_longest_answer(client: openai.OpenAI):
    answer = ask(client, question("scene.png", "What is in the picture?"), max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.output_tokens == 3


def test_a_json_schema(client: openai.OpenAI):
    schema = {"type": "object", "properties": {"count": {"enum": [1, 2]}}, "required": ["count"]}
    form: Any = {"format": {"type": "json_schema", "name": "count", "schema": schema, "strict": True}}
    answer = ask(client, question("scene.png", "How many?"), text=form)
    assert json.loads(answer.output_text)["count"] in (1, 2)


def test_log_probabilities(client: openai.OpenAI):
    answer = ask(
        client,
        question("word.png", "What word is written?"),
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    tokens = answer.output[0].content[0].logprobs
    assert "".join(token.token for token in tokens).strip() == "HINT"
    assert all(len(token.top_logprobs) == 2 for token in tokens)


@pytest.mark.parametrize("limit", [None, 4])
def test_the_events_of_a_stream(server: RunningServer, limit: int | None):
    async def read() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            stream = await client.responses.create(
                model="vila-tiny",
                temperature=0,
                input=[question("scene.png", "What is in the picture?")],
                max_output_tokens=limit,
                stream=True,
            )
            return [event async for event in stream]

    events = asyncio.run(read())
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-1] == ("response.completed" if limit is None else "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text
    assert limit is not None or text == SCENE


def test_the_stream_helper_of_the_openai_package(client: openai.OpenAI):
    with client.responses.stream(
        model="vila-tiny", temperature=0, input=[question("word.png", "What word is written?")]
    ) as stream:
        assert stream.get_final_response().output_text == "HINT"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input": []}, 400, "input"),
        ({"input": None}, 400, "input"),
        ({"input": [{"role": "user"}]}, 400, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "detail": "auto"}]}]}, 400, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
            400,
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "4"}]}, 400, None),
        ({"model": "gpt-4o"}, 404, "model"),
        ({"previous_response_id": "resp_1"}, 400, "previous_response_id"),
        ({"conversation": "conv_1"}, 400, "conversation"),
        ({"background": True}, 400, "background"),
        ({"truncation": "auto"}, 400, "truncation"),
        ({"tools": [{"type": "web_search"}]}, 400, "tools"),
        ({"max_output_tokens": 0}, 400, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"$ref": "#"}}}}, 400, "text.format"),
        ({"input": "word " * 5000}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": 5}, 400, "input"),
        ({"input": [{"role": "user", "content": None}]}, 400, "input[0].content"),
        ({"input": [{"role": "assistant", "content": "Hi"}]}, 400, "input"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {}}], "tool_choice": "auto"}, 400, "tools"),
        (
            {"instructions": "Be brief.", "input": [question_with("file:///etc/passwd")]},
            400,
            "input[0].content[0]",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_wrong_requests(http: httpx2.Client, fields: dict[str, Any], status: int, param: str | None):
    response = http.post("/v1/responses", json={"model": "vila-tiny", "input": "Hello", **fields})
    assert response.status_code == status
    assert param is None or response.json()["error"]["param"] == param
