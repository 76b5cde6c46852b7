"""Fields of messages besides role and content: which answers are learned, and what cannot be read."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from tests.train.data.conftest import Open, sample_error

from vila_core.errors import VilaWarning
from vila_core.media import MediaLimits
from vila_core.model import VilaModel
from vila_core.plugins.loader import load_plugins
from vila_core.tokenizer import Tokenizer
from vila_train.data.conversations import Conversation
from vila_train.data.turns import is_learned
from vila_train.labels import IGNORE_INDEX
from vila_train.samples import Encoder, TrainingSample

NULLS = dict.fromkeys(("weight", "loss", "train", "tool_calls", "name", "refusal"))


def chat(*answers: Mapping[str, Any], user: Mapping[str, Any] | None = None, **record: object) -> dict[str, Any]:
    """Return chat messages: a question "Q?" before each answer "A0", "A1" …, with more fields of each."""
    turns = [
        turn
        for number, fields in enumerate(answers)
        for turn in (
            {"role": "user", "content": "Q?", **(user or {})},
            {"role": "assistant", "content": f"A{number}", **fields},
        )
    ]
    return {"messages": turns, **record}


def llava(*answers: Mapping[str, Any], user: Mapping[str, Any] | None = None, **record: object) -> dict[str, Any]:
    """Return the same in LLaVA's format."""
    renamed = {"user": "human", "assistant": "gpt"}
    turns = [
        {"from": renamed[turn.pop("role")], "value": turn.pop("content"), **turn}
        for turn in chat(*answers, user=user)["messages"]
    ]
    return {"conversations": turns, **record}


def learned(conversation: Conversation) -> list[bool]:
    """Return of each answer whether it is learned."""
    return [is_learned(message) for message in conversation.messages if message.role == "assistant"]


@pytest.mark.parametrize("make", [chat, llava])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([{}, {}], [True, True]),
        ([{"weight": 0}, {"weight": 1}], [False, True]),
        ([{"weight": 0.0}, {"weight": 1.0}], [False, True]),  # a column of a table with nulls
        ([{"weight": 1}, {"weight": 0}], [True, False]),
        ([{"weight": None}, {"weight": 0}], [True, False]),
        ([{"loss": False}, {"loss": True}], [False, True]),
        ([{"loss_scale": 0}, {"loss_scale": 1.0}], [False, True]),
        ([{"train": False}, {"train": True}], [False, True]),
        ([{"train": False, "weight": 0}, {"train": True, "weight": 1}], [False, True]),
        ([NULLS, {**NULLS, "weight": 0}], [True, False]),
    ],
)
def test_answers_that_are_context(
    open_records: Open, make: Callable[..., Any], fields: list[dict[str, Any]], expected: list[bool]
):
    assert learned(open_records(make(*fields))[0]) == expected


@pytest.mark.parametrize("make", [chat, llava])
@pytest.mark.parametrize("user", [{"weight": 0}, {"weight": None}, {"train": False}, {"loss": True}, {"loss_scale": 2}])
def test_questions_are_never_learned(open_records: Open, make: Callable[..., Any], user: dict[str, Any]):
    conversation = open_records(make({}, user=user))[0]
    assert [is_learned(message) for message in conversation.messages] == [False, True]


@pytest.mark.parametrize("make", [chat, llava])
@pytest.mark.parametrize(
    ("answer", "user", "reason"),
    [
        ({"weight": 2}, {}, "impossible weight"),
        ({"weight": 0.5}, {}, "impossible weight"),
        ({"weight": -1}, {}, "impossible weight"),
        ({"weight": True}, {}, "impossible weight"),
        ({"weight": "0"}, {}, "impossible weight"),
        ({"loss_scale": 2.0}, {}, "impossible weight"),
        ({"loss": 0}, {}, "impossible weight"),
        ({"train": "no"}, {}, "impossible weight"),
        ({"weight": 1, "train": False}, {}, "contradictory weights"),
        ({"weight": 0}, {}, "no answer"),
        ({}, {"weight": 1}, "learned message is not the assistant's"),
        ({}, {"train": True}, "learned message is not the assistant's"),
        ({"tool_calls": [{"type": "function"}]}, {}, "unsupported field 'tool_calls'"),
        ({"function_call": {"name": "f"}}, {}, "unsupported field 'function_call'"),
        ({"refusal": "I cannot."}, {}, "unsupported field 'refusal'"),
        ({"audio": {"id": "x"}}, {}, "unsupported field 'audio'"),
        ({"reasoning_content": "Hm."}, {}, "unsupported field 'reasoning_content'"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1}]}, {}, "unsupported field 'train_detail'"),
    ],
)  # fmt: skip
def test_unusable_turns(
    open_records: Open, make: Callable[..., Any], answer: dict[str, Any], user: dict[str, Any], reason: str
):
    assert sample_error(open_records(make(answer, user=user))).reason == reason


