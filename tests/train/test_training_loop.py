"""The loop in one process: what is trained, at which rate, what is saved and what is exported."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.loop_runs import ALL, Mixed, Recorder, micro_config, run, shuffled

import vila_core as vila
from vila_core.chat import Message
from vila_core.errors import CheckpointError, ConfigError, VilaError, VilaWarning
from vila_train.callbacks import StepRecord
from vila_train.config import PARTS, OptimizerConfig
from vila_train.data.conversations import Conversation
from vila_train.errors import TrainingError
from vila_train.loop import export, train, training
from vila_train.loop.optimizer import rate_factor
from vila_train.loop.setup import adapt


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return vila.load(folder, device="cpu", dtype="float32").network.state_dict()


def changed_parts(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def finished(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, run(micro_config(micro_checkpoint, max_steps=30), out)


def test_the_loss_falls(finished: tuple[Path, Recorder]):
    losses = [*finished[1].losses.values()]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_run_reports_its_steps(finished: tuple[Path, Recorder]):
    recorder = finished[1]
    assert [record.step for record in recorder.records] == [*range(1, 31)]
    assert recorder.checkpoints == [*range(2, 31, 2)]
    assert recorder.ends == [(30, "finished")]
    assert recorder.start is not None
    assert (recorder.start.first_step, recorder.start.total_steps, recorder.start.world_size) == (0, 30, 1)
    assert recorder.start.trained_parameters == recorder.start.parameters > 10_000
    for record in recorder.records:
        assert 0 <= record.padding < 0.5
        assert 0 < record.labelled_tokens < record.tokens <= 4 * 128
        assert record.samples >= 4
        assert 0 <= record.data_seconds <= record.seconds
        assert record.model_flops > 0
        assert record.mfu is record.memory_bytes is None


def test_skipped_samples_are_counted_and_named(finished: tuple[Path, Recorder]):
    out, recorder = finished
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    names = {reason: {line["name"] for line in lines if line["reason"] == reason} for reason in ("damaged", "too long")}
    assert names == {"damaged": {"mixed/12", "mixed/25", "mixed/38"}, "too long": {"mixed/7"}}
    assert sum(recorder.records[-1].skipped.values()) == len(lines)
    assert "more than data.max_length = 128 tokens" in (out / "skipped.jsonl").read_text()


def test_the_exported_model_is_read_by_vila_load(finished: tuple[Path, Recorder], micro_checkpoint: Path):
    model = vila.load(finished[0] / "model", device="cpu")
    assert changed_parts(weights(micro_checkpoint), model.network.state_dict()) == {
        "llm",
        "vision_tower",
        "mm_projector",
    }
    assert isinstance(model.generate("red?", max_new_tokens=2), str)


def test_a_finished_run_is_not_run_again(finished: tuple[Path, Recorder], micro_checkpoint: Path):
    again = run(micro_config(micro_checkpoint, max_steps=30), finished[0])
    assert again.start is None


def test_the_last_checkpoints_are_kept(finished: tuple[Path, Recorder]):
    kept = sorted(path.name for path in (finished[0] / "checkpoints").iterdir())
    assert kept == ["step-00000028", "step-00000030"]


@pytest.mark.parametrize("tune", [("projector",), ("vision_tower", "projector"), ("projector", "language_model"), ALL])
def test_only_tuned_parts_change(micro_checkpoint: Path, tmp_path: Path, tune: tuple[str, ...]):
    recorder = run(micro_config(micro_checkpoint, tune=tune, max_steps=3), tmp_path / "run")
    before = weights(micro_checkpoint)
    assert changed_parts(before, weights(tmp_path / "run/model")) == {PARTS[part] for part in tune}  # pyright: ignore
    assert recorder.start is not None
    expected = sum(
        value.numel()
        for name, value in before.items()
        if name.split(".")[0] in {PARTS[part] for part in tune}  # pyright: ignore
    )
    assert recorder.start.trained_parameters == expected
    assert set(recorder.records[0].learning_rates) == set(tune)


def test_frozen_parts_compute_without_dropout(micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    modes: dict[str, bool] = {}
    original = training.build_trainee

    def build(opened: Any, config: Any, world: Any) -> Any:
        trainee = original(opened, config, world)
        modes.update({part: opened.network.get_submodule(name).training for part, name in PARTS.items() if part in ALL})
        return trainee

    monkeypatch.setattr(training, "build_trainee", build)
    run(micro_config(micro_checkpoint, tune=("projector",), max_steps=1), tmp_path / "run")
    assert modes == {"vision_tower": False, "projector": True, "language_model": False}


def test_parts_have_their_own_rates(micro_checkpoint: Path, tmp_path: Path):
    rates = {"learning_rate": 1e-3, "part_learning_rates": {"projector": 1e-2}, "warmup_ratio": 0.5}
    records = run(micro_config(micro_checkpoint, optimizer=rates, max_steps=4), tmp_path / "run").records
    for record, factor in zip(records, (0.5, 1.0, 1.0, 0.5), strict=True):
        assert record.learning_rates == pytest.approx(
            {"projector": 1e-2 * factor, "language_model": 1e-3 * factor, "vision_tower": 1e-3 * factor}
        )


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("cosine", 0.0, [1, 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0.5 * (1 + math.cos(3 * math.pi / 4))]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("constant", 0.5, [0.5, 1, 1, 1]),
        ("cosine", 0.03, [1, 1, 0.75, 0.25]),  # at least one step of warm-up
    ],
)
def test_schedules(schedule: Any, warmup: float, expected: list[float]):
    config = OptimizerConfig(learning_rate=1, schedule=schedule, warmup_ratio=warmup)
    assert [rate_factor(config, step, 4) for step in range(4)] == pytest.approx(expected)


def test_a_callback_that_fails_is_reported_once(micro_checkpoint: Path, tmp_path: Path):
    def fail(step: int) -> None:
        raise RuntimeError("no connection")

    with pytest.warns(VilaWarning, match="The callback Recorder failed: RuntimeError: no connection") as caught:
        recorder = run(micro_config(micro_checkpoint, max_steps=3), tmp_path / "run", after=fail)
    assert len(caught) == 1
    assert recorder.ends == [(3, "finished")]


def test_records_every_few_steps(micro_checkpoint: Path, tmp_path: Path):
    config = micro_config(micro_checkpoint, **{"logging.every": 4, "max_steps": 6})
    assert [record.step for record in run(config, tmp_path / "run").records] == [4, 6]


def test_the_model_of_an_unfinished_run_is_exported(
    finished: tuple[Path, Recorder], micro_checkpoint: Path, tmp_path: Path
):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    shutil.rmtree(out / "model")
    assert export(out, tmp_path / "model") == tmp_path / "model"
    expected = weights(finished[0] / "model")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "model").items())


def test_a_run_without_an_adapter_has_none_to_export(finished: tuple[Path, Recorder], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"trained no adapter.*leave out --adapter"):
        export(finished[0], tmp_path / "adapter", adapter_only=True)
    assert not (tmp_path / "adapter").exists()


def test_formats_and_dtypes_of_exports(finished: tuple[Path, Recorder], tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"'nvila' .* cannot represent this model: the projector"):
        export(finished[0], tmp_path / "nvila", format="nvila")
    export(finished[0], tmp_path / "model", dtype="bfloat16")
    exported, expected = weights(tmp_path / "model"), weights(finished[0] / "model")
    assert all(torch.equal(exported[name], expected[name].bfloat16().float()) for name in expected)


@pytest.mark.parametrize("method", ["lora", "dora", "norms"])
def test_adapters_are_merged_into_the_exported_model(micro_checkpoint: Path, tmp_path: Path, method: str):
    adapter = {"method": method, "parts": ("vision_tower", "language_model"), "rank": 4, "dropout": 0.1}
    config = micro_config(micro_checkpoint, adapter=adapter, max_steps=4, **{"optimizer.learning_rate": 0.03})
    recorder = run(config, tmp_path / "run")
    before, after = weights(micro_checkpoint), weights(tmp_path / "run/model")
    assert before.keys() == after.keys()
    assert changed_parts(before, after) == {"llm", "vision_tower", "mm_projector"}
    assert recorder.start is not None
    assert recorder.start.trained_parameters < 0.6 * recorder.start.parameters
    export(tmp_path / "run", tmp_path / "again")
    again = weights(tmp_path / "again")
    assert all(torch.allclose(again[name], after[name], atol=1e-6) for name in after)


def test_adapters_begin_with_the_seed_of_the_run(micro_checkpoint: Path):
    def first_values(seed: int) -> torch.Tensor:
        network = vila.load(micro_checkpoint, device="cpu", dtype="float32").network
        torch.rand(1)  # what was drawn before does not count
        state = torch.get_rng_state()
        adapt(network, micro_config(micro_checkpoint, adapter={"rank": 2}, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([one.flatten() for name, one in network.named_parameters() if "lora_A" in name])

    values = first_values(1)
    assert torch.equal(first_values(1), values)
    assert not torch.equal(first_values(2), values)


def test_adapters_of_an_8_bit_run_are_merged_into_the_exact_weights(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vila_train.compute.fp8.fp8_refusal", lambda device: None)
    adapter = {"method": "lora", "rank": 4, "dropout": 0.0}
    config = micro_config(micro_checkpoint, adapter=adapter, max_steps=3, **{"compute.fp8": True})
    in_8_bits = run(config, tmp_path / "run")
    exact = run(micro_config(micro_checkpoint, adapter=adapter, max_steps=3), tmp_path / "exact")
    assert [*in_8_bits.losses.values()] == pytest.approx([*exact.losses.values()], rel=0.02)
    assert in_8_bits.losses != exact.losses
    export(tmp_path / "run", tmp_path / "again")  # reads the weights from the checkpoint that training started from
    again, after = weights(tmp_path / "again"), weights(tmp_path / "run/model")
    assert all(torch.allclose(again[name], after[name], atol=1e-6) for name in after)


def test_what_cannot_be_exported(finished: tuple[Path, Recorder], micro_checkpoint: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="is not the folder of a training run"):
        export(tmp_path, tmp_path / "model")
    with pytest.raises(ConfigError, match="Unknown dtype 'int8'"):
        export(finished[0], tmp_path / "model", dtype="int8")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        export(finished[0], finished[0] / "model")
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(TrainingError, match="has no checkpoint yet"):
        export(tmp_path / "run", tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "value"), [("optimizer.learning_rate", 1.0), ("seed", 4), ("data.row_length", 256), ("max_steps", 9)]
)
def test_a_folder_of_another_run_is_refused(micro_checkpoint: Path, tmp_path: Path, name: str, value: Any):
    stopped(micro_checkpoint, tmp_path)
    before = (tmp_path / "run.yaml").read_text()
    with pytest.raises(ConfigError, match=f"other settings: {name} was .* and is {value}.*--accept-changes.*--out"):
        run(micro_config(micro_checkpoint, **{name: value}), tmp_path)
    assert (tmp_path / "run.yaml").read_text() == before


@pytest.mark.parametrize(("name", "value"), [("data.workers", 1), ("saving.keep", 5), ("logging.every", 3)])
def test_settings_that_change_no_weight_may_change(micro_checkpoint: Path, tmp_path: Path, name: str, value: Any):
    out = tmp_path / "run"
    run(micro_config(micro_checkpoint, max_steps=1), out)
    run(micro_config(micro_checkpoint, **{"max_steps": 1, name: value}), out)


def stopped(checkpoint: Path, out: Path) -> None:
    """Run two of six steps."""

    def stop(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(micro_config(checkpoint), out, after=stop)


def test_accepted_changes_take_effect(micro_checkpoint: Path, tmp_path: Path):
    stopped(micro_checkpoint, tmp_path)
    config = micro_config(micro_checkpoint, max_steps=4)
    recorder = Recorder()
    train(config, tmp_path, [recorder], order=Mixed(), device="cpu", accept_changes=True)
    assert [*recorder.losses] == [3, 4]
    assert json.loads((tmp_path / "plan.json").read_text())["total_steps"] == 4


def test_a_complete_run_is_not_changed(finished: tuple[Path, Recorder], micro_checkpoint: Path):
    out = finished[0]
    with pytest.raises(ConfigError, match=r"max_steps was 30 and is 9.*further in another folder \(--model .*model\)"):
        train(micro_config(micro_checkpoint, max_steps=9), out, order=Mixed(), device="cpu", accept_changes=True)


def test_a_lost_plan_is_that_of_the_checkpoint(micro_checkpoint: Path, tmp_path: Path):
    stopped(micro_checkpoint, tmp_path)
    plan = tmp_path / "plan.json"
    text = plan.read_text()
    plan.write_text("{}")
    with pytest.raises(ConfigError, match=r"plan.json is damaged: .* Delete this file: each checkpoint has a copy"):
        run(micro_config(micro_checkpoint), tmp_path)
    plan.unlink()
    with pytest.raises(ConfigError, match="other settings: seed was 0 and is 4"):
        run(micro_config(micro_checkpoint, seed=4), tmp_path)
    run(micro_config(micro_checkpoint), tmp_path)
    assert plan.read_text() == text


def test_damaged_settings_are_written_anew_if_asked(micro_checkpoint: Path, tmp_path: Path):
    stopped(micro_checkpoint, tmp_path)
    (tmp_path / "run.yaml").write_bytes(bytes(50))
    with pytest.raises(ConfigError, match=r"run.yaml' is not valid YAML.*--accept-changes writes it anew"):
        run(micro_config(micro_checkpoint), tmp_path)


@pytest.mark.parametrize("content", [None, "mine"])
def test_a_folder_called_model_is_not_yet_a_model(micro_checkpoint: Path, tmp_path: Path, content: str | None):
    stopped(micro_checkpoint, tmp_path)
    (tmp_path / "model").mkdir()
    if content is None:
        assert [*run(micro_config(micro_checkpoint), tmp_path).losses] == [3, 4, 5, 6]
        assert (tmp_path / "model/config.json").exists()
        return
    (tmp_path / "model/notes.txt").write_text(content)
    with pytest.raises(VilaError, match="model exists and is not empty"):
        run(micro_config(micro_checkpoint), tmp_path)


def test_a_folder_with_other_files_is_refused(micro_checkpoint: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        run(micro_config(micro_checkpoint), tmp_path)


def test_a_loss_that_is_not_finite_names_the_samples(micro_checkpoint: Path, tmp_path: Path):
    config = micro_config(micro_checkpoint, **{"optimizer.learning_rate": 1e15, "optimizer.clip_norm": 0})
    with pytest.raises(
        TrainingError, match=r"not finite, in the row of mixed/\d+.*failed-step-\d+.*--accept-changes"
    ) as error:
        run(config, tmp_path / "run")
    (folder,) = (tmp_path / "run").glob("failed-step-*")
    rows = [json.loads(line) for line in (folder / "rank-0.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    for row in rows:
        assert len(row["ids"]) == len(row["labels"]) == sum(row["lengths"])
        assert all(name.startswith("mixed/") for name in row["names"])
    assert any(name in str(error.value) for row in rows for name in row["names"])


def fill_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def fill_the_main_memory() -> None:
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("fill", [fill_the_gpu, fill_the_main_memory])
def test_too_little_memory_suggests_settings(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill: Callable[[], None]
):
    def fail(*arguments: object, **settings: object) -> None:
        fill()

    monkeypatch.setattr(training, "train_step", fail)
    advice = r"Less with: .*activation_checkpointing=.*: about.*--accept-changes"
    message = rf"too little memory .*need about \d+\.\d GB on each GPU\. {advice}"
    with pytest.raises(TrainingError, match=message):
        run(micro_config(micro_checkpoint), tmp_path / "run")


class Empty(Mixed):
    def __len__(self) -> int:
        return 0


def test_an_empty_mixture_is_an_error(micro_checkpoint: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match="'mixed' has no samples"):
        run(micro_config(micro_checkpoint), tmp_path / "run", order=Empty())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_of_damaged_samples_is_an_error(micro_checkpoint: Path, tmp_path: Path, workers: int):
    config = micro_config(micro_checkpoint, **{"data.workers": workers})
    with pytest.raises(TrainingError, match=r"None of \d+ samples in succession can be used"):
        run(config, tmp_path / "run", order=Mixed(damaged=1))


@pytest.mark.parametrize("policy", ["truncate", "drop", "error"])
def test_samples_that_are_too_long(micro_checkpoint: Path, tmp_path: Path, policy: str):
    config = micro_config(micro_checkpoint, **{"data.too_long": policy, "data.max_length": 64, "max_steps": 4})
    if policy == "error":
        with pytest.raises(TrainingError, match=r"has more than data\.max_length = 64 tokens"):
            run(config, tmp_path / "run")
        return
    records: list[StepRecord] = run(config, tmp_path / "run").records
    assert records[-1].skipped["too long"] > 0
    assert records[-1].truncated == 0  # none has a second turn that could be left out
    assert all(record.tokens <= 4 * 64 for record in records)


class LongSecondTurns(Mixed):
    """Every other sample has a second turn that is too long."""

    def conversation(self, epoch: int, position: int) -> Conversation:
        index = shuffled(epoch, self.count)[position]
        turns = [Message("user", "red"), Message("assistant", "blue")]
        more = [Message("user", "left " * 100), Message("assistant", "right")] if index % 2 else []
        return Conversation(f"turns/{index}", [*turns, *more])


def test_truncated_samples_are_counted_also_by_a_resumed_run(micro_checkpoint: Path, tmp_path: Path):
    changes = {"data.too_long": "truncate", "data.max_length": 64, "data.packing": False, "max_steps": 4}
    config, order = micro_config(micro_checkpoint, **changes), LongSecondTurns()

    def stop(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", order, after=stop)
    last = run(config, tmp_path / "run", order).records[-1]
    assert last.truncated == sum(index % 2 for index in shuffled(0, order.count)[:16])  # four rows of one sample a step
    assert last.skipped == {}
