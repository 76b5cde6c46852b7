"""Runs in processes of their own: killed and resumed, asked to stop, and on two ranks with sharded weights."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.train.loop_runs import (
    ALL,
    Mixed,
    in_processes,
    kill_at,
    largest_difference,
    micro_config,
    read_losses,
    run,
    send_at,
)
from torch import nn

import vila_core as vila
from vila_core.errors import ConfigError
from vila_train import models
from vila_train.config import ComputeConfig
from vila_train.errors import TrainingError
from vila_train.loop import training
from vila_train.parallel.fsdp import needs_shards
from vila_train.parallel.mesh import mesh_shape, require_divisible

STEPS = 12
LORA: dict[str, Any] = {"method": "lora", "parts": ("vision_tower", "language_model"), "rank": 2, "dropout": 0.3}


def with_dropout() -> None:
    """Let the projector of each opened model drop some of its outputs while it is trained."""
    original = models.open_model

    def open_model(*arguments: Any) -> models.OpenedModel:
        opened = original(*arguments)
        drop = lambda module, args, out: F.dropout(out, 0.2, training=module.training)  # noqa: E731
        projector = opened.network.mm_projector
        assert isinstance(projector, nn.Module)
        projector.register_forward_hook(drop)
        return opened

    training.open_model = open_model


@pytest.fixture(scope="module")
def uninterrupted(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[float, float]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = micro_config(micro_checkpoint, max_steps=STEPS)
    assert in_processes(config, folder / "run", folder / "losses", before=with_dropout) == [0]
    return read_losses(folder / "losses")


@pytest.mark.parametrize(
    ("killed_at", "workers"),
    [
        ((1,), 0),
        ((5,), 2),
        pytest.param((2,), 1, marks=pytest.mark.slow),
        pytest.param((3, 4, 7, 11), 3, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_killed_run_goes_on_bit_by_bit(
    micro_checkpoint: Path, tmp_path: Path, uninterrupted: dict[int, Any], killed_at: tuple[int, ...], workers: int
):
    """Kill after these steps, and resume with the same command each time: an epoch has 40 samples, about 3 steps."""
    config = micro_config(micro_checkpoint, **{"max_steps": STEPS, "data.workers": workers})
    for step in killed_at:
        codes = in_processes(config, tmp_path / "run", tmp_path / "losses", before=with_dropout, after=kill_at(step))
        assert codes == [-signal.SIGKILL]
    assert in_processes(config, tmp_path / "run", tmp_path / "losses", before=with_dropout) == [0]
    assert read_losses(tmp_path / "losses") == uninterrupted


@pytest.mark.slow
def test_fifty_losses_after_a_kill_in_the_middle_of_an_epoch(micro_checkpoint: Path, tmp_path: Path):
    changes = {"max_steps": 70, "saving.every": 7, "data.workers": 2, "adapter": LORA}
    config, order = micro_config(micro_checkpoint, **changes), Mixed(count=400)
    assert in_processes(config, tmp_path / "whole", tmp_path / "expected", order=order) == [0]
    codes = in_processes(config, tmp_path / "run", tmp_path / "losses", order=order, after=kill_at(17))
    assert codes == [-signal.SIGKILL]
    assert in_processes(config, tmp_path / "run", tmp_path / "losses", order=order) == [0]
    assert read_losses(tmp_path / "losses") == read_losses(tmp_path / "expected")


def test_the_dropout_of_adapters_is_resumed(micro_checkpoint: Path, tmp_path: Path):
    config = micro_config(micro_checkpoint, adapter=LORA, max_steps=5)
    assert in_processes(config, tmp_path / "whole", tmp_path / "expected") == [0]
    assert in_processes(config, tmp_path / "run", tmp_path / "losses", after=kill_at(3)) == [-signal.SIGKILL]
    assert in_processes(config, tmp_path / "run", tmp_path / "losses") == [0]
    assert read_losses(tmp_path / "losses") == read_losses(tmp_path / "expected")


def kill_while_saving(save: int) -> Callable[[], None]:
    """Return what lets its process be killed in the middle of its checkpoint number `save`."""

    def before() -> None:
        from vila_train import checkpoints

        original, saved = checkpoints.save_tensors, []

        def write(tensors: Any, **settings: Any) -> None:
            original(tensors, **settings)
            saved.append(1)
            if len(saved) == save:
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoints.save_tensors = write

    return before


def test_a_kill_while_saving_leaves_the_checkpoint_before(micro_checkpoint: Path, tmp_path: Path):
    config = micro_config(micro_checkpoint)
    assert in_processes(config, tmp_path / "whole", tmp_path / "expected") == [0]
    codes = in_processes(config, tmp_path / "run", tmp_path / "losses", before=kill_while_saving(2))
    assert codes == [-signal.SIGKILL]
    folders = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert folders == [".step-00000004.part", "step-00000002"]
    assert in_processes(config, tmp_path / "run", tmp_path / "losses") == [0]
    assert read_losses(tmp_path / "losses") == read_losses(tmp_path / "expected")
    assert not [*(tmp_path / "run/checkpoints").glob(".*")]


def test_a_kill_before_the_export_leaves_the_rest(micro_checkpoint: Path, tmp_path: Path):
    config = micro_config(micro_checkpoint, max_steps=2)

    def before() -> None:
        training.export_model = lambda *arguments, **settings: os.kill(os.getpid(), signal.SIGKILL)

    assert in_processes(config, tmp_path / "run", tmp_path / "losses", before=before) == [-signal.SIGKILL]
    assert run(config, tmp_path / "run").records == []
    assert isinstance(vila.load(tmp_path / "run/model", device="cpu"), vila.Vila)


@dataclass(frozen=True)
class Deadly(Mixed):
    """Kills the process that loads some sample."""

    def conversation(self, epoch: int, position: int) -> Any:
        if (epoch, position) == (1, 5):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().conversation(epoch, position)


def test_the_end_of_a_loading_process_is_reported(micro_checkpoint: Path, tmp_path: Path):
    config = micro_config(micro_checkpoint, **{"data.workers": 2})
    with pytest.raises(TrainingError, match=r"A loading process ended .* lower data\.workers"):
        run(config, tmp_path / "run", order=Deadly())
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize(
    ("number", "workers", "lanes"),
    # With eight lanes, three steps of four rows end in the middle of a round.
    [(signal.SIGINT, 2, 4), (signal.SIGTERM, 0, 8)],
)
def test_a_stopped_run_saves_and_goes_on(micro_checkpoint: Path, tmp_path: Path, number: int, workers: int, lanes: int):
    changes = {"data.workers": workers, "data.lanes": lanes, "saving.every": None}
    config = micro_config(micro_checkpoint, **changes)
    expected = run(config, tmp_path / "whole").losses
    codes = in_processes(config, tmp_path / "run", tmp_path / "losses", after=send_at(3, number))
    assert codes == [130]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000003"]
    assert in_processes(config, tmp_path / "run", tmp_path / "losses") == [0]
    assert {step: loss for step, (loss, _) in read_losses(tmp_path / "losses").items()} == expected


@pytest.fixture(scope="module")
def one_rank(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    recorder = run(micro_config(micro_checkpoint, max_steps=STEPS), folder / "run")
    return folder / "run", {record.step: (record.loss, record.gradient_norm) for record in recorder.records}


def require_equal(found: dict[int, Any], expected: dict[int, Any], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for step, (loss, norm) in expected.items():
        assert found[step][0] == pytest.approx(loss, rel=tolerance)
        assert found[step][1] == pytest.approx(norm, rel=10 * tolerance)


@pytest.mark.parametrize("workers", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_two_ranks_give_the_losses_of_one(
    micro_checkpoint: Path, tmp_path: Path, one_rank: tuple[Path, dict[int, Any]], workers: int
):
    config = micro_config(micro_checkpoint, **{"max_steps": STEPS, "data.workers": workers})
    assert in_processes(config, tmp_path / "run", tmp_path / "losses", ranks=2) == [0, 0]
    require_equal(read_losses(tmp_path / "losses"), one_rank[1], 1e-5)
    ours, theirs = (vila.load(folder / "model", device="cpu").network for folder in (tmp_path / "run", one_rank[0]))
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert (a - b).abs().max() < 1e-3, name


@pytest.mark.parametrize(("first", "second"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_ranks(
    micro_checkpoint: Path, tmp_path: Path, one_rank: tuple[Path, dict[int, Any]], first: int, second: int
):
    config = micro_config(micro_checkpoint, max_steps=STEPS)
    stop = send_at(5, signal.SIGTERM)
    codes = in_processes(config, tmp_path / "run", tmp_path / "losses", ranks=first, after=stop)
    assert codes == [130] * first
    assert in_processes(config, tmp_path / "run", tmp_path / "losses", ranks=second) == [0] * second
    require_equal(read_losses(tmp_path / "losses"), one_rank[1], 1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"tune": ("projector", "language_model"), "optimizer.clip_norm": 0.05},
        {"adapter": LORA},
        {
            "adapter": LORA | {"dropout": 0.0},
            "compute.activation_checkpointing": "linears",
            "compute.compile": True,  # blocks by hand
        },
        pytest.param({"tune": ("projector",)}, marks=pytest.mark.slow),
        pytest.param({"tune": ("vision_tower", "projector"), "data.rows_per_step": 2}, marks=pytest.mark.slow),
        pytest.param({"compute.activation_checkpointing": "full"}, marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def test_two_ranks_with_other_settings(micro_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]):
    config = micro_config(micro_checkpoint, **{"max_steps": 3, **changes})
    records = run(config, tmp_path / "one").records
    assert in_processes(config, tmp_path / "two", tmp_path / "losses", ranks=2) == [0, 0]
    expected = {record.step: (record.loss, record.gradient_norm) for record in records}
    require_equal(read_losses(tmp_path / "losses"), expected, 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter": LORA | {"dropout": 0.0}, "tune": ("projector", "language_model")},
        pytest.param({"tune": ("projector",)}, marks=pytest.mark.slow),
    ],
    ids=["all", "adapter", "projector"],
)
def test_bf16_keeps_master_weights(micro_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]):
    """One rank alone: sharded in a group of one. Small steps would be lost in bf16 weights."""
    changes = {"max_steps": 4, "optimizer.learning_rate": 1e-4, **changes}
    expected = run(micro_config(micro_checkpoint, **changes), tmp_path / "fp32").losses
    found = run(micro_config(micro_checkpoint, **changes, **{"compute.precision": "bf16"}), tmp_path / "bf16").losses
    assert largest_difference([*found.values()], [*expected.values()]) < 0.01
    assert [*found.values()] != [*expected.values()]
    before, ours, theirs = (
        vila.load(folder, device="cpu", dtype="float32").network.mm_projector.state_dict()
        for folder in (micro_checkpoint, tmp_path / "bf16/model", tmp_path / "fp32/model")
    )
    for name in before:
        moved = (theirs[name] - before[name]).norm()
        assert moved > 0
        assert (ours[name] - theirs[name]).norm() < 0.2 * moved, name


@pytest.mark.parametrize(
    ("world", "rows", "lanes", "working"),
    [
        (3, 4, 4, "1, 2, 4"),
        (4, 6, 12, "1, 2, 3, 6"),
        (8, 12, 4, "1, 2, 4"),
        (2, 5, 5, "1, 5"),
        (16, 8, 32, "1, 2, 4, 8"),
    ],
)
def test_the_numbers_of_ranks_that_work_are_named(world: int, rows: int, lanes: int, working: str):
    with pytest.raises(ConfigError, match=rf"{world} ranks cannot share {rows} rows .*that work: {working}\."):
        require_divisible(world, rows, lanes)


@pytest.mark.parametrize(("world", "rows", "lanes"), [(1, 7, 3), (2, 4, 6), (8, 8, 64)])
def test_numbers_of_ranks_that_work(world: int, rows: int, lanes: int):
    require_divisible(world, rows, lanes)


def test_a_wrong_number_of_ranks_stops_all_of_them(micro_checkpoint: Path, tmp_path: Path):
    config = micro_config(micro_checkpoint, **{"data.rows_per_step": 3, "data.lanes": 3})
    assert in_processes(config, tmp_path / "run", tmp_path / "losses", ranks=2) == [1, 1]


def test_the_mesh_has_names(micro_checkpoint: Path):
    compute = micro_config(micro_checkpoint).compute
    assert mesh_shape(6, compute) == (6, 1, 1)
    shared = compute.model_copy(update={"ring": 2, "ulysses": 2})
    assert mesh_shape(8, shared) == (2, 2, 2)
    with pytest.raises(ConfigError, match=r"ring x ulysses = 2 x 2 .* Use 4, 8, 12"):
        mesh_shape(6, shared)


def refuse_weights_of_other_ranks() -> None:
    """Let a process fail that reads weights without being the first."""
    original = models._load  # pyright: ignore[reportPrivateUsage]

    def load(*arguments: Any) -> None:
        assert os.environ["RANK"] == "0", "this rank read the weights"
        original(*arguments)

    models._load = load  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    "changes",
    [
        {"compute.keep_gathered": True},
        {"adapter": LORA | {"method": "dora", "dropout": 0.0}, "compute.precision": "bf16"},
        pytest.param(
            {"compute.keep_gathered": True, "compute.activation_checkpointing": "full"}, marks=pytest.mark.slow
        ),
        pytest.param({"adapter": LORA | {"method": "norms"}}, marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def test_only_the_first_rank_reads_the_weights(micro_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]):
    config = micro_config(micro_checkpoint, **{"max_steps": 3, **changes})
    found = in_processes(config, tmp_path / "two", tmp_path / "losses", ranks=2, before=refuse_weights_of_other_ranks)
    assert found == [0, 0]
    expected = {one.step: (one.loss, one.gradient_norm) for one in run(config, tmp_path / "one").records}
    require_equal(read_losses(tmp_path / "losses"), expected, 1e-5 if config.compute.precision == "fp32" else 1e-2)


def test_a_model_that_does_not_open_stops_all_ranks(micro_checkpoint: Path, tmp_path: Path):
    copy = tmp_path / "model"
    shutil.copytree(micro_checkpoint, copy)
    for weights in copy.rglob("*.safetensors"):
        weights.write_bytes(b"damaged")
    config = micro_config(copy)
    assert in_processes(config, tmp_path / "run", tmp_path / "losses", ranks=2) == [1, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": LORA | {"dropout": 0.0}, "tune": ("projector", "language_model")},
        {"adapter": LORA | {"method": "dora"}, "compute.activation_checkpointing": "full"},
        {"adapter": LORA, "compute.activation_checkpointing": "linears"},
        {"adapter": LORA | {"method": "norms"}, "tune": ALL},
        {"tune": ("projector",)},
        {"tune": ("vision_tower", "projector"), "compute.activation_checkpointing": "full"},
        {},
    ],
    ids=["lora", "dora", "dropout", "norms", "projector", "tower", "all"],
)
def test_one_gpu_without_shards_gives_the_same(micro_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]):
    changes = {"max_steps": 3, "compute.precision": "bf16", **changes}
    sharded, whole = (
        run(micro_config(micro_checkpoint, **changes, **{"compute.sharded": shards}), tmp_path / str(shards))
        for shards in (True, False)
    )
    assert [one.loss for one in whole.records] == pytest.approx([one.loss for one in sharded.records], rel=1e-5)
    norms = [[one.gradient_norm for one in found.records] for found in (whole, sharded)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)  # FSDP adds up the gradients of a tied weight in bf16
    ours, theirs = (vila.load(tmp_path / f"{name}/model", device="cpu").network for name in (False, True))
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        # Where all is trained, some gradients are only rounding errors, whose signs AdamW follows.
        if changes.keys() & {"tune", "adapter"}:
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-2, msg=name)


def test_a_run_goes_on_with_or_without_shards(micro_checkpoint: Path, tmp_path: Path):
    changes = {"tune": ("projector",), "compute.precision": "bf16", "max_steps": 4}
    expected = run(micro_config(micro_checkpoint, **changes), tmp_path / "whole").losses

    def stop(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(micro_config(micro_checkpoint, **changes, **{"compute.sharded": True}), tmp_path / "run", after=stop)
    found = run(micro_config(micro_checkpoint, **changes, **{"compute.sharded": False}), tmp_path / "run").losses
    assert found == pytest.approx({step: expected[step] for step in (3, 4)}, rel=1e-6)


def test_few_trained_weights_need_no_shards(micro_checkpoint: Path):
    network = models.open_model(micro_config(micro_checkpoint).model, 0, weights=False).network
    compute = ComputeConfig()
    assert needs_shards(network, compute, 1)
    network.requires_grad_(False)
    assert not needs_shards(network, compute, 1)
    assert needs_shards(network, compute, 2)
    assert needs_shards(network, compute.model_copy(update={"sharded": True}), 1)
