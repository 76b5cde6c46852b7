"""Tokenizers that would hang, grow, drop the text or name tokens without embeddings are refused at load."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import vila_core as vila
from vila_core.checkpoint.embedded import embedded_model
from vila_core.errors import CheckpointError


def edited(folder: Path, edit: dict[str, Any], name: str = "tokenizer.json") -> Path:
    shutil.copytree(embedded_model(), folder, dirs_exist_ok=True)
    path = folder / "llm" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    return folder


def replacements(content: str, times: int) -> dict[str, Any]:
    rule = {"type": "Replace", "pattern": {"String": "e"}, "content": content}
    return {"normalizer": {"type": "Sequence", "normalizers": [rule] * times}}


FAR = {"id": 10**6, "content": "<far>", "special": True} | dict.fromkeys(
    ("single_word", "lstrip", "rstrip", "normalized"), False
)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (replacements("e" * 10, 12), "replacements multiply the length of a text"),
        (replacements("e", 1000), "has 1006 rules"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "knows no text"),
        ({"added_tokens": [FAR | {"content": ""}]}, "an added token has the text ''"),
        ({"added_tokens": [FAR | {"id": 2**40}]}, "the added token '<far>' has the id 1099511627776"),
        ({"added_tokens": [FAR] * 30_000}, "has 30,000 added tokens; the limit is 20,000"),
        ({"normalizer": {"type": "Evil"}}, "cannot be read"),
    ],
    ids=range(7),
)
def test_hostile_tokenizers_are_refused(tmp_path: Path, edit: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        vila.load(edited(tmp_path, edit))


TOKENIZER = (embedded_model() / "llm" / "tokenizer.json").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "tokenizer.json has no 'added_tokens'"),
        ("", "tokenizer.json is empty"),
        (" \n", "tokenizer.json is empty"),
        ("[]", "tokenizer.json holds a JSON list; expected an object"),
        ("7", "tokenizer.json holds a JSON int; expected an object"),
        (TOKENIZER[: len(TOKENIZER) // 2], "tokenizer.json is not valid JSON: Expecting"),
        ('{"added_tokens": []}', "tokenizer.json has no 'model'"),
        ('{"added_tokens": [], "model": null}', "its 'model' is None; expected an object"),
        ('{"added_tokens": [], "model": []}', r"its 'model' is \[\]; expected an object"),
        ('{"added_tokens": [], "model": {"type": "BPE"}}', "its 'model' has the vocabulary None"),
        ('{"added_tokens": [], "model": {"vocab": {}}}', r"its 'model' has the vocabulary \{\}"),
        ('{"added_tokens": null, "model": {"vocab": {"a": 0}}}', "its 'added_tokens' are not a list"),
    ],
)
def test_damaged_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    shutil.copytree(embedded_model(), tmp_path, dirs_exist_ok=True)
    (tmp_path / "llm" / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"^The tokenizer in '.*' is damaged.*{message}.* Copy it from the orig"):
        vila.load(tmp_path)


def test_an_empty_vocabulary_is_refused(tmp_path: Path) -> None:
    edited(tmp_path, {"tokenizer_class": "LlamaTokenizer"}, "tokenizer_config.json")
    (tmp_path / "llm" / "tokenizer.json").unlink()
    (tmp_path / "llm" / "tokenizer.model").touch()
    with pytest.raises(CheckpointError, match="tokenizer"):
        vila.load(tmp_path)


def test_tokens_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    single = [{"SpecialToken": {"id": "<far>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<far>": {"id": "<far>", "ids": [10**6], "tokens": ["<far>"]}}
    processor = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    with pytest.raises(CheckpointError, match=r"has the id 1,000,000, but the embedding has 1,024 rows"):
        vila.load(edited(tmp_path, {"post_processor": processor}))


def test_a_post_processor_that_adds_many_tokens_is_refused(tmp_path: Path) -> None:
    """100 parts of 100 tokens each; 100,000 parts took 1.8 GB."""
    single = [{"SpecialToken": {"id": "x", "type_id": 0}}] * 100 + [{"Sequence": {"id": "A", "type_id": 0}}]
    special = {"x": {"id": "x", "ids": [1] * 100, "tokens": ["x"] * 100}}
    processor = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    with pytest.raises(CheckpointError, match="adds more than 1,000 tokens to each text"):
        vila.load(edited(tmp_path, {"post_processor": processor}))


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{% for i in range(10**9) %}x{% endfor %}", "{% for"])
def test_templates_that_fail_are_named_at_load(tmp_path: Path, template: str) -> None:
    with pytest.raises(vila.VilaError, match=r"^Chat template 'auto' "):
        vila.load(edited(tmp_path, {"chat_template": template}, "tokenizer_config.json"))
