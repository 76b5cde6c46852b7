"""Tokens that training adds to a model's vocabulary."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from vila_core.checkpoint.json_files import read_json
from vila_core.config import TimeTokenConfig
from vila_core.tokenizer import Tokenizer
from vila_core.tokenizer_folder import TOKENIZER_FILES

CONFIG = "tokenizer_config.json"


def add_time_tokens(tokenizer: Tokenizer, folder: Path, times: TimeTokenConfig) -> "TemporaryDirectory[str] | None":
    """Add the time tokens that `tokenizer` lacks.

    Return a temporary folder with the files of the new tokenizer, None if it has all of them. Media tokens are saved
    too, since they have lower ids.

    Args:
        tokenizer: is changed.
        folder: where it was loaded from.
        times: number and format of the tokens.
    """
    tokens = [times.format.format(t=t) for t in range(times.count)]
    if not tokenizer.hf.add_tokens(tokens):
        return None
    saved = TemporaryDirectory(prefix="vila-tokenizer-")
    target = Path(saved.name)
    tokenizer.hf.save_pretrained(target)
    _keep_settings(folder, target)
    return saved


def _keep_settings(source: Path, target: Path) -> None:
    """Undo what transformers 5 writes that 4 does not read: the names of classes, and where the template is."""
    before = read_json(source / CONFIG) if (source / CONFIG).exists() else {}
    after = read_json(target / CONFIG)
    after.pop("backend", None)
    for key in ("tokenizer_class", "chat_template"):
        if key in before:
            after[key] = before[key]
    (target / CONFIG).write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if "chat_template" in before:
        (target / "chat_template.jinja").unlink(missing_ok=True)
    for name in TOKENIZER_FILES:  # what transformers did not write anew, such as the template's own file
        if (source / name).exists() and not (target / name).exists() and name.startswith("chat_template"):
            shutil.copyfile(source / name, target / name)