@pytest.mark.parametrize("make", [chat, llava])
@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"tools": [{"type": "function"}]}, "unsupported field 'tools'"),
        ({"tools": '[{"type": "function"}]'}, "unsupported field 'tools'"),
        ({"functions": [{"name": "f"}]}, "unsupported field 'functions'"),
        ({"audios": ["a.wav"]}, "unsupported field 'audios'"),
        ({"rejected_response": "No."}, "unsupported field 'rejected_response'"),
        ({"chosen": {"from": "gpt", "value": "x"}}, "unsupported field 'chosen'"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "unsupported field 'chat_template_kwargs'"),
        ({"kto_tag": False}, "bad example"),
    ],
)
def test_unusable_samples(open_records: Open, make: Callable[..., Any], record: dict[str, Any], reason: str):
    assert sample_error(open_records(make({}, **record))).reason == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (chat({}, label=False), "bad example"),
        (chat({}, objects={"ref": ["dog"], "bbox": [[1, 2, 3, 4]]}), "unsupported field 'objects'"),
        (chat({"content": [{"type": "text", "text": "A", "train": False}]}), "unsupported field 'train'"),
        (chat({"content": [{"type": "text", "text": "A", "weight": 0}]}), "unsupported field 'weight'"),
    ],
)
def test_unusable_chat_samples(open_records: Open, record: dict[str, Any], reason: str):
    assert sample_error(open_records(record)).reason == reason


def test_empty_fields_have_no_effect(open_records: Open):
    empty = {"tools": "[]", "functions": [], "audios": [], "objects": {}, "label": True, "kto_tag": True, "system": ""}
    conversation = open_records(chat({"tool_calls": [], "refusal": "", "id": "x"}, **empty))[0]
    assert [message.role for message in conversation.messages] == ["user", "assistant"]


@pytest.mark.parametrize("make", [chat, llava])
def test_the_system_prompt_beside_the_turns(open_records: Open, make: Callable[..., Any]):
    messages = open_records(make({}, system="Be brief."))[0].messages
    assert [message.role for message in messages] == ["system", "user", "assistant"]
    assert list(messages[0].content) == ["Be brief."]  # pyright: ignore
    assert sample_error(open_records(make({}, system=7))).reason == "message is not a text"


def test_a_system_message_wins_over_the_system_prompt_beside_it(open_records: Open):
    record = chat({}, system="Be brief.")
    record["messages"].insert(0, {"role": "system", "content": "Be long."})
    messages = open_records(record)[0].messages
    assert [message.role for message in messages] == ["system", "user", "assistant"]
    assert list(messages[0].content) == ["Be long."]  # pyright: ignore


def test_a_name_has_no_effect_and_a_warning(open_records: Open):
    with pytest.warns(VilaWarning, match="'name' of messages has no effect"):
        conversation = open_records(chat({}, user={"name": "Ann"}))[0]
    assert learned(conversation) == [True]


@pytest.fixture
def encode(new_micro_network: Callable[[], VilaModel], tokenizer: Tokenizer) -> Callable[..., TrainingSample]:
    network = new_micro_network()

    def encode_with(conversation: Conversation, template: str) -> TrainingSample:
        chosen = load_plugins().chat_templates.get(template)
        return Encoder(network, tokenizer, chosen, MediaLimits(fetch=None)).encode("one", conversation.messages)

    return encode_with


@pytest.mark.parametrize("template", ["qwen2", "vicuna_v1", "llama_3", "hermes-2"])
@pytest.mark.parametrize("weights", [(0, 1), (1, 0), (1, 1), (0, 1, 0), (1, 0, 1)])
@pytest.mark.parametrize("content", ["text", "picture"])
def test_the_tokens_of_context_have_no_labels(
    open_records: Open,
    encode: Callable[..., TrainingSample],
    tokenizer: Tokenizer,
    template: str,
    weights: tuple[int, ...],
    content: str,
):
    """Token ids are those of the same conversation without weights; labels are those of the learned answers."""
    record = chat(*({"weight": weight} for weight in weights))
    record["messages"].insert(0, {"role": "system", "content": "Be brief."})
    if content == "picture":
        record["messages"][1]["content"] = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Q?"}]
    sample = encode(open_records(record)[0], template)
    for turn in record["messages"]:
        turn.pop("weight", None)
    whole = encode(open_records(record)[0], template)
    assert list(sample.expanded.ids) == list(whole.expanded.ids)
    answers = _runs(whole.labels)
    assert len(answers) == len(weights)
    expected = [label for answer, weight in zip(answers, weights, strict=True) if weight for label in answer]
    assert [label for label in sample.labels if label != IGNORE_INDEX] == expected
    text = tokenizer.decode([label for label in sample.labels if label != IGNORE_INDEX], skip_special_tokens=False)
    assert [f"A{number}" in text for number in range(len(weights))] == [bool(weight) for weight in weights]


def _runs(labels: Any) -> list[list[int]]:
    """Return the labels of each answer."""
    runs: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORE_INDEX:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
