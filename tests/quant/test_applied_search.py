"""`vila-quant awq --search FILE.pt`: quantize with scales and clips that were found before, here or by llm-awq."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from tests.quant.conftest import small_decoder, small_model, tensors_of
from typer.testing import CliRunner

from vila_core.checkpoint import Checkpoint, open_checkpoint
from vila_core.errors import CheckpointError, VilaError
from vila_quant.cli.main import app
from vila_quant.errors import QuantizationError
from vila_quant.quantizing.assembly import SEARCH_RESULTS
from vila_quant.quantizing.options import QuantizationOptions
from vila_quant.quantizing.pipeline import quantize_model

QUICK = [
    "--group-size",
    "32",
    "--calibration",
    "builtin",
    "--sequences",
    "2",
    "--sequence-length",
    "64",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """As many key heads as query heads, so that values are scaled too."""
    return small_model(tmp_path_factory.mktemp("model") / "whole", small_decoder(num_key_value_heads=2))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, model: Checkpoint) -> Path:
    """The model as `reference` quantizes it, its search results beside the weights; not to be changed."""
    return quantize(model, tmp_path_factory.mktemp("searched") / "out", "reference", "--search-results")


def quantize(model: Checkpoint, out: Path, search: str | Path, *arguments: str) -> Path:
    result = CliRunner().invoke(app, ["awq", str(model.path), str(out), *QUICK, "--search", str(search), *arguments])
    if isinstance(result.exception, VilaError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return out


def differing(first: Path, second: Path) -> list[str]:
    one, other = tensors_of(open_checkpoint(first)), tensors_of(open_checkpoint(second))
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def results_with(
    path: Path, source: Path, *, scale: list[object] | None = None, clip: list[object] | None = None
) -> Path:
    """Write the results in `source` with more items."""
    content = torch.load(source, weights_only=True)
    torch.save({"scale": [*content["scale"], *(scale or [])], "clip": [*content["clip"], *(clip or [])]}, path)
    return path


def test_applied_elsewhere_results_give_the_same_checkpoint(model: Checkpoint, searched: Path, tmp_path: Path) -> None:
    nearest = quantize(model, tmp_path / "nearest", "nearest")
    assert len(differing(searched, nearest)) > 14  # what was found matters
    applied = quantize(model, tmp_path / "applied", searched / SEARCH_RESULTS, "--seed", "7", "--search-results")
    assert differing(searched, applied) == []
    again = quantize(model, tmp_path / "again", applied / SEARCH_RESULTS)
    assert differing(searched, again) == []
    assert json.loads((applied / "quantization_report.json").read_text())["method"] == SEARCH_RESULTS
    assert f"`--search {SEARCH_RESULTS}`" in (applied / "README.md").read_text()


def test_names_in_the_whole_model_are_understood_as_llm_awq_writes_them(
    model: Checkpoint, searched: Path, tmp_path: Path
) -> None:
    content = torch.load(searched / SEARCH_RESULTS, weights_only=True)
    scale = [
        (f"llm.{previous}", tuple(f"llm.{name}" for name in names), scales)
        for previous, names, scales in content["scale"]
    ]
    torch.save(
        {"scale": scale, "clip": [[f"llm.{name}", limits] for name, limits in content["clip"]]}, tmp_path / "r.pt"
    )
    assert differing(searched, quantize(model, tmp_path / "applied", tmp_path / "r.pt")) == []


def test_what_is_left_whole_is_not_clipped(model: Checkpoint, searched: Path, tmp_path: Path) -> None:
    name = "llm.model.layers.1.mlp.down_proj"
    blocks = [argument for layer in ("0.*", "1.self_attn.*") for argument in ("--skip", f"llm.model.layers.{layer}")]
    skip = [*blocks, "--skip", name, "--skip", "llm.model.layers.1.mlp.up_proj"]
    tensors = tensors_of(open_checkpoint(quantize(model, tmp_path / "out", searched / SEARCH_RESULTS, *skip)))
    whole = tensors_of(model)
    assert torch.equal(tensors[f"{name}.weight"], whole[f"{name}.weight"])
    assert torch.equal(
        tensors["llm.model.layers.0.self_attn.q_proj.weight"], whole["llm.model.layers.0.self_attn.q_proj.weight"]
    )
    assert "llm.model.layers.1.mlp.gate_proj.qweight" in tensors


def test_the_scales_of_best_are_applied_too(model: Checkpoint, tmp_path: Path) -> None:
    best = quantize(model, tmp_path / "best", "best", "--search-results")
    applied = quantize(model, tmp_path / "applied", best / SEARCH_RESULTS)
    norm = "llm.model.layers.0.input_layernorm.weight"
    found, expected = (tensors_of(open_checkpoint(path))[norm].float() for path in (applied, best))
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)
    assert not torch.equal(found, tensors_of(model)[norm].float())


class Payload:
    """Pickled, it asks the reader to create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("as_torch", [True, False], ids=["torch", "pickle"])
