"""Function calling: a chat template with tools (as Qwen2.5's), and answers that hold calls."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import openai
import pytest
from tests.running_server import running
from tests.serve.conftest import image_part, text_part

import vila_core
from vila_core.chat import JinjaTemplate, builtin_templates
from vila_core.engine.text import Detokenizer
from vila_serve.api.app import create_app
from vila_serve.api.errors import ApiError
from vila_serve.api.schemas.chat import Function, Tool
from vila_serve.api.tools import ToolCallReader, ToolUse, call_schema
from vila_serve.settings import ServeSettings

# As Qwen2.5's chat template writes tools, calls and results (tokenizer_config.json of Qwen2.5-7B-Instruct).
SOURCE = """
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}{{ 'You help.' }}{% endif %}
{{- '\\n\\n# Tools\\n\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
{{- '\\n</tools>\\n\\nReturn calls as <tool_call>\\n{"name": <function-name>, "arguments": <args>}\\n</tool_call>' }}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls)
    or (message.role == 'system' and not (loop.first and tools)) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant' }}{% if message.content %}{{ '\\n' + message.content }}{% endif %}
{%- for tool_call in message.tool_calls %}{% set tool_call = tool_call.function %}
{{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
{{- tool_call.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
TEMPLATE = JinjaTemplate("with-tools", SOURCE)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
USE = ToolUse((Tool.model_validate(WEATHER), Tool.model_validate(CLOCK)))


def read(text: str, use: ToolUse = USE, size: int = 1) -> tuple[str, list[tuple[str, Any]]]:
    """Give a text to a reader in pieces of `size` characters; return the text and the calls."""
    reader = ToolCallReader(use)
    parts = [reader.push(text[start : start + size]) for start in range(0, len(text), size)] + [reader.finish()]
    calls = [call.function for _, calls in parts for call in calls]
    assert reader.num_calls == len(calls)
    return "".join(text for text, _ in parts), [(one.name, json.loads(one.arguments)) for one in calls]


KOELN = ("weather", {"city": "Köln"})
ANSWERS = {
    "one call": (CALL, "", [KOELN]),
    "text before": (f"Let me look.\n{CALL}", "Let me look.", [KOELN]),
    "text after": (f"{CALL}\nDone.", "Done.", [KOELN]),
    "two calls": (f'{CALL}\n<tool_call>{{"name":"clock"}}</tool_call>', "", [KOELN, ("clock", {})]),
    "no call": ("It is sunny.", "It is sunny.", []),
    "spaces inside": ("a  <b>  c", "a  <b>  c", []),
    "a tag that is cut off": ("a <tool_ca", "a <tool_ca", []),
    "a call that is cut off": ('a <tool_call>{"name": "weather"', 'a <tool_call>{"name": "weather"', []),
    "damaged JSON": ("<tool_call>{weather}</tool_call>", "<tool_call>{weather}</tool_call>", []),
    "damaged, then right": (f"<tool_call>{{}}</tool_call> {CALL}", "<tool_call>{}</tool_call>", [KOELN]),
    "unknown function": ('<tool_call>{"name": "rm"}</tool_call>', '<tool_call>{"name": "rm"}</tool_call>', []),
    "arguments in a list": (
        '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>',
        [],
    ),
    "deep nesting": (
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        [],
    ),
    "empty": ("", "", []),
    "only the end": ("</tool_call> x", "</tool_call> x", []),
    "a name that is no text": ('<tool_call>{"name": {}}</tool_call>', '<tool_call>{"name": {}}</tool_call>', []),
}


@pytest.mark.parametrize("size", [1, 3, 1_000_000])
@pytest.mark.parametrize(("text", "content", "calls"), ANSWERS.values(), ids=ANSWERS.keys())
def test_calls_are_found_in_an_answer(text: str, content: str, calls: list[Any], size: int):
    if len(text) > 10_000 and size < 1_000_000:
        size = 10_000
    assert read(text, size=size) == (content, calls)


def test_text_is_streamed_before_a_call():
    reader = ToolCallReader(USE)
    assert reader.push("Let me look") == ("Let me look", [])
    assert reader.push(" <tool") == ("", [])
    assert reader.push(" box>") == (" <tool box>", [])


def test_without_tools_an_answer_is_left_alone():
    assert read(CALL, ToolUse()) == (CALL, [])


def test_one_call_if_they_are_not_parallel():
    assert read(CALL + CALL, ToolUse(USE.tools, most=1)) == ("", [KOELN])


def test_a_required_call_is_plain_json():
    use = ToolUse(USE.tools, call_schema(USE.tools), 1)
    assert read('{"name": "weather", "arguments": {"city": "Köln"}}', use) == ("", [KOELN])
    assert read('{"name": "weather", "arg', use) == ('{"name": "weather", "arg', [])


def test_definitions_of_parameters_move_to_the_root():
    point = {"type": "object", "properties": {"x": {"type": "number"}}}
    parameters = {"properties": {"to": {"$ref": "#/$defs/Point"}}, "$defs": {"Point": point}}
    move = Tool(type="function", function=Function(name="move", parameters=parameters))
    schema = call_schema([move, USE.tools[0]])
    assert schema["$defs"] == {"Point": point}
    assert "$defs" not in schema["anyOf"][0]["properties"]["arguments"]
    other = Tool(type="function", function=Function(name="go", parameters={**parameters, "$defs": {"Point": {}}}))
    with pytest.raises(ApiError, match="Point"):
        call_schema([move, other])


@pytest.mark.parametrize("template", builtin_templates(), ids=lambda template: template.name)
def test_built_in_templates_have_no_tools(template: Any):
    assert not (isinstance(template, JinjaTemplate) and template.takes_tools)


@pytest.mark.parametrize(
    "source",
    ["{{ tools }}", "{% for tool in tools %}{{ tool.function.name }}{% endfor %}", "{{ nothing.at.all }}", "{% if %}"],
    ids=["no call format", "names only", "fails", "damaged"],
)
def test_templates_that_do_not_ask_for_calls(source: str):
    assert not JinjaTemplate("other", source).takes_tools


@pytest.fixture(scope="module")
def tool_model() -> vila_core.Vila:
    model = vila_core.load("vila-tiny")
    model.template = TEMPLATE
    return model


@pytest.fixture(scope="module")
def tool_client(tool_model: vila_core.Vila) -> Iterator[openai.OpenAI]:
    with (
        running(create_app(tool_model, ServeSettings(page=False))) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=240) as client,
    ):
        yield client


@pytest.fixture
def says(tool_model: vila_core.Vila) -> Iterator[Callable[[str], None]]:
    """Let the model's next answer be a text: its tokens are decoded to this instead, in two pieces."""
    with mock.patch.object(Detokenizer, "push") as push, mock.patch.object(Detokenizer, "finish") as finish:

        def say(text: str) -> None:
            third = len(text) // 3
            push.side_effect = [text[:third]] + [""] * 1000
            finish.return_value = text[third:]

        yield say


def question(text: str = "Weather in Köln?") -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_call_is_answered_as_openai_does(tool_client: openai.OpenAI, says: Callable[[str], None]):
    says(f"I look.\n{CALL}")
    answer = tool_client.chat.completions.create(model="vila-tiny", messages=[question()], tools=[WEATHER, CLOCK])
    choice = answer.choices[0]
    assert choice.finish_reason in ("tool_calls", "length")
    assert choice.message.content == "I look."
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"city": "Köln"}
    assert call.id.startswith("call_")


def test_a_streamed_call(tool_client: openai.OpenAI, says: Callable[[str], None]):
    says(f"I look.\n{CALL}")
    chunks = list(
        tool_client.chat.completions.create(model="vila-tiny", messages=[question()], tools=[WEATHER], stream=True)
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "I look."
    (call,) = [call for delta in deltas for call in delta.tool_calls or ()]
    assert (call.index, call.function.name, json.loads(call.function.arguments)) == (0, "weather", {"city": "Köln"})
    assert chunks[-1].choices[0].finish_reason in ("tool_calls", "length")


def test_without_tools_in_the_request_there_are_no_calls(tool_client: openai.OpenAI, says: Callable[[str], None]):
    for fields in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        says(CALL)
        answer = tool_client.chat.completions.create(model="vila-tiny", messages=[question()], **fields)
        assert answer.choices[0].message.content == CALL
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].finish_reason != "tool_calls"


def prompt_of(client: openai.OpenAI, messages: list[Any], **fields: Any) -> str:
    """Return the prompt that a request becomes."""
    original, texts = vila_core.Vila.prepare_untrusted, list[str]()

    def prepare(model: vila_core.Vila, *arguments: Any) -> Any:
        prepared = original(model, *arguments)
        texts.append(prepared.text)
        return prepared

    with mock.patch.object(vila_core.Vila, "prepare_untrusted", prepare):
        client.chat.completions.create(model="vila-tiny", messages=messages, max_tokens=1, **fields)
    return texts[0]


def test_tools_calls_and_results_are_in_the_prompt(tool_client: openai.OpenAI):
    calls = [
        {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}},
        {"id": "b", "type": "function", "function": {"name": "clock", "arguments": ""}},
    ]
    history = [
        question(),
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
        {"role": "tool", "tool_call_id": "b", "content": [text_part("noon")]},
    ]
    text = prompt_of(tool_client, history, tools=[WEATHER, CLOCK])
    assert json.dumps(WEATHER, ensure_ascii=False) in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>' in text
    assert '{"name": "clock", "arguments": {}}' in text
    assert text.endswith(
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\nnoon\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    more = [*history, {"role": "assistant", "content": "It rains."}, question("Thanks.")]
    assert "It rains.<|im_end|>" in prompt_of(tool_client, more)


def test_pictures_and_tools_together(tool_client: openai.OpenAI):
    content = [image_part("scene.png"), text_part("What is it?")]
    tool = {"type": "function", "function": {"name": "look", "description": "Looks at an <image> or <ima<image>ge>."}}
    text = prompt_of(tool_client, [{"role": "user", "content": content}], tools=[tool])
    assert "Looks at an" in text
    assert "<image>" not in text.partition("</tools>")[0]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_be(tool_client: openai.OpenAI, choice: Any):
    answer = tool_client.chat.completions.create(
        model="vila-tiny", messages=[question()], tools=[WEATHER], tool_choice=choice, max_tokens=40, temperature=0
    )
    choice = answer.choices[0]
    if choice.finish_reason == "length":  # the string that the tiny model writes may not end
        assert choice.message.content.startswith('{"name"')
        return
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls[0].function.name == "weather"
    assert list(json.loads(choice.message.tool_calls[0].function.arguments)) == ["city"]


def test_a_call_without_arguments_that_must_be(tool_client: openai.OpenAI):
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"additionalProperties": False}}}
    for stream in (False, True):
        fields: Any = {"tools": [tool], "tool_choice": "required", "stream": stream}
        answer = tool_client.chat.completions.create(model="vila-tiny", messages=[question()], **fields)
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        assert choices[-1].finish_reason == "tool_calls"
        messages = [choice.delta if stream else choice.message for choice in choices]
        calls = [call for message in messages for call in message.tool_calls or ()]
        assert [(call.function.name, call.function.arguments) for call in calls] == [("clock", "{}")]


