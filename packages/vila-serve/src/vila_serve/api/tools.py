"""Function calling: what a request says about tools, and the calls in an answer.

Models write a call as `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (the format of Hermes 2 Pro, which
Qwen2.5's chat template asks for), before, between and after other text.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from vila_core.chat import ChatTemplate, JinjaTemplate
from vila_serve.api.errors import ApiError
from vila_serve.api.schemas.chat import (
    AssistantMessage,
    ChatCompletionRequest,
    ChatMessage,
    FunctionCall,
    NamedTool,
    TextFormat,
    Tool,
    ToolCall,
    ToolMessage,
)

BEGIN, END = "<tool_call>", "</tool_call>"
_DEFINITIONS = ("$defs", "definitions")


@dataclass(frozen=True)
class ToolUse:
    """What a request says about tools.

    Attributes:
        tools: the functions that the model may call; empty without tools, or if `tool_choice` is "none".
        schema: of the call that the answer must be; None if the model may also answer with text.
        most: calls of one answer; None for any number.
    """

    tools: tuple[Tool, ...] = ()
    schema: dict[str, Any] | None = None
    most: int | None = None

    @property
    def declarations(self) -> list[dict[str, Any]]:
        """The tools as a chat template gets them."""
        return [{"type": "function", "function": _declaration(tool)} for tool in self.tools]

    @property
    def names(self) -> frozenset[str]:
        """The names of the functions."""
        return frozenset(tool.function.name for tool in self.tools)


def _declaration(tool: Tool) -> dict[str, Any]:
    function = tool.function
    empty = {"type": "object", "properties": {}}
    return {
        "name": function.name,
        "description": function.description or "",
        "parameters": empty if function.parameters is None else function.parameters,
    }


def tool_use(request: ChatCompletionRequest, template: ChatTemplate) -> ToolUse:
    """Return what a request says about tools.

    Raises:
        ApiError: the model's chat template has no tools, names repeat, or `tool_choice` does not fit.
    """
    tools, choice = tuple(request.tools or ()), request.tool_choice
    if tools and choice != "none":
        require_tools(template, "tools")
    names = [tool.function.name for tool in tools]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ApiError(400, f"'tools' has two functions called {repeated!r}. Give each its own name.", param="tools")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "'tool_choice' asks for a tool, but 'tools' has none.", param="tool_choice")
        return ToolUse()
    most = 1 if request.parallel_tool_calls is False else None
    if choice == "none":
        return ToolUse()
    if choice in (None, "auto"):
        return ToolUse(tools, most=most)
    if request.response_format is not None and not isinstance(request.response_format, TextFormat):
        raise ApiError(
            400,
            "'tool_choice' asks for a call, and 'response_format' for other JSON. Leave one of them out.",
            param="tool_choice",
        )
    wanted = [tool for tool in tools if not isinstance(choice, NamedTool) or tool.function.name == choice.function.name]
    if not wanted:
        assert isinstance(choice, NamedTool), "required takes all"
        raise ApiError(
            400,
            f"'tool_choice' asks for the function {choice.function.name!r}. Known: {', '.join(names)}.",
            param="tool_choice",
        )
    return ToolUse(tools, call_schema(wanted), 1)


def require_tools(template: ChatTemplate, param: str) -> None:
    """Raise `ApiError` unless the chat template has tools."""
    if not isinstance(template, JinjaTemplate) or not template.takes_tools:
        raise ApiError(
            400,
            f"The model's chat template '{template.name}' does not support tools.",
            param=param,
            code="tools_not_supported",
        )


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """Return the JSON schema of a call of one of the tools. Raises `ApiError` if two define different things alike."""
    definitions: dict[str, dict[str, Any]] = {}
    calls: list[dict[str, Any]] = []
    for tool in tools:
        parameters = dict(_declaration(tool)["parameters"])
        parameters.setdefault("type", "object")
        for key in _DEFINITIONS:  # references such as #/$defs/Point are read from the root
            for name, definition in (parameters.pop(key, None) or {}).items():
                known = definitions.setdefault(key, {})
                if known.setdefault(name, definition) != definition:
                    raise ApiError(
                        400,
                        f"Two functions define different things as {name!r} in '{key}', which 'tool_choice' cannot "
                        "tell apart. Rename one, or use 'tool_choice': 'auto'.",
                        param="tools",
                    )
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), **definitions}


def check_tool_messages(messages: Sequence[ChatMessage], template: ChatTemplate) -> None:
    """Check the calls and results of earlier turns.

    Raises:
        ApiError: the template has no tools, arguments are not a JSON object, or a result belongs to no call.
    """
    waiting: set[str] = set()
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if isinstance(message, ToolMessage):
            require_tools(template, place)
            if message.tool_call_id not in waiting:
                raise ApiError(
                    400,
                    f"'{place}.tool_call_id' is {message.tool_call_id[:100]!r}, but the assistant's message "
                    "before it has no call with that id, or its result has been given.",
                    param=f"{place}.tool_call_id",
                )
            waiting.discard(message.tool_call_id)
            continue
        waiting = set()
        if isinstance(message, AssistantMessage) and message.tool_calls:
            require_tools(template, place)
            for number, call in enumerate(message.tool_calls):
                read_arguments(call, f"{place}.tool_calls[{number}].function.arguments")
            waiting = {call.id for call in message.tool_calls}


def read_arguments(call: ToolCall, place: str) -> dict[str, Any]:
    """Return the arguments of a call. Raises `ApiError` if they are not a JSON object."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(400, f"'{place}' must be the text of a JSON object.", param=place)
    return cast("dict[str, Any]", arguments)