def test_code_in_the_file_is_refused_and_not_run(model: Checkpoint, tmp_path: Path, as_torch: bool) -> None:
    content, file = {"scale": [Payload(tmp_path / "ran")], "clip": []}, tmp_path / "r.pt"
    torch.save(content, file) if as_torch else file.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match=r"r\.pt was refused: .*Nothing of it was executed"):
        quantize(model, tmp_path / "out", file)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


AT = "model.layers"


@pytest.mark.parametrize(
    ("scale", "clip", "message"),
    [
        (
            [(f"{AT}.5.input_layernorm", (f"{AT}.5.self_attn.q_proj",), torch.ones(64))],
            [(f"{AT}.{layer}.mlp.down_proj", torch.ones(64, 3, 1)) for layer in (2, 3, 4)],
            r"r\.pt does not fit: .* name 'model\.layers\.5', 'model\.layers\.2', 'model\.layers\.3' and 1 more, "
            r".* this model has 2 layers",
        ),
        (
            [],
            [(f"{AT}.1.attn.qkv", torch.ones(64, 2, 1))],
            r"r\.pt does not fit: .*'model\.layers\.1\.attn\.qkv', which is not a linear",
        ),
        ([], [("visual.proj", torch.ones(64, 2, 1))], r"name 'visual\.proj', but this model"),
        ([], [(f"{AT}.1.mlp.down_proj", torch.ones(32, 3, 1))], r"have shape \[32, 3, 1\]; for its weight \[64, 96\]"),
        (
            [(f"{AT}.0.mlp.up_proj", (f"{AT}.0.mlp.down_proj",), torch.zeros(96))],
            [],
            r"scales of .*down_proj' are not all finite and pos",
        ),
        (
            [],
            [(f"{AT}.1.mlp.down_proj", torch.full((64, 3, 1), torch.nan))],
            r"clips of .*down_proj' are not all finite",
        ),
    ],
)
def test_results_of_another_model_are_refused_by_name(
    model: Checkpoint, searched: Path, tmp_path: Path, scale: list[object], clip: list[object], message: str
) -> None:
    file = results_with(tmp_path / "r.pt", searched / SEARCH_RESULTS, scale=scale, clip=clip)
    with pytest.raises(CheckpointError, match=message):
        quantize(model, tmp_path / "out", file)
    assert not (tmp_path / ".out.quantizing").exists()


def test_incomplete_results_and_missing_files_are_reported(model: Checkpoint, searched: Path, tmp_path: Path) -> None:
    content = torch.load(searched / SEARCH_RESULTS, weights_only=True)
    first = {key: [item for item in items if item[0].startswith("model.layers.0.")] for key, items in content.items()}
    torch.save(first, tmp_path / "r.pt")
    with pytest.raises(
        CheckpointError,
        match=r"r\.pt does not fit: .* have none for 'model\.layers\.1'\. They are for a model with fewer",
    ):
        quantize(model, tmp_path / "out", tmp_path / "r.pt")
    with pytest.raises(
        CheckpointError,
        match=r"missing\.pt' is missing\. --search takes the name of a method, or a file of AWQ search results",
    ):
        quantize(model, tmp_path / "out", tmp_path / "missing.pt")


def test_unfinished_work_is_not_taken_up_with_other_results(
    model: Checkpoint, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = results_with(tmp_path / "r.pt", searched / SEARCH_RESULTS)
    options = QuantizationOptions(
        group_size=32, calibration="builtin", sequences=2, sequence_length=64, search=str(file)
    )

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("vila_quant.quantizing.pipeline._quantize_head", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize_model(model.path, tmp_path / "out", options, device="cpu")
    results_with(file, file, clip=[(f"{AT}.0.mlp.down_proj", torch.full((64, 3, 1), 0.01))])
    with pytest.raises(QuantizationError, match=r"unfinished work of another run: search_results_digest was"):
        quantize_model(model.path, tmp_path / "out", options, device="cpu")