def _call(arguments: str = "{}", id: str = "a") -> dict[str, Any]:
    call = {"id": id, "type": "function", "function": {"name": "clock", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _result(id: str = "a") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": "noon"}


WRONG = {
    "unknown choice": (
        {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        "tool_choice",
        "Known: clock",
    ),
    "choice without tools": ({"tool_choice": "required"}, "tool_choice", "'tools' has none"),
    "one name twice": ({"tools": [CLOCK, CLOCK]}, "tools", "two functions called 'clock'"),
    "other JSON": (
        {"tools": [CLOCK], "tool_choice": "required", "response_format": {"type": "json_object"}},
        "tool_choice",
        "other JSON",
    ),
    "schema that cannot be followed": (
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
            "tool_choice": "required",
        },
        "tools",
        "not",
    ),
    "result without a call": ({"messages": [question(), _result()]}, "messages[1].tool_call_id", "no call"),
    "result of another call": (
        {"messages": [question(), _call(), _result("b")]},
        "messages[2].tool_call_id",
        "'b'",
    ),
    "result given twice": (
        {"messages": [question(), _call(), _result(), _result()]},
        "messages[3].tool_call_id",
        "has been given",
    ),
    "result after other messages": (
        {"messages": [question(), _call(), _result(), question(), _result()]},
        "messages[4].tool_call_id",
        "no call",
    ),
    "arguments that are no JSON": (
        {"messages": [question(), _call("{city"), _result()]},
        "messages[1].tool_calls[0].function.arguments",
        "JSON object",
    ),
    "arguments in a list": (
        {"messages": [question(), _call("[1]"), _result()]},
        "messages[1].tool_calls[0].function.arguments",
        "JSON object",
    ),
    "a call is the last message": ({"messages": [question(), _call()]}, "messages", "ends with"),
    "a result is the first message": ({"messages": [_result()]}, "messages[0].tool_call_id", "no call"),
}


@pytest.mark.parametrize(("fields", "param", "text"), WRONG.values(), ids=WRONG.keys())
def test_wrong_requests(tool_client: openai.OpenAI, fields: dict[str, Any], param: str, text: str):
    with pytest.raises(openai.BadRequestError) as caught:
        tool_client.chat.completions.create(**{"model": "vila-tiny", "messages": [question()], **fields})
    assert caught.value.param == param
    assert text in str(caught.value)
