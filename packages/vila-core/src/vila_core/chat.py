"""Messages, and the chat templates that turn a conversation into the prompt text.

A template renders `Turn`s (role and text, with placeholders in place of media) exactly as the reference does. The
separator templates come from `llava/conversation.py` in NVlabs/VILA; Jinja templates come with the tokenizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from vila_core.errors import CheckpointError, PromptError, warn

if TYPE_CHECKING:
    from vila_core.media import Image, Video

Role = Literal["system", "user", "assistant", "tool"]

IMAGE_TOKEN = "<image>"
VIDEO_TOKEN = "<vila/video>"
SENTINEL_TOKEN = "<vila/sentinel>"
MEDIA_TOKENS = {"image": IMAGE_TOKEN, "video": VIDEO_TOKEN}


@dataclass(frozen=True)
class ToolCall:
    """A call of a function that the assistant asks for. `arguments` are JSON values by name."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One message of a conversation. `content` is text, a medium, or a sequence of both in order.

    An assistant's message may have `tool_calls`; messages of the role tool with the results follow it.

    Raises:
        PromptError: `role` is unknown, or a message that is not the assistant's has tool calls.
    """

    role: Role
    content: "str | Image | Video | Sequence[str | Image | Video]"
    tool_calls: Sequence[ToolCall] = ()

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise PromptError(f"Unknown role '{self.role}'. Expected one of: {', '.join(get_args(Role))}.")
        if self.tool_calls and self.role != "assistant":
            raise PromptError(f"Only messages of the assistant have tool calls, not those of the {self.role}.")


@dataclass(frozen=True)
class Turn:
    """A message as text, with `<image>` and `<vila/video>` in place of media."""

    role: Role
    text: str
    tool_calls: Sequence[ToolCall] = ()


class ChatTemplate(Protocol):
    """Turns a conversation into prompt text."""

    @property
    def name(self) -> str: ...

    @property
    def end_token(self) -> str | None:
        """The token that ends an answer. A tokenizer without it cannot use this template."""
        ...

    def render(
        self,
        turns: Sequence[Turn],
        special_tokens: Mapping[str, str],
        *,
        generation_prompt: bool = True,
        system_prompt: bool = True,
    ) -> str:
        """Return the prompt text.

        Args:
            turns: the conversation.
            special_tokens: special tokens of the tokenizer by attribute name (`bos_token` …).
            generation_prompt: end with the header that starts the assistant's answer.
            system_prompt: use the template's default system prompt if the conversation has none.

        Raises:
            PromptError: the conversation does not fit the template (for example, roles do not alternate).
        """
        ...


@dataclass(frozen=True)
class SeparatorTemplate:
    """A template of prefixes and separators. `last_end`, if set, replaces `assistant_end` after the last answer."""

    name: str
    system: str
    system_end: str
    user_prefix: str
    user_end: str
    assistant_prefix: str
    assistant_end: str
    last_end: str | None = None
    end_token: str | None = None

    def render(
        self,
        turns: Sequence[Turn],
        special_tokens: Mapping[str, str],
        *,
        generation_prompt: bool = True,
        system_prompt: bool = True,
    ) -> str:
        turns = self._alternating(turns)
        if generation_prompt:
            turns = [*turns, Turn("assistant", "")]
        text = (self.system if system_prompt else "") + self.system_end
        for index, turn in enumerate(turns):
            prefix, end = (
                (self.user_prefix, self.user_end)
                if turn.role == "user"
                else (self.assistant_prefix, self.assistant_end)
            )
            if not turn.text:  # an empty message is only a header, without the trailing space
                text += prefix.rstrip(" ")
                continue
            is_last = index == len(turns) - 1
            text += prefix + turn.text + (self.last_end if is_last and self.last_end is not None else end)
        return text

    def _alternating(self, turns: Sequence[Turn]) -> list[Turn]:
        """Drop a first turn that is not from the user, as the reference does, and check that roles alternate."""
        turns = list(turns)
        if turns and turns[0].role != "user":
            if turns[0].role == "system":
                warn(f"Chat template '{self.name}' has a fixed system prompt; the system message is ignored.")
            turns = turns[1:]
        for index, turn in enumerate(turns):
            if turn.role != ("user", "assistant")[index % 2]:
                raise PromptError(
                    f"Chat template '{self.name}' needs alternating user and assistant messages, "
                    f"starting with the user; message {index + 1} is from the {turn.role}. "
                    "Join consecutive messages of the same role."
                )
        return turns


@dataclass(frozen=True)
class JinjaTemplate:
    """A Jinja template, rendered in a sandbox: without access to Python objects, and within limits on time and size."""

    name: str
    source: str
    end_token: str | None = None

    def render(
        self,
        turns: Sequence[Turn],
        special_tokens: Mapping[str, str],
        *,
        generation_prompt: bool = True,
        system_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """See `ChatTemplate`. `tools` are in OpenAI's form: `{"type": "function", "function": {"name": …}}`."""
        from vila_core.templating.render import render_chat

        messages = [_as_variables(turn) for turn in turns]
        if not system_prompt:
            messages = [{"role": "system", "content": ""}, *messages]
        return render_chat(
            self.name, self.source, messages, special_tokens, tools=tools, generation_prompt=generation_prompt
        )

    @property
    def takes_tools(self) -> bool:
        """Whether it lists tools, and asks the model to call them as `<tool_call>{…}</tool_call>`, as Hermes' and
        Qwen2.5's templates do."""
        return _takes_tools(self)


