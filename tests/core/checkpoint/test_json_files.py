"""JSON of a checkpoint: read in every encoding that editors write, refused where readers would disagree."""

import json
from pathlib import Path

import pytest

from vila_core.checkpoint.json_files import parse_json_object, read_json, read_section
from vila_core.errors import CheckpointError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_encoding_of_editors_is_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes('{"model_type": "llavä 🙂", "n": 1e308}'.encode(encoding))
    assert read_json(tmp_path / "config.json") == {"model_type": "llavä 🙂", "n": 1e308}


REFUSED = {
    '{"a": 1e999}': "1e999 is beyond the range",
    '{"a": -1e999}': "-1e999 is beyond the range",
    '{"a": NaN}': "NaN is not a JSON number",
    '{"a": -Infinity}': "-Infinity is not a JSON number",
    '{"a": %s}' % ("9" * 5000): "a number has 5,000 digits",
    '{"a": -%s}' % ("9" * 400): "a number has 401 digits",
    '{"a": 1, "b": 2, "a": 3}': "the key 'a' stands twice",
    '{"b": {"a": 1, "a": 1}}': "the key 'a' stands twice",
    r'{"a": "\ud800"}': "half of a surrogate pair",
    r'{"\uDFFF": 1}': "half of a surrogate pair",
    r'{"a": ["x", {"b": "\ud83d\u0041"}]}': "half of a surrogate pair",
    r'{"a": "x\u0000y"}': "null character",
    r'{"\u0000": 1}': "null character",
    '{"a": "\0"}': "not valid JSON",
    "": "it is empty",
    " \n": "it is empty",
    "\0" * 4096: "filled with zeros",
    "[]": "holds a JSON list",
    "3": "holds a JSON int",
    '{"a": 1': "not valid JSON",
    '{"a": 1}}': "not valid JSON",
    "[" * 10**5: "nests too deeply|not valid JSON",
    '{"a":' * 200 + "1" + "}" * 200: "nests too deeply",
    '{"a": [' + "[]," * 200_001 + "1]}": "too many values",
    '{"a": [' + "1," * 400_002 + "1]}": "too many values",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:20].replace("\0", "0"))
def test_what_readers_would_not_agree_on_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=REFUSED[text]) as caught:
        read_json(tmp_path / "config.json")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("data", [b'{"a": "\xff"}', b"\xff\xfe{\0", b"\xed\xa0\x80", b"\x80"])
def test_damaged_text_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="not valid JSON"):
        parse_json_object(data, "config.json")


def test_a_null_character_may_be_a_token() -> None:
    text = json.dumps({"vocab": {"\0": 3, "🙂": 4}})
    assert parse_json_object(text, "tokenizer.json", is_vocabulary=True) == {"vocab": {"\0": 3, "🙂": 4}}


def test_a_hundred_thousand_keys_are_read() -> None:
    assert len(parse_json_object(json.dumps({str(n): [n] for n in range(100_000)}), "index")) == 100_000


@pytest.mark.parametrize("value", [10**200, "x" * 10**6, [[]] * 1000, {"a": [0] * 10**5}, True, 1.5])
def test_wrong_values_are_shown_briefly(value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"layers": value}))
    section = read_section(tmp_path / "config.json")
    if value == 10**200:
        assert section.number("layers") == 1e200
        return
    with pytest.raises(CheckpointError, match=r"'layers' is .*; expected a whole number") as caught:
        section.integer("layers")
    assert len(str(caught.value)) < 400
