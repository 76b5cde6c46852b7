"""Training labels against the reference's `preprocess_conversation`."""

import json
import warnings
from itertools import groupby
from pathlib import Path

import pytest
from tests.parity.test_templates import as_turns, get_template, load_tokenizer

from vila_core.chat import Turn
from vila_core.errors import PromptError
from vila_core.tokenizer import Tokenizer
from vila_train.labels import IGNORE_INDEX, tokenize_with_labels

# The reference refuses system messages with `auto` (its remote code does not), and its `plain` has no separator.
STRICTER = {"Unexpected sender 'system'", "can only concatenate str"}


MISLABELLED = "repeat_of_template_tokens"
"""Its answers contain the template's own words, which the reference matches greedily (quirk 26)."""


def test_label_masks(golden: Path, golden2: Path):
    """Token ids are the reference's. Labels differ only where it mistakes a token of an answer for the template's."""
    recorded = json.loads((golden2 / "label_masks.json").read_text())
    conversations = recorded["conversations"]
    same, different = 0, 0
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
                where = (key, conversation, kind)
                assert ids == expected["input_ids"], where
                assert [label for label in labels if label != IGNORE_INDEX] == [
                    token for token, label in zip(ids, labels, strict=True) if label != IGNORE_INDEX
                ], where
                if labels == expected["labels"]:
                    same += 1
                    continue
                different += 1
                pairs = zip(ids, labels, expected["labels"], strict=True)
                wrong = [tokenizer.decode([token]).strip() for token, ours, theirs in pairs if ours != theirs]
                assert conversation == MISLABELLED or not any(wrong), where  # all are spaces and newlines
                answers = [turn.text.strip() for turn in turns if turn.role == "assistant"]
                assert_labels_are_the_answers(tokenizer, labels, answers, where)
    assert same >= 2 * different > 0


def assert_labels_are_the_answers(tokenizer: Tokenizer, labels: list[int], answers: list[str], where: object) -> None:
    """Check that each run of labelled tokens is an answer and at most one token more."""
    runs = [list(run) for labelled, run in groupby(labels, lambda label: label != IGNORE_INDEX) if labelled]
    for run, answer in zip(runs, answers[-len(runs) :], strict=True):
        texts = [tokenizer.decode(part, skip_special_tokens=False).strip() for part in (run, run[:-1])]
        assert answer in texts, (where, texts, answer)


@pytest.mark.parametrize("answer", ["USER: no ASSISTANT: yes", "</s>", "a\n\nb", "é 🙂", "<|im_end|>", "x" * 500])
@pytest.mark.parametrize("mode", ["vicuna_v1", "llama_3", "hermes-2"])
def test_any_answer_is_labelled_whole(golden: Path, answer: str, mode: str):
    tokenizer = load_tokenizer(golden, "llama")
    turns = [Turn("user", "Hi"), Turn("assistant", answer), Turn("user", answer), Turn("assistant", "Bye")]
    ids, labels = tokenize_with_labels(turns, tokenizer, get_template(tokenizer, mode))
    labelled = [token for token, label in zip(ids, labels, strict=True) if label != IGNORE_INDEX]
    text = tokenizer.decode(labelled, skip_special_tokens=False)
    assert text.replace(" ", "").startswith(answer.replace(" ", ""))
    assert "Bye" in text
    if answer not in ("</s>", "<|im_end|>"):  # which end an answer too
        assert text.count(answer) == 1