@lru_cache(maxsize=16)
def _takes_tools(template: JinjaTemplate) -> bool:
    probe = {"type": "function", "function": {"name": "probe_of_tools", "description": "", "parameters": {}}}
    special_tokens = {"bos_token": "", "eos_token": "", "unk_token": "", "pad_token": ""}
    try:
        text = template.render([Turn("user", "question")], special_tokens, tools=[probe])
    except (PromptError, CheckpointError):
        return False
    return "probe_of_tools" in text and "<tool_call>" in text


def _as_variables(turn: Turn) -> dict[str, Any]:
    """Return a turn as transformers gives it to a template."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.tool_calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in turn.tool_calls
        ]
    return message


_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAMA_3_SYSTEM = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_QWEN2_SOURCE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages if message['content'] is not none %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_MISTRAL_SOURCE = (
    "{{ bos_token }}{% for message in messages if message['content'] is not none %}"
    "{% if message['role'] == 'system' %}{{ message['content'] | trim + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)


def builtin_templates() -> list[ChatTemplate]:
    """Return the templates of the reference. `auto` (from the tokenizer) is created when a checkpoint is loaded."""
    vicuna = SeparatorTemplate("vicuna_v1", _VICUNA_SYSTEM, " ", "USER: ", " ", "ASSISTANT: ", "</s>", end_token="</s>")
    return [
        vicuna,
        replace(vicuna, name="v1"),
        SeparatorTemplate(
            "hermes-2",
            "<|im_start|>system\nAnswer the questions.",
            "<|im_end|>",
            "<|im_start|>user\n",
            "<|im_end|>",
            "<|im_start|>assistant\n",
            "<|im_end|>",
            end_token="<|im_end|>",
        ),
        SeparatorTemplate(
            "llama_3",
            _LLAMA_3_SYSTEM,
            "<|eot_id|>",
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|eot_id|>",
            last_end="<|end_of_text|>",
            end_token="<|eot_id|>",
        ),
        SeparatorTemplate("plain", "", "", "", "\n", "", "\n"),
        JinjaTemplate("qwen2", _QWEN2_SOURCE, end_token="<|im_end|>"),
        JinjaTemplate("mistral", _MISTRAL_SOURCE),
    ]
