"""The training loop: loss, freezing, determinism, resuming and logging."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vila_core.errors import VilaError
from vila_core.model import VilaModel
from vila_train.errors import TrainingError
from vila_train.tiny.loop import Record, Stage, learning_rate, run_stage
from vila_train.tiny.pools import Pool
from vila_train.tiny.recipes import Draw, StageConfig, tiny_stages

Build = Callable[[], VilaModel]


def micro_stage(**changes: object) -> StageConfig:
    values: dict[str, object] = {
        "name": "micro",
        "tune_vision_tower": True,
        "tune_projector": True,
        "tune_language_model": True,
        "steps": 40,
        "learning_rate": 3e-3,
        "draws": (Draw(counts={"attribute": 4, "number": 2}), Draw(counts={"pair": 2}), Draw(counts={"motion": 1})),
        "log_every": 10,
    }
    return StageConfig.model_validate(values | changes)


def losses(stage: Stage, steps: int) -> list[float]:
    return [stage.advance()[0].item() for _ in range(steps)]


def test_the_loss_decreases(new_micro_network: Build, micro_pools: dict[str, Pool]) -> None:
    seen = losses(Stage(new_micro_network(), micro_stage(steps=80, learning_rate=1e-2), micro_pools, seed=0), 80)
    assert seen[0] == pytest.approx(torch.tensor(1024.0).log().item(), rel=0.05), "uniform over 1024 tokens"
    assert sum(seen[-5:]) / 5 < 0.4 * seen[0]


@pytest.mark.parametrize("config", tiny_stages(), ids=lambda config: config.name)
def test_a_stage_changes_only_the_parts_that_it_tunes(
    config: StageConfig, new_micro_network: Build, micro_pools: dict[str, Pool]
) -> None:
    tuned = {
        "vision_tower": config.tune_vision_tower,
        "mm_projector": config.tune_projector,
        "llm": config.tune_language_model,
    }
    network = new_micro_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flags = {
        f"tune_{part}": getattr(config, f"tune_{part}") for part in ("vision_tower", "projector", "language_model")
    }
    losses(Stage(network, micro_stage(**flags), micro_pools, seed=0), 2)
    changed = {
        name.split(".")[0] for name, value in network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {part for part, is_tuned in tuned.items() if is_tuned}


def test_the_stages_freeze_the_same_parts_as_nvila_after_the_first() -> None:
    align, stage1_5, pretrain, *sft = tiny_stages()
    assert (align.tune_vision_tower, align.tune_projector, align.tune_language_model) == (True, True, True)
    assert (stage1_5.tune_vision_tower, stage1_5.tune_projector, stage1_5.tune_language_model) == (True, True, False)
    assert (pretrain.tune_vision_tower, pretrain.tune_projector, pretrain.tune_language_model) == (False, True, True)
    assert {(one.tune_vision_tower, one.tune_projector, one.tune_language_model) for one in sft} == {(True, True, True)}


def test_losses_depend_only_on_the_seed(new_micro_network: Build, micro_pools: dict[str, Pool]) -> None:
    runs = [losses(Stage(new_micro_network(), micro_stage(), micro_pools, seed=seed), 4) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_resumed_stage_gives_the_losses_of_an_uninterrupted_one(
    new_micro_network: Build, micro_pools: dict[str, Pool], tmp_path: Path
) -> None:
    uninterrupted = losses(Stage(new_micro_network(), micro_stage(), micro_pools, seed=0), 6)
    interrupted = Stage(new_micro_network(), micro_stage(), micro_pools, seed=0)
    first = losses(interrupted, 3)
    interrupted.save(tmp_path / "state.pt")
    resumed = Stage(new_micro_network(), micro_stage(), micro_pools, seed=0)
    resumed.resume(tmp_path / "state.pt")
    assert first + losses(resumed, 3) == uninterrupted


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = micro_stage(steps=1000, learning_rate=2.0, warmup_ratio=0.03)
    rates = [learning_rate(config, step) for step in range(1000)]
    assert rates[0] == pytest.approx(2 / 30)
    assert max(rates) == pytest.approx(2.0)
    assert rates.index(max(rates)) in (29, 30)
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[515] == pytest.approx(1.0, abs=0.01)
    assert rates[-1] < 1e-4


def test_run_stage_logs_and_evaluates(new_micro_network: Build, micro_pools: dict[str, Pool]) -> None:
    records: list[Record] = []
    stage = Stage(new_micro_network(), micro_stage(steps=6, log_every=2, evaluate_every=4), micro_pools, seed=0)
    run_stage(stage, records.append, lambda: {"attribute": 0.25})
    assert [record["step"] for record in records if "loss" in record] == [2, 4, 6]
    assert [record["step"] for record in records if "validation" in record] == [4, 6]
    assert json.loads(json.dumps(records)) == records


def test_a_loss_that_is_not_finite_stops_training(new_micro_network: Build, micro_pools: dict[str, Pool]) -> None:
    network = new_micro_network()
    with torch.no_grad():
        network.mm_projector.layers[1].weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="Lower its learning_rate"):
        run_stage(Stage(network, micro_stage(log_every=1), micro_pools, seed=0), lambda record: None)
    assert issubclass(TrainingError, VilaError)


@pytest.mark.parametrize("content", [b"", b"not a state", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_a_damaged_state_is_named(
    new_micro_network: Build, micro_pools: dict[str, Pool], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "align.pt").write_bytes(content)
    stage = Stage(new_micro_network(), micro_stage(), micro_pools, seed=0)
    with pytest.raises(TrainingError, match="Delete it to run the stage again"):
        stage.resume(tmp_path / "align.pt")
