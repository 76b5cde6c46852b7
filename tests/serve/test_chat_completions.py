"""The official `openai` package against the running server: chat completions."""

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.running_server import RunningServer, running
from tests.serve.conftest import MEDIA, data_uri, image_part, text_part, user

import vila_core
from vila_serve.api.app import create_app
from vila_serve.settings import ServeSettings

QUESTIONS = json.loads((MEDIA / "questions.json").read_text(encoding="utf-8"))
GREEDY: dict[str, Any] = {"model": "vila-tiny", "temperature": 0}


def part(name: str) -> dict[str, Any]:
    if name.endswith(".mp4"):
        return {"type": "video_url", "video_url": {"url": data_uri(name)}}
    return image_part(name)


def vila_prompt(names: list[str], text: str) -> list[Any]:
    return [*(vila_core.Video(MEDIA / name) if name.endswith(".mp4") else Path(MEDIA / name) for name in names), text]


@pytest.mark.parametrize("case", QUESTIONS, ids=lambda case: "+".join(case["media"]))
def test_media_are_answered_as_in_the_library(client: openai.OpenAI, model: vila_core.Vila, case: dict[str, Any]):
    """One and several images, and a video; the answers are those of `nox -s demo`."""
    messages = [user(*map(part, case["media"]), case["text"])]
    answer = client.chat.completions.create(**GREEDY, messages=messages)
    direct = model.complete(vila_prompt(case["media"], case["text"]))
    (choice,) = answer.choices
    assert choice.message.content == case["answer"] == direct.text
    assert (choice.message.role, choice.finish_reason, choice.logprobs) == ("assistant", "stop", None)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == direct.usage.prompt_tokens
    assert answer.usage.completion_tokens == direct.usage.completion_tokens
    assert answer.usage.total_tokens == direct.usage.prompt_tokens + direct.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.image_tokens == direct.usage.media_tokens
    assert (answer.object, answer.model) == ("chat.completion", "vila-tiny")
    assert answer.id.startswith("chatcmpl-")


@pytest.mark.parametrize("case", QUESTIONS, ids=lambda case: "+".join(case["media"]))
def test_async_streams_join_to_the_answer(server: RunningServer, case: dict[str, Any]):
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            stream = await client.chat.completions.create(
                **GREEDY, messages=[user(*map(part, case["media"]), case["text"])], stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == case["answer"]


def test_several_images_keep_their_order(client: openai.OpenAI):
    def larger(*names: str) -> str | None:
        messages = [user(*map(image_part, names), "Which picture has more objects?")]
        return client.chat.completions.create(**GREEDY, messages=messages).choices[0].message.content

    assert (larger("pair-1.png", "pair-2.png"), larger("pair-2.png", "pair-1.png")) == ("first", "second")


def test_the_whole_history_is_read(client: openai.OpenAI, model: vila_core.Vila):
    """VILA's own server reads the last text and the last medium only."""
    history: list[Any] = [
        {"role": "system", "content": "Answer in one word."},
        user(image_part("word.png"), "What word is written?"),
        {"role": "assistant", "content": "HINT"},
        user(image_part("chart.png"), "What color is the highest bar?"),
        {"role": "assistant", "content": [text_part("yellow")]},
        {"role": "user", "content": "What word is written in the first picture?"},
    ]
    direct = model.complete(
        [
            vila_core.Message("system", "Answer in one word."),
            vila_core.Message("user", [vila_core.Image(MEDIA / "word.png"), "What word is written?"]),
            vila_core.Message("assistant", "HINT"),
            vila_core.Message("user", [vila_core.Image(MEDIA / "chart.png"), "What color is the highest bar?"]),
            vila_core.Message("assistant", "yellow"),
            vila_core.Message("user", "What word is written in the first picture?"),
        ]
    )
    answer = client.chat.completions.create(**GREEDY, messages=history)
    assert answer.choices[0].message.content == direct.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == direct.usage.prompt_tokens


def test_developer_messages_and_neighbors_of_one_role_are_joined(client: openai.OpenAI, model: vila_core.Vila):
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Look at this."},
        user(image_part("word.png"), "What word is written?"),
    ]
    direct = model.complete(
        [
            vila_core.Message("system", "Be brief.\nAnswer in one word."),
            vila_core.Message(
                "user", ["Look at this.\n", vila_core.Image(MEDIA / "word.png"), "What word is written?"]
            ),
        ]
    )
    answer = client.chat.completions.create(**GREEDY, messages=messages)
    assert answer.choices[0].message.content == direct.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == direct.usage.prompt_tokens


