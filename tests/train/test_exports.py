"""The models that runs write at their end and later: exact, complete or not there, and of the right base."""

import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.train.loop_runs import in_processes, micro_config, read_losses, run, send_at
from torch import Tensor, nn
from typer.testing import CliRunner

import vila_core as vila
from vila_core.checkpoint import convert
from vila_core.errors import CheckpointError, ConfigError
from vila_train.cli import app
from vila_train.loop import export

LORA: dict[str, Any] = {"parts": ("vision_tower", "language_model"), "rank": 2, "dropout": 0.0}


def weights(model: Path) -> dict[str, Tensor]:
    return dict(vila.load(model, device="cpu", dtype="float32").network.state_dict())


def require_equal(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def in_bf16(checkpoint: Path, **changes: Any) -> Any:
    return micro_config(checkpoint, **{"max_steps": 2, "compute.precision": "bf16", **changes})


@pytest.mark.parametrize(
    "changes", [{"tune": ("projector",)}, {"adapter": LORA | {"method": "dora"}}], ids=["projector", "dora"]
)
def test_frozen_weights_keep_the_precision_of_the_checkpoint(
    micro_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]
):
    """It has fp32, and training rounds frozen weights to bf16."""
    run(in_bf16(micro_checkpoint, **changes), tmp_path / "run")
    before, after = weights(micro_checkpoint), weights(tmp_path / "run/model")
    name = "llm.model.embed_tokens.weight"
    assert torch.equal(after[name], before[name])
    assert not torch.equal(before[name], before[name].bfloat16().float())
    export(tmp_path / "run", tmp_path / "later")
    require_equal(tmp_path / "run/model", tmp_path / "later")


class PackedLinear(nn.Linear):
    """Stands for bitsandbytes' Linear4bit: a column of bytes, with a scale that belongs to the parameter object."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, **_: Any):
        super().__init__(inputs, outputs, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        whole = self.weight.view(self.out_features, self.in_features).to(input.dtype) * self.weight.scale
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, whole, bias)


def pack(weight: Tensor, **_: Any) -> nn.Parameter:
    scale = float(weight.abs().max() / 127)
    packed = nn.Parameter((weight / scale).round().to(torch.int8).view(-1, 1), requires_grad=False)
    packed.scale = scale  # type: ignore[attr-defined]
    return packed


def with_packed_linears() -> None:
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available

    assert not is_bnb_available()  # peft remembers that, and does not look for layers of its own
    assert not is_bnb_4bit_available()
    module = ModuleType("bitsandbytes")
    module.nn = SimpleNamespace(Linear4bit=PackedLinear, Params4bit=pack)  # type: ignore[attr-defined]
    sys.modules["bitsandbytes"] = module


def test_qlora_on_one_rank_and_two(micro_checkpoint: Path, tmp_path: Path):
    config = in_bf16(micro_checkpoint, adapter=LORA | {"method": "qlora"}, **{"optimizer.learning_rate": 3e-2})
    for ranks in (1, 2):
        out, losses = tmp_path / f"run{ranks}", tmp_path / f"losses{ranks}"
        assert in_processes(config, out, losses, ranks=ranks, before=with_packed_linears) == [0] * ranks
    one, two = (read_losses(tmp_path / f"losses{ranks}") for ranks in (1, 2))
    assert [loss for loss, _ in two.values()] == pytest.approx([loss for loss, _ in one.values()], rel=1e-5)
    for ranks in (1, 2):
        export(tmp_path / f"run{ranks}", tmp_path / f"later{ranks}")
        require_equal(tmp_path / f"run{ranks}/model", tmp_path / f"later{ranks}")
    moved = weights(tmp_path / "run2/model")["llm.model.layers.0.self_attn.q_proj.weight"]
    assert not torch.equal(moved, weights(micro_checkpoint)["llm.model.layers.0.self_attn.q_proj.weight"])


@pytest.fixture(scope="module")
def trained(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that trained adapters and the projector, its base, and the adapter."""
    folder = tmp_path_factory.mktemp("trained")
    base = Path(shutil.copytree(micro_checkpoint, folder / "base"))
    run(micro_config(base, adapter=LORA, max_steps=1), folder / "run")
    export(folder / "run", folder / "adapter", adapter_only=True)
    return folder


def test_an_adapter_is_not_merged_twice(trained: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"is a LoRA adapter, and so is --lora-path"):
        convert(trained / "adapter", tmp_path / "model", "vila", lora=trained / "adapter")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("adapter_only", [False, True])
def test_an_export_to_a_taken_folder_is_refused_before_the_model_is_read(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter_only: bool
):
    (tmp_path / "file").touch()
    monkeypatch.setattr("vila_train.loop.exporting.open_model", lambda *_: pytest.fail("the model was read"))
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        export(trained / "run", tmp_path, adapter_only=adapter_only)


def test_an_unfinished_run_does_not_become_complete_by_an_export(micro_checkpoint: Path, tmp_path: Path):
    config, out = micro_config(micro_checkpoint), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(config, out, after=send_at(2, signal.SIGTERM))
    (tmp_path / "link").symlink_to(out)
    for model in (out / "model", tmp_path / "link/model"):
        with pytest.raises(ConfigError, match=r"has done 2 of 6 steps: .* count as complete. Choose another folder"):
            export(out, model)
    assert [*run(config, out).losses] == [3, 4, 5, 6]
    shutil.rmtree(out / "model")
    assert export(out, out / "model") == out / "model"


def test_an_export_loads_plugins_of_the_run(trained: Path, tmp_path: Path):
    """Its model may need them."""
    (tmp_path / "parts.py").write_text("print('loaded')\n")
    out = tmp_path / "model"
    result = CliRunner().invoke(app, ["export", str(trained / "run"), str(out), "--plugin", str(tmp_path / "parts.py")])
    assert (result.exit_code, result.stdout.splitlines()) == (0, ["loaded", f"Wrote {out}."]), result.output


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "non_lora_trainables.bin"])
def test_no_half_adapter_is_left_on_a_full_disk(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
):
    write = Path.write_bytes

    def full(self: Path, content: Any) -> int:
        if self.name == file:
            write(self, bytes(content)[:100])
            raise OSError(28, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        export(trained / "run", tmp_path / "adapter", adapter_only=True)
    assert not [*tmp_path.iterdir()]


def test_a_base_that_was_moved_away(trained: Path, tmp_path: Path):
    (trained / "base").rename(trained / "elsewhere")
    try:
        with pytest.raises(CheckpointError, match=r"No folder .*base'.*put it, or a link to it, back"):
            export(trained / "run", tmp_path / "model")
        with pytest.raises(CheckpointError, match=r"If the base is elsewhere, pass it as MODEL"):
            vila.load(trained / "adapter", device="cpu")
        (trained / "base").symlink_to("elsewhere")
        require_equal(export(trained / "run", tmp_path / "model"), trained / "run/model")
    finally:
        (trained / "base").unlink(missing_ok=True)
        (trained / "elsewhere").rename(trained / "base")