class ToolCallReader:
    """Finds the calls in an answer that grows. What is not a call of a known function stays text.

    Args:
        use: what the request says about tools.
    """

    def __init__(self, use: ToolUse):
        self.num_calls = 0
        self._use = use
        self._held = ""
        self._has_text = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Add text; return the text and the calls that are certain."""
        if not self._use.tools:
            return text, []
        self._held += text
        if self._use.schema is not None:
            return "", []
        texts: list[str] = []
        calls: list[ToolCall] = []
        while (begin := self._held.find(BEGIN)) >= 0:
            end = self._held.find(END, begin)
            if end < 0:
                break
            call = self._call(self._held[begin + len(BEGIN) : end])
            end += len(END)
            if call is None:
                texts.append(self._text(self._held[:end]))
            else:
                texts.append(self._text(self._held[:begin].rstrip()))
                calls += self._count(call)
                self._has_text = self._has_text and bool(self._held[:begin].strip())
            self._held = self._held[end:]
        certain = begin if begin >= 0 else len(self._held) - _overlap(self._held)
        certain = len(self._held[:certain].rstrip())  # space before a call is not text
        texts.append(self._text(self._held[:certain]))
        self._held = self._held[certain:]
        return "".join(texts), calls

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return the remaining text and calls once no more text will come."""
        held, self._held = self._held, ""
        if self._use.schema is not None and (call := self._call(held)) is not None:
            return "", self._count(call)
        return (self._text(held) if held.strip() else ""), []

    def _text(self, text: str) -> str:
        """Return text as it is given: without space after a call."""
        if self.num_calls and not self._has_text:
            text = text.lstrip()
        self._has_text = self._has_text or bool(text)
        return text

    def _count(self, call: ToolCall) -> list[ToolCall]:
        """Return the call, unless there may be no more."""
        if self._use.most is not None and self.num_calls >= self._use.most:
            return []
        self.num_calls += 1
        self._has_text = False
        return [call]

    def _call(self, text: str) -> ToolCall | None:
        """Return the call that a model wrote as JSON; None if it is not a call of a known function."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, Mapping):
            return None
        fields = cast("Mapping[str, Any]", value)
        name, arguments = fields.get("name"), fields.get("arguments", {})
        if not isinstance(name, str) or name not in self._use.names or not isinstance(arguments, dict):
            return None
        written = json.dumps(arguments, ensure_ascii=False)
        return ToolCall(id=f"call_{uuid.uuid4().hex[:24]}", function=FunctionCall(name=name, arguments=written))


def _overlap(text: str) -> int:
    """Return how many characters at the end may be the beginning of a call."""
    return next((size for size in range(min(len(text), len(BEGIN) - 1), 0, -1) if BEGIN.startswith(text[-size:])), 0)