@pytest.mark.parametrize("seed", [0, 7, 2**62, -3])
def test_a_seed_repeats_an_answer_of_the_library(client: openai.OpenAI, model: vila_core.Vila, seed: int):
    asked: dict[str, Any] = {"temperature": 1.5, "top_p": 0.95, "seed": seed, "max_tokens": 24}
    answers = [
        client.chat.completions.create(model="vila-tiny", messages=[user("Tell me.")], **asked) for _ in range(2)
    ]
    direct = model.generate("Tell me.", temperature=1.5, top_p=0.95, seed=seed % 2**63, max_new_tokens=24)
    assert [answer.choices[0].message.content for answer in answers] == [direct, direct]


def test_n_answers_use_successive_seeds(client: openai.OpenAI, model: vila_core.Vila):
    answer = client.chat.completions.create(
        model="vila-tiny", messages=[user("Tell me.")], temperature=1.5, top_p=1, seed=5, n=4, max_tokens=12
    )
    direct = [model.complete("Tell me.", temperature=1.5, seed=5 + index, max_new_tokens=12) for index in range(4)]
    assert [choice.message.content for choice in answer.choices] == [one.text for one in direct]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({one.text for one in direct}) > 1
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == direct[0].usage.prompt_tokens
    assert answer.usage.completion_tokens == sum(one.usage.completion_tokens for one in direct)


def test_without_a_seed_answers_differ(client: openai.OpenAI):
    numbers: Any = {"schema": {"type": "array", "items": {"type": "integer"}, "minItems": 8}, "name": "numbers"}
    answer = client.chat.completions.create(
        model="vila-tiny",
        messages=[user("Tell me.")],
        response_format={"type": "json_schema", "json_schema": numbers},
        temperature=2,
        top_p=1,
        max_tokens=12,
        n=6,
    )
    assert len({choice.message.content for choice in answer.choices}) > 1


SCENE = "A pink diamond (top), a green moon (left), a yellow circle (bottom right)."


