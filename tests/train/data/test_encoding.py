"""Samples of every format become rows, and the bad ones among them are counted and named."""

import base64
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.train.data.test_webdataset import captioned, picture, write_tar

from vila_core.media import MediaLimits
from vila_core.model import VilaModel
from vila_core.plugins.loader import load_plugins
from vila_core.tokenizer import Tokenizer
from vila_train.config import DataConfig
from vila_train.data.mixture import open_mixture
from vila_train.labels import IGNORE_INDEX
from vila_train.loop.loader import FittingEncoder
from vila_train.packing.lanes import Lane, LaneConfig
from vila_train.samples import Encoder

REGISTRY = """
datasets:
  llava: {path: llava.jsonl}
  chat: {path: chat.jsonl}
  documents: {path: mmc4.jsonl}
  m3it: {path: m3it.jsonl}
  captions: {path: captions.tar}
  pretrain: {path: captions.tar, learn: document}
mixtures:
  all: [llava, chat, documents, m3it, captions, pretrain]
"""


@pytest.fixture
def registry(folder: Path) -> Path:
    embedded = base64.b64encode((folder / "a.png").read_bytes()).decode()
    answer = {"from": "gpt", "value": "A cat."}
    user = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]}
    files: dict[str, list[object]] = {
        "llava": [
            {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, answer]},
            {"image": "none.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, answer]},
            {"image": "broken.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, answer]},
            {"video": "frames", "conversations": [{"from": "human", "value": "What?"}, answer]},
        ],
        "chat": [{"messages": [user, {"role": "assistant", "content": "A cat."}]}, {"messages": [user]}],
        "mmc4": [
            {"text_list": ["One.", "Two."], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]},
            {"text_list": ["One."], "image_info": [{"image_name": "none.png", "matched_text_index": 0}]},
        ],
        "m3it": [{"instruction": "What?", "inputs": "", "outputs": "A cat.", "image_base64_str": [embedded]}],
    }
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "broken.png").write_bytes(picture()[:40])
    write_tar(folder / "captions.tar", captioned(2))
    (folder / "registry.yaml").write_text(REGISTRY)
    return folder / "registry.yaml"


def make_encoder(network: VilaModel, tokenizer: Tokenizer, data: DataConfig) -> FittingEncoder:
    template = load_plugins().chat_templates.get("qwen2")
    return FittingEncoder(Encoder(network, tokenizer, template, MediaLimits(fetch=None)), data)


def test_every_format(registry: Path, new_micro_network: Callable[[], VilaModel], tokenizer: Tokenizer):
    data = DataConfig(mixture="all", registries=(registry,), max_length=600)
    mixture = open_mixture(data, seed=1)
    lane = Lane(0, mixture, make_encoder(new_micro_network(), tokenizer, data), LaneConfig(1, 600, lookahead=4))
    learned: set[str] = set()
    skipped: dict[str, str] = {}
    while len(learned) + len(skipped) < len(mixture):
        row = next(lane)
        learned |= {sample.name for sample in row.samples if sample.num_labels}
        skipped |= {one.name: one.reason for one in row.skipped}
    assert skipped == {
        "llava/1": "missing media file",
        "llava/2": "unreadable medium",
        "chat/1": "no answer",
        "documents/1": "missing media file",
    }
    of_dataset = Counter(name.split("/")[0] for name in learned)
    assert of_dataset == {"llava": 2, "chat": 1, "documents": 1, "m3it": 1, "captions": 2, "pretrain": 2}


def test_documents_learn_all_of_their_text(
    registry: Path, new_micro_network: Callable[[], VilaModel], tokenizer: Tokenizer
):
    data = DataConfig(mixture="documents@kept", registries=(registry,), max_length=600)
    registry.write_text(REGISTRY.replace("mmc4.jsonl", "mmc4.jsonl, subsets: {kept: kept.txt}"))
    (registry.parent / "kept.txt").write_text("# samples: 2\n0\n")
    encode = make_encoder(new_micro_network(), tokenizer, data)
    sample = encode(open_mixture(data, seed=0).conversation(0, 0))
    learned = tokenizer.decode([label for label in sample.labels if label != IGNORE_INDEX])
    assert "One." in learned
    assert "Two." in learned
    assert len(sample.prompt.media) == 1
