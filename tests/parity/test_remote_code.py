"""The remote-code layout: recorded answers, and a check that the remote code never runs.

Left out are the prompts on which the remote code itself departs from the reference (golden/README.md, quirks 12 and
13).
"""

import json
import shutil
from pathlib import Path

import pytest

import vila_core as vila
from vila_core.media import Image

CODE = "import pathlib\npathlib.Path(__file__).with_name('executed').touch()\nraise SystemExit('remote code was run')\n"


@pytest.fixture
def remote_checkpoint(golden: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "remote"
    shutil.copytree(golden.parent / "nvila_lite_56" / "checkpoint", folder)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling_vila.VILAConfig", "AutoModel": "modeling_vila.VILAForCausalLM"}
    config |= {"model_type": "vila", "architectures": ["VILAForCausalLM"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_vila.py").write_text(CODE)
    return folder


def test_answers_of_the_remote_code(golden: Path, remote_checkpoint: Path):
    recordings = golden.parent / "remote_code" / "remote_code.json"
    if not recordings.exists():
        pytest.skip("remote_code is not among these recordings")
    recorded = json.loads(recordings.read_text())["nvila_lite_56"]
    inputs = golden.parent / "inputs"
    model = vila.load(remote_checkpoint, device="cpu")
    prompts = {
        "odd_640x427": [Image(inputs / "odd_640x427.png"), "describe the image."],
        "text_only": ["how are you today?"],
    }
    for name, prompt in prompts.items():
        prepared = model.prepare(prompt)
        assert prepared.text == recorded[name]["prompt"]
        assert prepared.input_ids == recorded[name]["input_ids"]
        done = model.complete(prompt, max_new_tokens=len(recorded[name]["generated_ids"]))
        assert done.usage.prompt_tokens == recorded[name]["seq_len"]
        assert done.token_ids == recorded[name]["generated_ids"]


def test_remote_code_never_runs(golden: Path, remote_checkpoint: Path):
    model = vila.load(remote_checkpoint, device="cpu")
    assert model.checkpoint is not None
    assert model.checkpoint.format == "vila-remote"
    assert model.generate("how are you today?", max_new_tokens=2) is not None
    assert not (remote_checkpoint / "executed").exists()
