"""A tokenizer's files, read without loading it: their presence, the context length and the chat template."""

from pathlib import Path
from typing import cast

from vila_core.checkpoint.json_files import Section, read_section
from vila_core.errors import CheckpointError
from vila_core.input_files import read_input_text
from vila_core.tokenizer_folder import VOCABULARIES

_MAX_TEMPLATE_BYTES = 1_000_000

_NO_LIMIT = 10**9
"""transformers writes 10^30 for a tokenizer without a limit."""


def require_tokenizer(folder: Path) -> None:
    """Raise `CheckpointError` unless `folder` contains a tokenizer."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise CheckpointError(
            f"{folder} has no tokenizer: expected one of {', '.join(VOCABULARIES)}. "
            "Copy it from the original checkpoint."
        )


def read_max_length(folder: Path, language: Section) -> int:
    """Return the context length in tokens, media included: the tokenizer's, else the language model's.

    The reference implementation generates up to `tokenizer.model_max_length` positions.
    """
    sources = [read_section(folder / "tokenizer_config.json")] if (folder / "tokenizer_config.json").exists() else []
    for section in (*sources, language):
        if "model_max_length" in section:
            length = section.number("model_max_length", minimum=1)
            if length < _NO_LIMIT:
                return int(length)
    return language.integer("max_position_embeddings")


def read_chat_template(folder: Path) -> str | None:
    """Return the tokenizer's own Jinja template, None if it has none.

    transformers 4 stores it in `tokenizer_config.json` (a string or a list), 5 in `chat_template.jinja`.
    """
    if (folder / "chat_template.jinja").exists():
        return read_input_text(folder / "chat_template.jinja", max_bytes=_MAX_TEMPLATE_BYTES)
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (folder / name).exists():
            section = read_section(folder / name)
            template = _chosen_template(section)
            if template is not None:
                return template
    return None


def _chosen_template(section: Section) -> str | None:
    value = section.values.get("chat_template")
    if isinstance(value, list):
        named = [
            Section(cast(dict[str, object], item), section.source)
            for item in cast(list[object], value)
            if isinstance(item, dict)
        ]
        return next((item.string("template") for item in named if item.string("name") == "default"), None)
    return section.string("chat_template") if "chat_template" in section else None
