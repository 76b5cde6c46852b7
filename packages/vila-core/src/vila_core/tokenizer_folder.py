"""A folder with only a checkpoint's tokenizer files, from which transformers loads the tokenizer.

Left alone, `AutoTokenizer` also builds the config object of the model in the same folder. That object validates (and
acts on) keys that have nothing to do with a tokenizer, so that an odd `config.json` looks like a damaged tokenizer.
"""

import json
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vila_core.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")

TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""All files that a transformers tokenizer may have; none is code."""

_SMALL_JSON = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")
"""Read and written anew, so that transformers sees plain UTF-8 without a byte order mark."""


@contextmanager
def tokenizer_folder(path: Path) -> Generator[Path]:
    """Yield a temporary folder with nothing but the tokenizer's files in `path`.

    Raises:
        CheckpointError: a JSON file is damaged, or names a class that is not a tokenizer.
    """
    with tempfile.TemporaryDirectory(prefix="vila-tokenizer-") as name:
        folder = Path(name)
        for file in TOKENIZER_FILES:
            source = path / file
            if not source.exists():
                continue
            if file in _SMALL_JSON:
                values = _read_json(source)
                _require_tokenizer_class(values, str(source))
                (folder / file).write_text(json.dumps(values), encoding="utf-8")
            else:
                _link(source.resolve(), folder / file)
        yield folder


def tokenizer_config(path: Path) -> "PreTrainedConfig":
    """Return the default config of the model type in `path`, by which transformers chooses the tokenizer's class.

    Of the model's own config it has the type and the name of a tokenizer class, no other value.

    Raises:
        CheckpointError: the config names a class that is not a tokenizer.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    file = path / "config.json"
    values = _read_json(file) if file.exists() else {}
    model_type = values.get("model_type")
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        config = CONFIG_MAPPING[model_type]()
    else:
        config = PreTrainedConfig()
    if values.get("tokenizer_class") is not None:
        _require_tokenizer_class(values, str(file))
        config.tokenizer_class = values["tokenizer_class"]  # pyright: ignore[reportAttributeAccessIssue]
    return config


def _require_tokenizer_class(values: dict[str, object], source: str) -> None:
    """Refuse the name of anything in transformers that is not a tokenizer: it would be asked to load the folder."""
    name = values.get("tokenizer_class")
    if name is None:
        return
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    if not isinstance(name, str):
        raise CheckpointError(f"{source}: 'tokenizer_class' is {str(name)[:100]!r}; expected a string.")
    if name in TOKENIZER_MAPPING_NAMES.values() or name.removesuffix("Fast") in TOKENIZER_MAPPING_NAMES.values():
        return
    named = getattr(transformers, name, None)  # None: no class of this name; tokenizer.json says all there is to know
    if named is None or (isinstance(named, type) and issubclass(named, transformers.PreTrainedTokenizerBase)):
        return
    raise CheckpointError(f"{source}: 'tokenizer_class' is {name!r}, which is not a tokenizer of transformers.")


def _read_json(path: Path) -> dict[str, object]:
    try:
        values: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a JSON {type(values).__name__}; expected an object.")
    return cast("dict[str, object]", values)


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:  # a file system or an account without symbolic links
        shutil.copyfile(source, target)
