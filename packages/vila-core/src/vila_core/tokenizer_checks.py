"""Checks of a tokenizer's files before another library reads them: sizes, added tokens, and rules that never end.

A tokenizer is a small program: replacements that multiply a text, and regular expressions that take exponential time.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

from vila_core.child_process import ChildEndedError, ChildFailedError, run_in_child
from vila_core.errors import CheckpointError, shown
from vila_core.input_files import check_input, read_input_text

FILES = {
    "tokenizer.json": 64 * 2**20,
    "tokenizer.model": 64 * 2**20,
    "vocab.json": 64 * 2**20,
    "merges.txt": 64 * 2**20,
    "added_tokens.json": 16 * 2**20,
    "special_tokens_map.json": 2**20,
    "tokenizer_config.json": 16 * 2**20,
    "chat_template.jinja": 2**20,
    "chat_template.json": 2**20,
    "config.json": 16 * 2**20,
}
"""All files that transformers reads for a tokenizer, and how many bytes each may have."""
MAX_ADDED_TOKENS = 20_000
MAX_SPECIAL_TOKENS = 2_000
"""Limit on special tokens that transformers adds: each takes longer than the one before."""
MAX_RULES = 100
"""Limit on the steps of a tokenizer, such as replacements."""
MAX_GROWTH = 64
"""Limit on how many characters the replacements may make of one."""
MAX_ADDED_TO_TEXT = 1_000
"""Limit on the tokens that a post-processor adds to each text. Real ones add one or two."""
PROBE_SECONDS = 10.0

_KNOWN_EXPRESSIONS = frozenset(
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
    + digits
    + "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
    for digits in ("\\p{N}", "\\p{N}{1,3}")
)
"""Of Qwen2 and Llama 3: they need no trial."""


def check_tokenizer_files(folder: Path) -> None:
    """Raise `CheckpointError` if a file of the tokenizer in `folder` is not a regular file, too large or hostile."""
    extra = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if len(extra) > MAX_RULES:
        raise CheckpointError(f"'{folder / 'additional_chat_templates'}' has {len(extra)} templates; expected a few.")
    for path, max_bytes in [
        *((folder / name, size) for name, size in FILES.items()),
        *((path, 2**20) for path in extra),
    ]:
        if path.exists() or path.is_symlink():
            check_input(path, max_bytes=max_bytes)
    if (path := folder / "tokenizer.json").exists():
        _check_tokenizer_json(path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (path := folder / name).exists():
            _check_special_tokens(path)


def _read(path: Path) -> dict[str, Any]:
    text = read_input_text(path, max_bytes=FILES[path.name])
    if not text.strip():
        _refuse(path, f"{path.name} is empty")
    try:
        content: object = json.loads(text)
    except RecursionError:
        _refuse(path, f"{path.name} nests too deeply")
    except ValueError as error:
        _refuse(path, f"{path.name} is not valid JSON: {error}")
    if not isinstance(content, dict):
        _refuse(path, f"{path.name} holds a JSON {type(content).__name__}; expected an object")
    return cast("dict[str, Any]", content)


def _check_special_tokens(path: Path) -> None:
    fields = _read(path)
    for key in ("additional_special_tokens", "extra_special_tokens"):
        tokens = fields.get(key)
        if isinstance(tokens, list | dict) and len(cast("list[object]", tokens)) > MAX_SPECIAL_TOKENS:
            _refuse(path, f"{path.name} has more than {MAX_SPECIAL_TOKENS:,} '{key}'")


def _check_tokenizer_json(path: Path) -> None:
    fields = _read(path)
    _check_model(path, fields)
    _check_added_tokens(path, fields["added_tokens"])
    parts = [fields.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    rules = [rule for part in parts for rule in _rules(path, part, 0)]
    if len(rules) > MAX_RULES:
        _refuse(path, f"it has {len(rules)} rules, more than the {MAX_RULES} of any real tokenizer")
    if sum(map(_tokens_added, rules)) > MAX_ADDED_TO_TEXT:
        _refuse(path, f"its post-processor adds more than {MAX_ADDED_TO_TEXT:,} tokens to each text")
    growth = 1.0
    for rule in rules:
        growth *= _growth(rule)
    if growth > MAX_GROWTH:
        _refuse(path, "its replacements multiply the length of a text")
    expressions = {found for rule in rules for found in [_expression(rule)] if found is not None}
    if expressions - _KNOWN_EXPRESSIONS:
        _try_out(path)


def _check_model(path: Path, fields: dict[str, Any]) -> None:
    """Refuse a file without the keys that every tokenizer has: libraries would name one of them, and no file."""
    if missing := [key for key in ("added_tokens", "model") if key not in fields]:
        _refuse(path, f"{path.name} has no '{missing[0]}'")
    model = fields["model"]
    if not isinstance(model, dict):
        _refuse(path, f"its 'model' is {shown(model)}; expected an object")
    vocabulary = cast("dict[str, object]", model).get("vocab")
    if not isinstance(vocabulary, dict | list) or not vocabulary:
        _refuse(path, f"its 'model' has the vocabulary {shown(vocabulary)}; expected the tokens")


def _check_added_tokens(path: Path, tokens: object) -> None:
    if not isinstance(tokens, list):
        _refuse(path, "its 'added_tokens' are not a list")
    if len(cast("list[object]", tokens)) > MAX_ADDED_TOKENS:
        _refuse(path, f"it has {len(cast('list[object]', tokens)):,} added tokens; the limit is {MAX_ADDED_TOKENS:,}")
    for token in cast("list[object]", tokens):
        fields = cast("dict[str, Any]", token) if isinstance(token, dict) else {}
        text, token_id = fields.get("content"), fields.get("id")
        if not isinstance(text, str) or not text:
            _refuse(path, f"an added token has the text {shown(text)}")
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < 2**31:
            _refuse(path, f"the added token {shown(text)} has the id {shown(token_id)}")


def _rules(path: Path, part: object, depth: int) -> Iterator[dict[str, Any]]:
    """Yield a part of a tokenizer and all parts inside it."""
    if depth > 20:
        _refuse(path, "its rules nest too deeply")
    if isinstance(part, dict):
        fields = cast("dict[str, Any]", part)
        if "type" in fields:
            yield fields
        inner = fields.values()
    else:
        inner = cast("list[object]", part) if isinstance(part, list) else []
    for value in inner:
        if isinstance(value, dict | list):
            yield from _rules(path, value, depth + 1)


def _growth(rule: dict[str, Any]) -> float:
    """Return by which factor a replacement may lengthen a text."""
    if rule.get("type") not in ("Replace", "Prepend"):
        return 1.0
    added = len(str(rule.get("content", rule.get("prepend", ""))))
    pattern = rule.get("pattern")
    literal = cast("dict[str, object]", pattern).get("String") if isinstance(pattern, dict) else None
    if isinstance(literal, str) and literal:
        return max(1.0, added / len(literal))
    return max(1.0, added + (rule.get("type") == "Replace"))  # an expression may match the empty text


def _tokens_added(rule: dict[str, Any]) -> int:
    """Return how many tokens a template adds to one text, at most; a part of it may stand for several."""
    if rule.get("type") != "TemplateProcessing":
        return 0
    special = rule.get("special_tokens")
    named = cast("dict[str, Any]", special).values() if isinstance(special, dict) else ()
    lists = [cast("dict[str, object]", one).get("ids") for one in named if isinstance(one, dict)]
    lengths = [len(cast("list[object]", ids)) for ids in lists if isinstance(ids, list)]
    parts = rule.get("single")
    return len(cast("list[object]", parts)) * max(lengths, default=0) if isinstance(parts, list) else 0


def _expression(rule: dict[str, Any]) -> str | None:
    pattern = rule.get("pattern")
    found = cast("dict[str, object]", pattern).get("Regex") if isinstance(pattern, dict) else None
    return found if isinstance(found, str) else None


def _try_out(path: Path) -> None:
    """Let a tokenizer with regular expressions of its own read long runs of each character, in a child process."""

    def encode_runs() -> bytes:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        for character in map(chr, range(0x20, 0x7F)):
            tokenizer.encode(character * 1000 + "\n!", add_special_tokens=False)
        tokenizer.encode("ab" * 1000 + "!", add_special_tokens=False)
        return b""

    try:
        run_in_child(encode_runs, PROBE_SECONDS)
    except ChildFailedError as error:
        _refuse(path, str(error))
    except ChildEndedError:
        _refuse(path, f"its regular expressions take more than {PROBE_SECONDS:g} s for short texts, or crash")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise CheckpointError(
        f"The tokenizer in '{path.parent}' is damaged or hostile: {reason}. Copy it from the original checkpoint."
    )
