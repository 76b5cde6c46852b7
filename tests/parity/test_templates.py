"""Chat templates, tokenization and stop tokens against the reference."""

import json
from pathlib import Path
from typing import Any

import pytest

from vila_core.chat import ChatTemplate, JinjaTemplate, Turn, builtin_templates
from vila_core.tokenizer import Tokenizer

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
TEMPLATES: dict[str, ChatTemplate] = {template.name: template for template in builtin_templates()}
CONVERSATION = [
    Turn("user", "<image>\nWhat is in the image?"),
    Turn("assistant", "A cat."),
    Turn("user", "What color?"),
    Turn("assistant", "Black, I think."),
    Turn("user", "Are you sure?\nThink twice."),
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# Folders of recorded tokenizers. Those that are not committed need `--recordings`.
HOMES = {
    "qwen2": "golden/nvila_lite_56",
    "qwen2_preadd": "golden/nvila_56",
    "qwen2_time": "golden/nvila_video_tsp_112",
    "llama": "golden/vila15_llama_384",
    "llama3": "golden2/vila15_llama3_384",
    "yi": "golden2/vila15_yi_intern_448",
}


def load_tokenizer(golden: Path, name: str) -> Tokenizer:
    family, variant = HOMES[name].split("/")
    folder = golden.parent.parent / family / variant / "checkpoint" / "llm"
    if name == "llama" and not folder.exists():  # the same tokenizer is in the CLIP variant
        folder = golden.parent.parent / "golden2/vila15_clip_336/checkpoint/llm"
    if not folder.exists():
        pytest.skip(f"the tokenizer of {HOMES[name]} is not among these recordings")
    return Tokenizer.from_folder(folder)


def get_template(tokenizer: Tokenizer, mode: str) -> ChatTemplate:
    if mode != "auto":
        return TEMPLATES[mode]
    assert tokenizer.chat_template is not None
    return JinjaTemplate("auto", tokenizer.chat_template)


def as_turns(messages: list[list[str]]) -> list[Turn]:
    return [Turn(ROLES[role], text.strip()) for role, text in messages]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["hermes-2", "llama_3", "v1", "vicuna_v1"])
def test_separator_templates(golden: Path, name: str):
    recorded = json.loads((golden / "conversations.json").read_text())["conv_templates"][name]
    assert TEMPLATES[name].render(CONVERSATION, {}) == recorded["generation"]
    complete = [*CONVERSATION, Turn("assistant", "Yes.")]
    assert TEMPLATES[name].render(complete, {}, generation_prompt=False) == recorded["complete"]


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_jinja_templates(golden: Path, name: str):
    recorded = json.loads((golden / "conversations.json").read_text())["chat_templates"][name]
    template = TEMPLATES[name]
    assert isinstance(template, JinjaTemplate)
    assert template.source == recorded["template_after_reference_cleanup"]
    assert template.render(CONVERSATION, SPECIAL) == recorded["three_turn_generation"]
    with_system = [Turn("system", "Be brief."), *CONVERSATION]
    assert template.render(with_system, SPECIAL) == recorded["with_system"]
    assert template.render(CONVERSATION, SPECIAL, system_prompt=False) == recorded["empty_system"]


def test_jinja_of_remote_code(golden: Path):
    recorded = json.loads((golden / "conversations.json").read_text())["remote_jinja"]
    assert recorded
    for name, record in recorded.items():
        template = JinjaTemplate(name, record["after_cleanup"])
        assert template.render(CONVERSATION, SPECIAL) == record["generation"], name


def test_stop_tokens(golden: Path, golden2: Path):
    recorded = json.loads((golden2 / "stop_tokens.json").read_text())
    checked = 0
    for key, record in recorded.items():
        if key.startswith("model:") or record.get("stop_token_ids") is None:
            continue
        name, mode = key.split("/")
        try:
            tokenizer = load_tokenizer(golden, name)
        except pytest.skip.Exception:
            continue
        assert tokenizer.stop_token_ids(get_template(tokenizer, mode)) == frozenset(record["stop_token_ids"]), key
        checked += 1
    assert checked >= 8


@pytest.mark.parametrize("name", ["qwen2", "qwen2_preadd", "qwen2_time", "vicuna_v1", "hermes-2", "llama_3"])
def test_tokenization(golden: Path, name: str):
    record: dict[str, Any] = json.loads((golden / "tokenization.json").read_text())[name]
    tokenizer = load_tokenizer(
        golden, next(key for key, home in HOMES.items() if home.endswith(f"/{record['checkpoint']}"))
    )
    template = get_template(tokenizer, record["conversation_mode"])
    assert len(tokenizer) == record["len"]
    assert tokenizer.media_token_ids == record["media_token_ids"]
    assert tokenizer.sentinel_token_id == record["sentinel_token_id"]
    assert tokenizer.max_length == record["model_max_length"]
    assert tokenizer.encode("\n") == record["newline_ids"]
    assert tokenizer.encode("") == record["empty_ids"]
    assert tokenizer.stop_token_ids(template) == frozenset(record["stop_token_ids"])
    for conversation in record["convs"].values():
        turns = as_turns(conversation["messages"])
        for key, system_prompt in (("preprocess_no_system_False", True), ("preprocess_no_system_True", False)):
            text = template.render(
                turns, tokenizer.special_tokens, generation_prompt=False, system_prompt=system_prompt
            )
            assert tokenizer.encode(text) == conversation[key]["input_ids"]
