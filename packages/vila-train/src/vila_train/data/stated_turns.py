"""Turns as a data file states them: who speaks, which answers are learned, and fields that training cannot use.

An answer that is not learned is context: the model reads it, and its tokens have no labels. Data say so with

- `weight`, 0 or 1: OpenAI's fine-tuning format (`FineTuneChatCompletionRequestAssistantMessage` of its OpenAPI
  specification), and ShareGPT files such as SlimOrca's, which give all other turns null or 0;
- `loss`, true or false, and `loss_scale`, a factor, of which only 0 and 1 are read here: ms-swift (Custom Dataset),
  where neither has an effect on other roles;
- `train`, true or false: axolotl (`message_field_training: train`).

A sample's `system` is a system message (LLaMA-Factory's data/README.md, ms-swift) unless the first turn is one. Fields
that change what the model should read or learn, and that are not read, make the sample unusable.
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import cast

from vila_core.chat import Role
from vila_core.errors import shown, warn
from vila_train.data.conversations import SampleError
from vila_train.data.turns import role_of

_FLAGS = ("weight", "loss", "loss_scale", "train")
_OF_ALL_ROLES = ("weight", "train")
_UNSUPPORTED_IN_TURNS = {
    **dict.fromkeys(("tool_calls", "function_call"), "calls of tools cannot be learned"),
    **dict.fromkeys(("train_detail", "training_detail"), "only whole answers can be left out; use 'train'"),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "write it into the text of the answer"),
    "refusal": "write it as the text of the answer",
    "audio": "there is no audio",
}
_UNSUPPORTED_IN_SAMPLES = {
    **dict.fromkeys(("tools", "functions"), "tools cannot be learned"),
    **dict.fromkeys(("audio", "audios"), "there is no audio"),
    **dict.fromkeys(("chosen", "rejected", "rejected_response", "rejected_messages"), "preferences are not learned"),
    "chat_template_kwargs": "the template has no options",
}


@dataclass(frozen=True)
class StatedTurn:
    """A turn of a record.

    Attributes:
        role: who speaks.
        fields: its own, with the content.
        learned: False for an answer that is context.
    """

    role: Role
    fields: Mapping[str, object]
    learned: bool = True


def read_turns(record: Mapping[str, object], key: str, role_key: str, content_key: str) -> list[StatedTurn]:
    """Return the turns of a record.

    Args:
        record: of the data file.
        key: of the list of turns.
        role_key: of a turn's role.
        content_key: of a turn's content, which `system` of the record becomes, too.

    Raises:
        SampleError: the record has no turns, a role is unknown, a flag has an impossible value, or a field is not
            supported.
    """
    require_none(record, _UNSUPPORTED_IN_SAMPLES, "the sample")
    if record.get("kto_tag") is False:
        raise SampleError("'kto_tag' is false: its answer is a bad example.", "bad example")
    turns = [_read(turn, role_key) for turn in turns_in(record, key)]
    system = record.get("system")
    if _is_empty(system) or turns[0].role == "system":
        return turns
    return [StatedTurn("system", {role_key: "system", content_key: system}), *turns]


def turns_in(record: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    """Return the list of turns of a record. Raises `SampleError` if it is missing, empty, or not a list of objects."""
    turns = record.get(key)
    if isinstance(turns, Mapping):  # some tables hold a list of objects as an object of lists
        turns = _as_rows(cast("Mapping[str, object]", turns))
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in cast("list[object]", turns)):
        raise SampleError(f"'{key}' is {shown(turns)}; expected a list of messages.", "no messages")
    if not turns:
        raise SampleError("it has no messages.", "empty conversation")
    return cast("list[Mapping[str, object]]", turns)


def require_none(fields: Mapping[str, object], unsupported: Mapping[str, str], owner: str) -> None:
    """Raise `SampleError` if a field that training cannot use has a value.

    Args:
        fields: of a sample, a message or a part of one.
        unsupported: names of such fields, and why each is not read.
        owner: what has the fields, for the message.
    """
    for name, why in unsupported.items():
        if not _is_empty(fields.get(name)):
            raise SampleError(
                f"'{name}' of {owner} is not supported: {why}. Remove the field or the sample.",
                f"unsupported field '{name}'",
            )


def _read(turn: Mapping[str, object], role_key: str) -> StatedTurn:
    role = role_of(turn, role_key)
    require_none(turn, _UNSUPPORTED_IN_TURNS, "a message")
    if role_key != "name" and not _is_empty(turn.get("name")):
        warn("'name' of messages has no effect: chat templates do not say which of several users or assistants speaks.")
    flags = _FLAGS if role == "assistant" else _OF_ALL_ROLES
    stated = {name: _flag(name, turn[name]) for name in flags if turn.get(name) is not None}
    if role != "assistant":
        if on := next((name for name, learned in stated.items() if learned), None):
            raise SampleError(
                f"'{on}' of a message from the {role} is {shown(turn[on])}, but only the assistant's are learned.",
                "learned message is not the assistant's",
            )
        return StatedTurn(role, turn)
    if len(set(stated.values())) > 1:
        values = ", ".join(f"'{name}' {shown(turn[name])}" for name in stated)
        raise SampleError(f"a message both is and is not learned: {values}.", "contradictory weights")
    return StatedTurn(role, turn, all(stated.values()))


def _flag(name: str, value: object) -> bool:
    """Return whether a flag says that an answer is learned."""
    if name in ("loss", "train"):
        if isinstance(value, bool):
            return value
        raise SampleError(f"'{name}' of a message is {shown(value)}; expected true or false.", "impossible weight")
    if isinstance(value, int | float) and not isinstance(value, bool) and value in (0, 1):
        return bool(value)
    raise SampleError(
        f"'{name}' of a message is {shown(value)}; expected 0 (context) or 1 (learned).", "impossible weight"
    )


def _is_empty(value: object) -> bool:
    """Return whether a field says nothing: tables give every turn and sample all fields, as null or empty."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")  # tools may be JSON in a text
    return value is None or (isinstance(value, Sized) and not len(value))


def _as_rows(columns: Mapping[str, object]) -> list[dict[str, object]]:
    lists = [cast("Sequence[object]", values) for values in columns.values() if isinstance(values, list)]
    if len(lists) < len(columns) or len({len(values) for values in lists}) > 1:
        raise SampleError("its messages are an object; expected a list.", "no messages")
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
