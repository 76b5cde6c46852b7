"""Other weights at the path of a run's base model are noticed; a refused call writes nothing into the run's folder."""

import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.train.loop_runs import Mixed, Recorder, micro_config, run, send_at
from tests.train.test_exports import LORA, require_equal

import vila_core as vila
from vila_core.errors import CheckpointError, ConfigError, VilaError
from vila_train.base_model import fingerprint_base, require_same_base
from vila_train.config import ModelConfig
from vila_train.loop import export, train


def with_lora(base: Path, **changes: Any) -> Any:
    return micro_config(base, **{"adapter": LORA, "max_steps": 4, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fine_tune(file: Path) -> None:
    """Write slightly different weights of the same names, shapes and dtypes."""
    torch.manual_seed(0)
    tensors = load_file(file)
    save_file({name: tensor + 1e-3 * torch.randn_like(tensor) for name, tensor in tensors.items()}, file)


@pytest.fixture(scope="module")
def stopped(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and the run of an adapter on it, which has done two of four steps."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(micro_checkpoint, folder / "base")
    with pytest.raises(KeyboardInterrupt):
        run(with_lora(folder / "base"), folder / "run", after=send_at(2, 15))
    return folder


@pytest.fixture
def unfinished(stopped: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the base and of the run, which names the copied base."""
    base, out = (Path(shutil.copytree(stopped / name, tmp_path / name)) for name in ("base", "run"))
    settings = (out / "run.yaml").read_text()
    (out / "run.yaml").write_text(settings.replace(str(stopped / "base"), str(base)))
    return base, out


def resume(base: Path, out: Path, accept_changes: bool = False, **changes: Any) -> list[int]:
    recorder = Recorder()
    config = with_lora(base, **changes)
    train(config, out, [recorder], order=Mixed(), device="cpu", accept_changes=accept_changes)
    return [*recorder.losses]


def test_a_copied_base_is_the_same(unfinished: tuple[Path, Path]):
    assert resume(*unfinished) == [3, 4]


@pytest.mark.parametrize("part", ["llm", "vision_tower", "mm_projector"])
def test_other_weights_are_refused_on_resume_and_accepted_if_asked(unfinished: tuple[Path, Path], part: str):
    base, out = unfinished
    file = base / part / "model.safetensors"
    fine_tune(file)
    before = contents(out)
    message = f"{re.escape(str(file))}' has changed.*Put them back, or .*--accept-changes.*, or .*--out"
    with pytest.raises(ConfigError, match=message):
        resume(base, out)
    assert contents(out) == before
    assert resume(base, out, accept_changes=True) == [3, 4]
    export(out, out.parent / "later")  # the last checkpoint belongs to the new weights
    require_equal(out / "model", out.parent / "later")


@pytest.mark.parametrize("adapter_only", [False, True])
def test_other_weights_are_refused_on_export_and_accepted_if_asked(
    unfinished: tuple[Path, Path], tmp_path: Path, adapter_only: bool
):
    base, out = unfinished
    fine_tune(base / "llm/model.safetensors")
    with pytest.raises(ConfigError, match=r"llm/model.safetensors' has changed.*--accept-changes"):
        export(out, tmp_path / "model", adapter_only=adapter_only)
    assert not (tmp_path / "model").exists()
    export(out, tmp_path / "model", adapter_only=adapter_only, accept_changes=True)


def test_an_exported_adapter_knows_its_base(unfinished: tuple[Path, Path], tmp_path: Path):
    base, out = unfinished
    adapter = export(out, tmp_path / "adapter", adapter_only=True)
    vila.load(adapter, device="cpu")
    fine_tune(base / "llm/model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"'llm/model.safetensors' there is not the one .* MODEL, and --lora-path"
    ):
        vila.load(adapter, device="cpu")
    vila.load(base, lora=adapter, device="cpu")
    (adapter / "base_files.json").unlink()  # as another program writes it
    vila.load(adapter, device="cpu")


def test_another_tokenizer_or_config_is_refused(unfinished: tuple[Path, Path], tmp_path: Path):
    base, out = unfinished
    config = base / "llm/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 5.0}))
    with pytest.raises(ConfigError, match=r"llm/config.json' has changed"):
        export(out, tmp_path / "model")


def test_lost_and_new_files_are_named(micro_checkpoint: Path):
    config = ModelConfig(path=str(micro_checkpoint))
    files = fingerprint_base(config)
    assert {"model/config.json", "model/llm/model.safetensors", "model/llm/tokenizer.json"} <= {*files}
    with pytest.raises(ConfigError, match=r"the model has no model/llm/merges.txt any more.*Put them back, or jump"):
        require_same_base(config, {**files, "model/llm/merges.txt": "0"}, files, "jump")
    fewer = {name: value for name, value in files.items() if name != "model/config.json"}
    with pytest.raises(ConfigError, match=rf"{re.escape(str(micro_checkpoint))}/config.json' is new.*Put them back\."):
        require_same_base(config, fewer, files)


def test_files_of_a_run_in_the_folder_of_its_base_do_not_count(micro_checkpoint: Path, tmp_path: Path):
    base = Path(shutil.copytree(micro_checkpoint, tmp_path / "base"))
    before = fingerprint_base(ModelConfig(path=str(base)))
    run(micro_config(base, max_steps=1), base / "runs/mine")
    assert fingerprint_base(ModelConfig(path=str(base))) == before


def test_a_base_may_change_before_the_first_checkpoint(micro_checkpoint: Path, tmp_path: Path):
    base = Path(shutil.copytree(micro_checkpoint, tmp_path / "base"))

    def fail(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(with_lora(base), tmp_path / "run", after=fail)
    assert (tmp_path / "run/plan.json").exists()
    fine_tune(base / "llm/model.safetensors")
    assert resume(base, tmp_path / "run") == [1, 2, 3, 4]


def test_a_run_of_an_earlier_version_continues(unfinished: tuple[Path, Path], tmp_path: Path):
    """Its checkpoints have no fingerprints, and their checksum is that of a state without them."""
    base, out = unfinished
    (state,) = out.glob("checkpoints/*/state.json")
    values = json.loads(state.read_text())
    del values["base"], values["checksum"], values["plan"]["datasets"]
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    state.write_text(json.dumps({**values, "checksum": zlib.crc32(text.encode())}))
    fine_tune(base / "llm/model.safetensors")
    export(out, tmp_path / "model")
    assert resume(base, out) == [3, 4]


def test_weights_that_change_while_they_are_trained(micro_checkpoint: Path, tmp_path: Path):
    """The model at the end is not written if its frozen weights have to be read again."""
    base = Path(shutil.copytree(micro_checkpoint, tmp_path / "base"))
    config = with_lora(base, **{"compute.precision": "bf16", "max_steps": 2})

    def change(step: int) -> None:
        if step == 2:
            fine_tune(base / "llm/model.safetensors")

    with pytest.raises(ConfigError, match=r"llm/model.safetensors' has changed"):
        run(config, tmp_path / "run", after=change)
    assert not (tmp_path / "run/model").exists()
    shutil.rmtree(base)
    shutil.copytree(micro_checkpoint, base)
    run(config, tmp_path / "run")
    assert (tmp_path / "run/model/config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data.lanes": 8}, "data.lanes is 8, but the run started with 4"),
        ({"adapter": LORA | {"rank": 3}}, "It is a checkpoint of another run"),
        ({"tune": ("vision_tower", "language_model", "projector"), "adapter": None}, "has no tensor"),
        ({"soft_time_tokens": 1.0}, "needs a model with time tokens"),
    ],
    ids=["lanes", "rank", "no adapter", "time tokens"],
)
def test_a_run_that_is_refused_in_spite_of_accepted_changes_is_not_changed(
    unfinished: tuple[Path, Path], changes: dict[str, Any], problem: str
):
    base, out = unfinished
    before = contents(out)
    with pytest.raises(VilaError, match=problem):
        resume(base, out, accept_changes=True, **changes)
    assert contents(out) == before
    assert resume(base, out) == [3, 4]


def test_a_new_run_that_is_refused_leaves_its_folder_free(micro_checkpoint: Path, tmp_path: Path):
    with pytest.raises(VilaError, match="needs a model with time tokens"):
        run(micro_config(micro_checkpoint, soft_time_tokens=1.0), tmp_path / "run")
    assert contents(tmp_path / "run") == {}
    run(micro_config(micro_checkpoint, max_steps=1), tmp_path / "run")
