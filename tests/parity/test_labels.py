"""Training labels against the reference's `preprocess_conversation`."""

import json
import warnings
from pathlib import Path

import pytest
from tests.parity.test_templates import as_turns, get_template, load_tokenizer

from vila_core.errors import PromptError
from vila_train.labels import tokenize_with_labels

# The reference refuses system messages with `auto` (its remote code does not), and its `plain` has no separator.
STRICTER = {"Unexpected sender 'system'", "can only concatenate str"}


def test_label_masks(golden: Path, golden2: Path):
    recorded = json.loads((golden2 / "label_masks.json").read_text())
    conversations = recorded["conversations"]
    checked = 0
    for key, of_mode in recorded["modes"].items():
        name, mode = key.split("/")
        try:
            tokenizer = load_tokenizer(golden, name)
        except pytest.skip.Exception:
            continue
        template = get_template(tokenizer, mode)
        for conversation, record in of_mode.items():
            turns = as_turns(conversations[conversation])
            for kind, system_prompt in (("preprocess_no_system_False", True), ("preprocess_no_system_True", False)):
                expected = record[kind]
                if any(reason in expected.get("error", "") for reason in STRICTER):
                    continue
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=".*system message is ignored.*")
                    if "error" in expected:
                        with pytest.raises(PromptError):
                            tokenize_with_labels(turns, tokenizer, template, system_prompt=system_prompt)
                        continue
                    ids, labels = tokenize_with_labels(turns, tokenizer, template, system_prompt=system_prompt)
                assert ids == expected["input_ids"], (key, conversation, kind)
                assert labels == expected["labels"], (key, conversation, kind)
                checked += 1
    assert checked >= 60