@pytest.mark.parametrize(
    "penalties",
    [
        {"presence_penalty": 1.5},
        {"frequency_penalty": -2},
        {"logit_bias": {"300": 100}},
        {"presence_penalty": 2, "frequency_penalty": 1, "logit_bias": {"5": -100, "6": 3.5}},
    ],
    ids=str,
)
def test_penalties_are_those_of_the_library(client: openai.OpenAI, model: vila_core.Vila, penalties: Any):
    asked: dict[str, Any] = {"temperature": 1, "top_p": 1, "seed": 3, "max_tokens": 20}
    messages = [user(image_part("scene.png"), "What is in the picture?")]
    answer = client.chat.completions.create(model="vila-tiny", messages=messages, **asked, **penalties)
    biases = {int(token): value for token, value in penalties.get("logit_bias", {}).items()}
    direct = model.generate(
        [vila_core.Image(MEDIA / "scene.png"), "What is in the picture?"],
        temperature=1,
        seed=3,
        max_new_tokens=20,
        **{**penalties, "logit_bias": biases},
    )
    assert answer.choices[0].message.content == direct


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("(left)", "A pink diamond (top), a green moon"),
        (["zebra", "moon"], "A pink diamond (top), a green"),
        ([", a yellow", "(top), a"], "A pink diamond"),
        ("A", ""),
        ("zebra", SCENE),
        (None, SCENE),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_the_answer(client: openai.OpenAI, stop: Any, expected: str, stream: bool):
    messages = [user(image_part("scene.png"), "What is in the picture?")]
    if stream:
        chunks = list(client.chat.completions.create(**GREEDY, messages=messages, stop=stop, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        (choice,) = client.chat.completions.create(**GREEDY, messages=messages, stop=stop).choices
        text, reason = choice.message.content, choice.finish_reason
    assert (text, reason) == (expected, "stop")


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_longest_answer(client: openai.OpenAI, field: str):
    asked: Any = {field: 5}
    answer = client.chat.completions.create(
        **GREEDY, messages=[user(image_part("scene.png"), "What is in the picture?")], **asked
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_max_completion_tokens_takes_precedence(client: openai.OpenAI):
    answer = client.chat.completions.create(
        **GREEDY,
        messages=[user(image_part("scene.png"), "What is in the picture?")],
        max_tokens=9,
        max_completion_tokens=3,
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("limit", [2**31, 10**18])
def test_a_longest_answer_beyond_the_context_is_cut_to_it(client: openai.OpenAI, limit: int):
    answer = client.chat.completions.create(
        **GREEDY, messages=[user(image_part("word.png"), "What word is written?")], max_tokens=limit
    )
    assert answer.choices[0].message.content == "HINT"


def test_log_probabilities(client: openai.OpenAI, model: vila_core.Vila):
    messages = [user(image_part("word.png"), "What word is written?")]
    answer = client.chat.completions.create(**GREEDY, messages=messages, logprobs=True, top_logprobs=3)
    direct = model.complete(
        [vila_core.Image(MEDIA / "word.png"), "What word is written?"], logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content
    assert tokens is not None
    assert direct.logprobs is not None
    assert [token.logprob for token in tokens] == pytest.approx([one.logprob for one in direct.logprobs], abs=1e-4)
    assert b"".join(bytes(token.bytes or ()) for token in tokens).decode().strip() == "HINT"
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token  # greedy
        assert sorted(token.top_logprobs, key=lambda one: -one.logprob) == token.top_logprobs


def test_streamed_log_probabilities_are_the_same(client: openai.OpenAI):
    messages = [user(image_part("scene.png"), "What is in the picture?")]
    whole = client.chat.completions.create(**GREEDY, messages=messages, logprobs=True, top_logprobs=1)
    stream = client.chat.completions.create(**GREEDY, messages=messages, logprobs=True, top_logprobs=1, stream=True)
    streamed = [
        token.token
        for chunk in stream
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content or ()
    ]
    assert whole.choices[0].logprobs is not None
    assert streamed == [token.token for token in whole.choices[0].logprobs.content or ()]


SHAPE = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green", "pink"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["color", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_json_schema_is_followed(client: openai.OpenAI, strict: bool | None):
    named: Any = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SHAPE, "strict": strict}}
    answer = client.chat.completions.create(
        **GREEDY, messages=[user(image_part("scene.png"), "Describe it as JSON.")], response_format=named
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert set(found) == {"color", "count"}
    assert found["color"] in ("red", "green", "pink")
    assert 1 <= found["count"] <= 9


def test_json_mode(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model="vila-tiny",
        temperature=1.5,
        seed=3,
        max_tokens=60,
        messages=[user("Describe it as JSON.")],
        response_format={"type": "json_object"},
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict | list)
    else:
        assert (answer.choices[0].message.content or "").lstrip()[:1] in ("{", "[")


def test_the_stream_has_a_role_text_an_end_and_token_counts(client: openai.OpenAI):
    chunks = list(
        client.chat.completions.create(
            **GREEDY,
            messages=[user(image_part("scene.png"), "What is in the picture?")],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    first, *middle, end, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert len(middle) > 5
    assert all(chunk.choices[0].delta.content for chunk in middle)
    assert all(chunk.choices[0].finish_reason is None and chunk.usage is None for chunk in (first, *middle))
    assert (end.choices[0].finish_reason, end.choices[0].delta.content) == ("stop", None)
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens > 10
    assert len({chunk.id for chunk in chunks}) == 1


def test_n_streams_are_told_apart_by_their_index(client: openai.OpenAI, model: vila_core.Vila):
    stream = client.chat.completions.create(
        model="vila-tiny",
        messages=[user("Tell me.")],
        temperature=1.5,
        top_p=1,
        seed=5,
        n=3,
        max_tokens=12,
        stream=True,
    )
    texts, reasons = [""] * 3, [None] * 3
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [model.generate("Tell me.", temperature=1.5, seed=5 + i, max_new_tokens=12) for i in range(3)]
    assert all(reason in ("stop", "length") for reason in reasons)


def test_the_snippet_of_the_original_readme(server: RunningServer):
    """NVlabs/VILA README, "Running VILA API server", with the name of the model and the picture changed."""
    client = openai.OpenAI(base_url=server.url, api_key="fake-key")
    response = client.chat.completions.create(
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What’s in this image?"},
                    {"type": "image_url", "image_url": {"url": data_uri("scene.png")}},
                ],
            }
        ],
        model="vila-tiny",
    )
    assert isinstance(response.choices[0].message.content, str)
    assert response.choices[0].message.content


def test_the_extra_fields_of_the_original_server(server: RunningServer, model: vila_core.Vila):
    """`serving/query_nvila.py` in NVlabs/VILA sends frames and fps beside `video_url`, and `num_beams`, `use_cache`."""
    client = openai.OpenAI(base_url=server.url, api_key="fake-key")
    video: Any = {"type": "video_url", "video_url": {"url": data_uri("motion.mp4")}, "frames": 4, "fps": 1}
    question = "Which way does the yellow moon move?"
    answer = client.chat.completions.create(
        **GREEDY,
        messages=[{"role": "user", "content": [video, text_part(question)]}],
        extra_body={"num_beams": 1, "use_cache": True},
    )
    direct = model.complete([vila_core.Video(MEDIA / "motion.mp4", frames=4, fps=1), question])
    assert answer.choices[0].message.content == direct.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == direct.usage.prompt_tokens


def test_default_settings_are_those_of_the_original_server(client: openai.OpenAI, model: vila_core.Vila):
    answer = client.chat.completions.create(model="vila-tiny", messages=[user("Tell me.")], seed=11)
    assert answer.choices[0].message.content == model.generate("Tell me.", temperature=0.2, top_p=0.9, seed=11)


def test_fields_without_effect_are_accepted(client: openai.OpenAI):
    answer = client.chat.completions.create(
        **GREEDY,
        messages=[{**user(image_part("word.png", detail="auto"), "What word is written?"), "name": "Ann"}],
        user="ann",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        parallel_tool_calls=True,
        modalities=["text"],
        top_p=0,
        presence_penalty=0,
        frequency_penalty=0,
        logit_bias={},
        stop=[],
        tools=[],
        n=1,
        extra_body={"functions": None, "function_call": None, "audio": None, "of_the_future": None},
    )
    assert answer.choices[0].message.content == "HINT"


def test_the_models_are_listed(client: openai.OpenAI):
    (listed,) = client.models.list().data
    assert (listed.id, listed.object) == ("vila-tiny", "model")
    assert client.models.retrieve("vila-tiny").id == "vila-tiny"
    with pytest.raises(openai.NotFoundError, match=r"'other' does not exist\. This server serves 'vila-tiny'"):
        client.models.retrieve("other")


def test_low_detail_is_one_tile():
    """For a model that cuts images into tiles; the others have one tile anyway."""
    tiled = vila_core.load("vila-tiny", image_aspect_ratio="dynamic", max_tiles=6, progress=False)
    used: dict[str, int] = {}
    with (
        running(create_app(tiled, ServeSettings())) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as asked,
    ):
        for detail in ("low", "high", "auto"):
            part = image_part("chart.png", detail=detail)
            answer = asked.chat.completions.create(**GREEDY, messages=[user(part, "What is it?")], max_tokens=2)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            used[detail] = answer.usage.prompt_tokens_details.image_tokens or 0
    assert used["low"] < used["high"] == used["auto"]


@pytest.mark.parametrize(
    "text", ["/etc/hostname.png", "~/cat.jpg", "https://example.org/cat.png", "data:image/png;base64,AA"]
)
def test_a_text_of_a_stranger_is_not_looked_up_as_a_path(
    client: openai.OpenAI, text: str, monkeypatch: pytest.MonkeyPatch
):
    """In Python, a text that names a file is warned about, for which the file system is asked."""

    def fail(text: str) -> None:
        raise AssertionError(text)

    monkeypatch.setattr("vila_core.conversation._warn_about_a_path", fail)
    assert client.chat.completions.create(**GREEDY, messages=[{"role": "user", "content": text}], max_tokens=2).choices
