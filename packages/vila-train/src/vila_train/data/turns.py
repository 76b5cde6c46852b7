"""Checks that every conversation passes, whatever its format: roles, order and content."""

from collections.abc import Mapping, Sequence

from vila_core.chat import Message, Role
from vila_core.errors import shown
from vila_train.data.conversations import ContextMessage, SampleError

MAX_TURNS = 10_000
MAX_CHARACTERS = 16 * 1024 * 1024
"""Of all texts of a sample: millions of tokens, more than any context."""

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
"""Names of roles: LLaVA's "human" and "gpt", and those of chat messages."""


def role_of(turn: Mapping[str, object], key: str) -> Role:
    """Return the role of a turn. Raises `SampleError` if it is missing or unknown."""
    stated = turn.get(key)
    if stated is None:
        keys = ", ".join(map(shown, turn)) or "no keys"
        raise SampleError(f"a message has no '{key}', which says who speaks, but {keys}.", "unknown role")
    if not isinstance(stated, str) or stated not in ROLES:
        raise SampleError(f"unknown role {shown(stated)}. Known: {', '.join(ROLES)}.", "unknown role")
    return ROLES[stated]


def text_of(turn: Mapping[str, object], key: str) -> str:
    """Return the text of a turn. Raises `SampleError` if it is missing or not a text."""
    text = turn.get(key)
    if not isinstance(text, str):
        raise SampleError(f"'{key}' of a message is {shown(text)}; expected a text.", "message is not a text")
    return text


def check_turns(messages: Sequence[Message]) -> Sequence[Message]:
    """Return a conversation that a model can learn from: the user asks, the assistant answers, in turn.

    Raises:
        SampleError: it is empty, too long, does not start with the user, roles do not alternate, a message is empty, or
            no answer is learned.
    """
    if not messages:
        raise SampleError("it has no messages.", "empty conversation")
    if len(messages) > MAX_TURNS:
        raise SampleError(f"it has {len(messages):,} messages; the limit is {MAX_TURNS:,}.", "too large")
    start = 1 if messages[0].role == "system" else 0
    for index, message in enumerate(messages[start:]):
        expected = ("user", "assistant")[index % 2]
        if message.role != expected:
            problem = "it does not start with the user" if not index else "user and assistant do not take turns"
            raise SampleError(
                f"{problem}: message {start + index + 1} is from the {message.role}.",
                problem.removeprefix("it "),
            )
    for number, message in enumerate(messages, 1):
        if not _has_content(message) and message.role != "system":
            raise SampleError(f"message {number} is empty.", "empty message")
    if not any(message.role == "assistant" for message in messages):
        raise SampleError("it has no answer.", "no answer")
    if not any(is_learned(message) for message in messages):
        raise SampleError("none of its answers is learned: all have weight 0.", "no answer")
    if sum(len(part) for message in messages for part in _parts(message) if isinstance(part, str)) > MAX_CHARACTERS:
        raise SampleError(f"its texts have more than {MAX_CHARACTERS:,} characters.", "too large")
    return messages


def is_learned(message: Message) -> bool:
    """Return whether the tokens of a message have labels."""
    return message.role == "assistant" and not isinstance(message, ContextMessage)


def _parts(message: Message) -> Sequence[object]:
    content: object = message.content
    return content if isinstance(content, list | tuple) else [content]


def _has_content(message: Message) -> bool:
    return any(not isinstance(part, str) or part.strip() for part in _parts(message))
