"""LoRA fine-tunes, given as a folder or beside their base, are merged and quantized like the merged checkpoint."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from tests.quant.conftest import tensors_of
from typer.testing import CliRunner

from vila_core.checkpoint import Checkpoint, convert, open_checkpoint
from vila_core.checkpoint.lora import find_source
from vila_core.errors import CheckpointError
from vila_quant.checking.check import check
from vila_quant.cli.main import app

QUICK = [
    "--group-size",
    "32",
    "--calibration",
    "drawn-world",
    "--sequences",
    "2",
    "--sequence-length",
    "64",
    "--device",
    "cpu",
]


def write_adapter(folder: Path, base: Checkpoint, **config: object) -> Path:
    """Write an adapter of the first block's queries and a trained projector, as training with LoRA leaves them."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(4)
    target, rank = "llm.model.layers.0.self_attn.q_proj", 2
    rows, columns = base.weights.entries[f"{target}.weight"].shape
    factors = {"A": (rank, columns), "B": (rows, rank)}
    tensors = {
        f"base_model.model.{target}.lora_{key}.weight": torch.randn(shape, generator=generator)
        for key, shape in factors.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    trained = {
        f"base_model.model.{name}": torch.randn(entry.shape, generator=generator) * 0.05
        for name, entry in base.weights.entries.items()
        if name.startswith("mm_projector.") and name.endswith(".weight")
    }
    torch.save(trained, folder / "non_lora_trainables.bin")
    stated = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    (folder / "config.json").write_text(json.dumps(base.raw_config))  # the reference leaves the model's own there
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_on_hub(hub: Path, repo_id: str, folder: Path, revision: str = "main") -> Path:
    """Put a folder into the cache as a download leaves it, and return where it lies there."""
    repository = hub / f"models--{repo_id.replace('/', '--')}"
    commit = f"{revision:0<40}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return repository / "snapshots" / commit


def quantize(*arguments: str | Path, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["awq", *map(str, arguments), *QUICK])
    assert (2 if isinstance(result.exception, CheckpointError) else result.exit_code) == exit_code, result.output
    return str(result.exception)


@pytest.mark.parametrize("search", ["best", "reference"])
def test_a_fine_tune_is_quantized_as_its_merged_checkpoint(lite: Checkpoint, tmp_path: Path, search: str) -> None:
    adapter = write_adapter(tmp_path / "adapter", lite, base_model_name_or_path=str(lite.path))
    merged = convert(lite, tmp_path / "merged", "nvila", lora=adapter)
    options = ["--search", search, "--lm-head", "int4", "--vision", "int8", "--vision-alpha", "0.5"]
    quantize(merged.path, tmp_path / "expected", *options)
    quantize(adapter, tmp_path / "by-itself", *options)
    expected = tensors_of(open_checkpoint(tmp_path / "expected"))
    found = tensors_of(open_checkpoint(tmp_path / "by-itself"))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    whole = tensors_of(lite)
    name = "mm_projector.layers.1.weight"
    assert name in whole, sorted(whole)
    assert not torch.equal(found[name], whole[name])


def test_beside_its_base_an_adapter_gives_the_same(lite: Checkpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lite, base_model_name_or_path=str(lite.path))
    quantize(adapter, tmp_path / "by-itself", "--search", "nearest")
    quantize(lite.path, tmp_path / "with-base", "--search", "nearest", "--lora-path", adapter)
    found, expected = (tensors_of(open_checkpoint(tmp_path / name)) for name in ("by-itself", "with-base"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_report_and_the_card_name_the_adapter(lite: Checkpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "my-lora", lite)
    quantize(lite.path, tmp_path / "out", "--search", "nearest", "--lora-path", adapter)
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert (report["model"], report["adapter"]) == (lite.path.name, "my-lora")
    page = (tmp_path / "out" / "quantization_report.html").read_text()
    assert "my-lora" in page
    assert str(tmp_path) not in page  # local paths are not published
    assert f"# {lite.path.name} with my-lora, quantized" in (tmp_path / "out" / "README.md").read_text()


def test_a_check_against_a_fine_tune_merges_it_too(lite: Checkpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lite, base_model_name_or_path=str(lite.path))
    merged = convert(lite, tmp_path / "merged", "nvila", lora=adapter)
    (tmp_path / "prompts.txt").write_text("a red circle")
    report = check(merged.path, adapter, prompts=str(tmp_path / "prompts.txt"), device="cpu")
    assert report.text is not None
    assert report.text.kl == pytest.approx(0.0, abs=1e-6)
    apart = check(merged.path, lite.path, prompts=str(tmp_path / "prompts.txt"), device="cpu")
    assert apart.text is not None
    assert apart.text.kl > 1e-5


def test_an_adapter_without_its_base_is_reported_with_the_flags_to_pass(lite: Checkpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lite, base_model_name_or_path=None)
    message = quantize(adapter, tmp_path / "out", exit_code=2)
    assert "does not name its base model ('base_model_name_or_path' in adapter_config.json)" in message
    assert f"--lora-path {adapter}" in message
    (adapter / "adapter_config.json").unlink()
    assert "does not name its base model" in quantize(adapter, tmp_path / "out", exit_code=2)
    assert not (tmp_path / "out").exists()


def test_an_adapter_on_the_hub_is_quantized_and_checked_like_its_folder(
    lite: Checkpoint, tmp_path: Path, hub: Path
) -> None:
    put_on_hub(hub, "maker/base", lite.path)
    adapter = write_adapter(tmp_path / "adapter", lite, base_model_name_or_path="maker/base")
    put_on_hub(hub, "maker/lora", adapter)
    quantize("maker/lora", tmp_path / "by-id", "--search", "nearest")
    quantize(lite.path, tmp_path / "with-base", "--search", "nearest", "--lora-path", adapter)
    found, expected = (tensors_of(open_checkpoint(tmp_path / name)) for name in ("by-id", "with-base"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert "base_model: maker/lora" in (tmp_path / "by-id" / "README.md").read_text()

    (tmp_path / "prompts.txt").write_text("a red circle")
    merged = convert(lite, tmp_path / "merged", "nvila", lora=adapter)
    report = check(merged.path, "maker/lora", prompts=str(tmp_path / "prompts.txt"), device="cpu", offline=True)
    assert report.text is not None
    assert report.text.kl == pytest.approx(0.0, abs=1e-6)


def test_the_revision_is_the_adapters_own_and_its_base_is_at_the_one_it_states(
    lite: Checkpoint, tmp_path: Path, hub: Path
) -> None:
    base = put_on_hub(hub, "maker/base", lite.path, "v1")
    adapter = write_adapter(tmp_path / "adapter", lite, base_model_name_or_path="maker/base", revision="v1")
    stored = put_on_hub(hub, "maker/lora", adapter, "step-200")
    assert find_source("maker/lora", revision="step-200", offline=True) == (base, stored)
    with pytest.raises(CheckpointError, match="'maker/lora' at revision 'v1' is not"):
        find_source("maker/lora", revision="v1", offline=True)


@pytest.mark.parametrize(
    ("base", "problem"),
    [("/home/trainer/NVILA-8B", "No folder '/home/trainer/NVILA-8B'"), ("no/where", "'no/where' is not")],
)
def test_a_missing_base_is_reported_with_the_flags_to_pass(
    lite: Checkpoint, tmp_path: Path, hub: Path, base: str, problem: str
) -> None:
    put_on_hub(hub, "maker/lora", write_adapter(tmp_path / "adapter", lite, base_model_name_or_path=base))
    message = quantize("maker/lora", tmp_path / "out", "--offline", exit_code=2)
    assert (
        f"maker/lora is a LoRA adapter of '{base}' ('base_model_name_or_path' in adapter_config.json). {problem}"
        in message
    )
    assert "pass it as MODEL, and --lora-path maker/lora." in message


def test_adapters_are_not_stacked(lite: Checkpoint, tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "first", lite, base_model_name_or_path=str(lite.path))
    second = write_adapter(tmp_path / "second", lite, base_model_name_or_path=str(first))
    with pytest.raises(CheckpointError, match=r"is a LoRA adapter, and so is --lora-path"):
        find_source(first, second)
    with pytest.raises(CheckpointError, match=r"is itself an adapter"):
        find_source(second)


def test_whole_weights_are_taken_as_they_are(lite: Checkpoint, tmp_path: Path, hub: Path) -> None:
    stored = put_on_hub(hub, "owner/name", lite.path)
    assert find_source("owner/name", "other/adapter", offline=True) == (stored, "other/adapter")
    merged = convert(lite, tmp_path / "merged", "nvila").path
    (merged / "adapter_config.json").write_text("{}")  # left behind by training
    assert find_source(merged) == (merged, None)
