"""What a run reports, to files, the console and trackers; and callbacks of plugins."""

import json
import math
import sys
import types
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.train.loop_runs import Mixed, micro_config, run

from vila_core.errors import ConfigError, MissingDependencyError, PluginError, VilaWarning
from vila_core.plugins.loader import load_plugin_file, load_plugins
from vila_core.testing import check_plugin
from vila_train.callbacks import Callback, NoCallback, RunStart, StepRecord
from vila_train.config import DataConfig, OptimizerConfig, TrainConfig
from vila_train.loop import train
from vila_train.tracking import FACTORIES
from vila_train.tracking.console import Console, Totals, step_note
from vila_train.tracking.log import JsonLog
from vila_train.tracking.loss_plot import Axis, LossPlot, draw_run, smooth, thin
from vila_train.tracking.memory import MemoryReport
from vila_train.tracking.opening import ALWAYS, open_callbacks
from vila_train.tracking.scalars import evaluation_scalars, step_scalars
from vila_train.tracking.tensorboard import TensorBoard
from vila_train.tracking.trackio import Trackio
from vila_train.tracking.wandb import WeightsAndBiases

RECORD = StepRecord(
    step=1,
    loss=2.5,
    gradient_norm=1.5,
    learning_rates={"projector": 1e-3, "language_model": 2e-5},
    tokens=9000,
    labelled_tokens=700,
    padding=0.1,
    samples=12,
    skipped={"missing media": 2},
    seconds=3.0,
    data_seconds=0.6,
    model_flops=1e12,
    mfu=0.41,
    memory_bytes=7_000_000_000,
)


def config(*callbacks: str) -> TrainConfig:
    given = {"callbacks": callbacks}
    return TrainConfig(
        name="sft",
        tune=("projector",),
        data=DataConfig(mixture="mine"),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        logging=given,  # pyright: ignore[reportArgumentType]
    )


def start(folder: Path, first_step: int = 0, total: int = 10) -> RunStart:
    return RunStart(config(), folder, first_step, total, world_size=1, trained_parameters=25, parameters=100)


def feed(callback: Callback, folder: Path, steps: range, *, reason: str = "finished") -> None:
    """Tell a callback of a run that does `steps`, with an evaluation after the last."""
    callback.on_start(start(folder, steps.start - 1))
    for step in steps:
        callback.on_step(replace(RECORD, step=step, loss=4.0 / step))
    callback.on_evaluation(steps.stop - 1, {"drawn_world/exact_match": 0.5})
    callback.on_checkpoint(steps.stop - 1, folder / "checkpoints")
    callback.on_end(steps.stop - 1, reason)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_is_a_line_of_the_log(tmp_path: Path) -> None:
    feed(JsonLog(), tmp_path, range(1, 4))
    assert [line["loss"] for line in lines(tmp_path / "log.jsonl")] == [4.0, 2.0, 4.0 / 3]
    first = lines(tmp_path / "log.jsonl")[0]
    assert first["skipped"] == {"missing media": 2}
    assert first["learning_rates"]["projector"] == 1e-3
    assert lines(tmp_path / "evaluation.jsonl") == [{"step": 3, "scores": {"drawn_world/exact_match": 0.5}}]


def test_a_line_is_there_before_the_run_ends(tmp_path: Path) -> None:
    log = JsonLog()
    log.on_start(start(tmp_path))
    log.on_step(RECORD)
    assert len(lines(tmp_path / "log.jsonl")) == 1
    log.on_end(1, "stopped")


@pytest.mark.parametrize("tail", ["", '{"step": 6, "lo', "\x00\x00\x00", "null\n", "[6]\n", '{"step": "6"}\n'])
def test_a_resumed_run_replaces_the_steps_that_it_does_again(tmp_path: Path, tail: str) -> None:
    feed(JsonLog(), tmp_path, range(1, 6))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(tail)  # as a killed run may leave it
    feed(JsonLog(), tmp_path, range(4, 8))
    assert [line["step"] for line in lines(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["step"] for line in lines(tmp_path / "evaluation.jsonl")] == [7]


def test_the_logs_are_json_for_strict_readers(tmp_path: Path) -> None:
    """NaN and Infinity are not JSON: other languages, jq and databases refuse them."""
    log = JsonLog()
    log.on_start(start(tmp_path))
    log.on_step(replace(RECORD, loss=math.inf))
    log.on_evaluation(3, {"loss": math.nan, "pope/accuracy": 0.5})
    log.on_end(3, "finished")
    text = (tmp_path / "evaluation.jsonl").read_text()
    expected = {"step": 3, "scores": {"loss": None, "pope/accuracy": 0.5}, "not_finite": {"scores.loss": "nan"}}
    assert json.loads(text, parse_constant=pytest.fail) == expected
    logged = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert (logged["loss"], logged["not_finite"]) == (None, {"loss": "inf"})


def test_a_mapping_that_cannot_be_copied_is_logged(tmp_path: Path) -> None:
    log = JsonLog()
    log.on_start(start(tmp_path))
    log.on_step(replace(RECORD, skipped=types.MappingProxyType({"too long": 1})))
    log.on_end(1, "finished")
    assert lines(tmp_path / "log.jsonl")[0]["skipped"] == {"too long": 1}


def test_the_console_prints_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(Console(), tmp_path, range(1, 11))
    printed = capsys.readouterr().err
    assert "sft: 10 steps" in printed
    assert "25 of 100 parameters are trained (25.0%)" in printed
    assert "step 10: drawn_world/exact_match 0.5" in printed
    assert "loss 4 -> 0.4; 3.0k tokens/s, MFU 41.0%, waiting for data 20.0%, padding 10.0%" in printed
    assert "skipped: 2 missing media" in printed
    assert "\x1b" not in printed, "no control characters in a file"


@pytest.mark.parametrize("kind", ["dumb", "unknown", "DUMB"])
def test_a_dumb_terminal_gets_lines(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", kind)
    feed(Console(), tmp_path, range(1, 3))
    printed = capsys.readouterr().err
    assert "sft: 10 steps" in printed
    assert "\x1b" not in printed
    assert "\r" not in printed


def test_a_resumed_run_counts_from_where_it_stood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feed(Console(), tmp_path, range(6, 8), reason="stopped")
    assert "10 steps, 5 steps already done" in (printed := capsys.readouterr().err)
    assert "stopped at 7 of 10" in printed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "loss 2.5, 3.0k tokens/s, MFU 41%, waiting for data 20%, padding 10%, 2 skipped"),
        ({"truncated": 1234}, "padding 10%, 2 skipped, 1,234 truncated"),
        ({"mfu": None, "skipped": {}}, "loss 2.5, 3.0k tokens/s, waiting for data 20%, padding 10%"),
        ({"tokens": 3, "mfu": None, "skipped": {}}, "loss 2.5, 1 tokens/s, waiting for data 20%, padding 10%"),
        ({"seconds": 0.0, "mfu": None, "skipped": {}}, "waiting for data 100%"),
        ({"tokens": 9_000_000, "skipped": {}}, "3.0M tokens/s"),
    ],
)
def test_a_step_in_words(changes: dict[str, Any], expected: str) -> None:
    assert expected in step_note(replace(RECORD, **changes))


def test_the_shares_of_a_run_are_weighted_by_time_and_room() -> None:
    totals = Totals()
    totals.add(replace(RECORD, tokens=100, padding=0.5, seconds=1.0, data_seconds=1.0, mfu=0.0, skipped={}))
    totals.add(replace(RECORD, tokens=300, padding=0.0, seconds=3.0, data_seconds=0.0, mfu=0.4, skipped={}))
    # 400 of 200 + 300 places hold a token; 1 of 4 seconds was waited; 0.4 in 3 of 4 seconds
    assert "100 tokens/s, MFU 30.0%, waiting for data 25.0%, padding 20.0%" in str(totals)


def polylines(picture: Path) -> list[list[tuple[float, float]]]:
    root = ET.fromstring(picture.read_text())
    found = root.iter("{http://www.w3.org/2000/svg}polyline")
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in one.attrib["points"].split())] for one in found]


def test_the_plot_falls_with_the_loss(tmp_path: Path) -> None:
    feed(JsonLog(), tmp_path, range(1, 11))
    plot = LossPlot()
    feed(plot, tmp_path, range(1, 11))
    losses, *_ = polylines(tmp_path / "loss.svg")
    assert len(losses) == 10
    assert [y for _, y in losses] == sorted(y for _, y in losses), "y grows downwards"
    assert "drawn_world/exact_match" not in (tmp_path / "loss.svg").read_text(), "a single line needs no legend"
    assert "Evaluation" in (tmp_path / "loss.svg").read_text()


@pytest.mark.parametrize("steps", [0, 1, 2, 39, 41, 5000])
def test_runs_of_any_length_are_drawn(tmp_path: Path, steps: int) -> None:
    log = JsonLog()
    log.on_start(start(tmp_path))
    for step in range(1, steps + 1):
        log.on_step(replace(RECORD, step=step, loss=1.0))
    log.on_end(steps, "finished")
    picture = draw_run(tmp_path, "a <b> & c")
    if steps == 0:
        assert picture is None
    else:
        assert picture is not None
        ET.fromstring(picture.read_text())
        assert picture.stat().st_size < 60_000


def test_a_log_with_damaged_lines_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\nnonsense\n{"step": 2, "loss": NaN}\n{"step": 3}\n{"loss": 1}\n'
        '{"step": 4, "loss": null}\n{"step": 5, "loss": 1.0}\n{"step": 6, "lo'
    )
    picture = draw_run(tmp_path, "run")
    assert picture is not None
    assert [len(points) for points in polylines(picture)] == [2]


def test_long_runs_are_thinned_to_means() -> None:
    assert thin([(1, 1), (2, 3), (3, 5), (4, 7)], limit=2) == [(1.5, 2), (3.5, 6)]
    assert smooth([(1, 4), (2, 2), (3, 0)], share=0.67) == [(1, 4), (2, 3), (3, 1)]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1e-9), (0.0, 0.37), (1.0, 3.0), (0.0, 98765.0), (-2.0, 5.0)])
def test_ticks_are_within_the_axis(low: float, high: float) -> None:
    ticks = Axis(low, high, 0, 100).ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick <= high * 1.000001 for tick in ticks)


def test_the_scalars_of_a_step() -> None:
    found = step_scalars(RECORD)
    assert found["speed/tokens_per_second"] == 3000
    assert found["speed/waiting_for_data"] == pytest.approx(0.2)
    assert found["data/skipped/missing media"] == 2
    assert "data/truncated" not in found
    assert step_scalars(replace(RECORD, truncated=3))["data/truncated"] == 3
    assert found["memory/gpu_peak_gb"] == 7
    on_cpu = step_scalars(replace(RECORD, mfu=None, memory_bytes=None, gradient_norm=float("inf")))
    assert not {"speed/mfu", "memory/gpu_peak_gb", "train/gradient_norm"} & set(on_cpu)
    assert evaluation_scalars({"a": 0.5, "b": float("nan")}) == {"evaluation/a": 0.5}


def test_tensorboard_gets_every_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    feed(TensorBoard(), tmp_path, range(1, 4))
    feed(TensorBoard(), tmp_path, range(3, 6))  # resumed after step 2
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert events.Scalars("evaluation/drawn_world/exact_match")[-1].value == 0.5


class FakeTracker(types.ModuleType):
    """Records the calls of wandb or trackio, which the checks do not install."""

    def __init__(self, name: str, *, unreachable: bool = False):
        super().__init__(name)
        self.unreachable = unreachable
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, Mapping[str, float]]] = []
        self.summary: dict[str, Any] = {}
        self.ended: list[Any] = []

    def init(self, **settings: Any) -> "FakeTracker":
        if self.unreachable and settings.get("mode") != "offline":
            raise ConnectionError("api_key not configured (no-tty). call wandb.login()\nmore lines")
        self.started.append(settings)
        return self

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int = 0) -> None:
        self.ended.append(exit_code)


def test_wandb_gets_every_step_and_a_resumed_run_continues_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTracker("wandb")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    feed(WeightsAndBiases(), tmp_path, range(1, 3), reason="stopped")
    feed(WeightsAndBiases(), tmp_path, range(3, 5))
    first, second = fake.started
    assert first["name"] == tmp_path.name
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["config"]["optimizer"]["learning_rate"] == 1e-3
    assert [step for step, _ in fake.logged] == [1, 2, 2, 3, 4, 4]
    assert fake.logged[2][1] == {"evaluation/drawn_world/exact_match": 0.5}
    assert fake.ended == [1, 0]


def test_wandb_logs_offline_if_it_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTracker("wandb", unreachable=True)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.warns(VilaWarning, match=r"cannot be reached \(api_key not configured.*\)\. Logging offline"):
        feed(WeightsAndBiases(), tmp_path, range(1, 3))
    assert [one["mode"] for one in fake.started] == ["offline"]
    assert fake.logged


def test_trackio_gets_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTracker("trackio")
    monkeypatch.setitem(sys.modules, "trackio", fake)
    feed(Trackio(), tmp_path, range(1, 3))
    assert fake.started[0]["project"] == "vila-train"
    assert [step for step, _ in fake.logged] == [1, 2, 2]
    assert fake.ended


@pytest.mark.parametrize(
    ("name", "command"),
    [("wandb", "vila-train[wandb]"), ("trackio", "vila-train[trackio]"), ("tensorboard", "pip install 'tensorboard'")],
)
def test_a_missing_tracker_is_named_before_training(name: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError) as raised:
        open_callbacks(config(name))
    assert f"needs '{name}', which is not installed" in str(raised.value)
    assert command in str(raised.value)


def test_memory_is_reported(tmp_path: Path) -> None:
    memory = MemoryReport()
    memory.on_start(start(tmp_path))
    for step, used in enumerate((5, 9, 7), 1):
        memory.on_step(replace(RECORD, step=step, memory_bytes=used))
    memory.on_end(3, "finished")
    report = json.loads((tmp_path / "memory.json").read_text())
    assert (report["gpu_peak_bytes"], report["gpu_peak_step"]) == (9, 2)
    assert report["process_peak_bytes"] > 10_000_000


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.name)
def test_a_callback_may_end_before_it_starts(factory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails early ends without a start."""
    monkeypatch.chdir(tmp_path)
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, FakeTracker(name))
    callback = factory.build()
    assert isinstance(callback, Callback)
    callback.on_end(0, "no data")


def test_a_run_leaves_its_log_its_plot_and_its_events(
    micro_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    recorder = run(micro_config(micro_checkpoint, **{"logging.callbacks": ("tensorboard", "memory")}), out)
    assert [line["loss"] for line in lines(out / "log.jsonl")] == [*recorder.losses.values()]
    assert len(polylines(out / "loss.svg")[0]) == 6
    assert [*(out / "tensorboard").iterdir()]
    assert (out / "memory.json").exists()
    assert "micro: 6 steps" in capsys.readouterr().err


def test_an_unknown_callback_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown callback 'one_loger'"):
        run(micro_config(tmp_path / "no model here", **{"logging.callbacks": ("one_loger",)}), tmp_path / "run")


class Quitting(NoCallback):
    """Does in every step what no callback should do."""

    def __init__(self, error: BaseException):
        self._error = error

    def on_step(self, record: StepRecord) -> None:
        raise self._error


@pytest.mark.parametrize("error", [SystemExit(1), OSError(28, "No space left on device"), AssertionError()])
def test_training_goes_on_after_any_failure_of_a_callback(
    micro_checkpoint: Path, tmp_path: Path, error: BaseException
) -> None:
    with pytest.warns(VilaWarning, match="The callback Quitting failed") as caught:
        train(micro_config(micro_checkpoint), tmp_path / "run", [Quitting(error)], order=Mixed(), device="cpu")
    assert len(caught) == 1
    assert len(lines(tmp_path / "run" / "log.jsonl")) == 6


def test_vila_train_registers_its_callbacks() -> None:
    registered = check_plugin("vila_train.plugin")["vila_callbacks"]
    assert registered == ("log", "console", "loss_plot", "tensorboard", "wandb", "trackio", "memory")
    assert set(ALWAYS) <= set(registered)


def test_a_run_gets_the_callbacks_of_every_run_and_those_it_names_once() -> None:
    built = open_callbacks(config("memory", "console", "memory"))
    assert [type(one).__name__ for one in built] == ["JsonLog", "Console", "LossPlot", "MemoryReport"]


@pytest.mark.parametrize("name", ["tensorbord", "", "wandb "])
def test_an_unknown_callback_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"Unknown callback .*Known: console, log"):
        open_callbacks(config(name))


PLUGIN = """
from vila_core import hookimpl
from vila_train.callbacks import CallbackFactory, NoCallback

{body}

@hookimpl
def vila_callbacks():
    return {returned}
"""


@pytest.fixture
def plugin_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write and load a plugin file with a callback."""
    from vila_core.plugins import loader

    monkeypatch.setattr(loader, "_plugin_files", {})

    def load(returned: str, body: str = "") -> None:
        path = tmp_path / "my_callbacks.py"
        path.write_text(PLUGIN.format(body=body, returned=returned))
        load_plugin_file(path)

    yield load
    loader._load.cache_clear()


def test_a_plugin_brings_a_callback(plugin_file: Any) -> None:
    plugin_file("[CallbackFactory('quiet', 'does nothing', NoCallback)]")
    assert isinstance(open_callbacks(config("quiet"))[-1], NoCallback)
    assert "quiet" in load_plugins().callbacks.names()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("NoCallback()", r"vila_callbacks\(\) must return a sequence, got NoCallback"),
        ("[NoCallback()]", "expected a callback factory .an object with name, build."),
        ("[CallbackFactory]", "expected a callback factory"),
        ("[CallbackFactory('', 'x', NoCallback)]", "every callback needs a name"),
        ("[CallbackFactory('a', 'x', None)]", "expected a callback factory"),
        ("[CallbackFactory('a', 'x', NoCallback)] * 2", "returns two callbacks named 'a'"),
        ("[CallbackFactory('wandb', 'x', NoCallback)]", "Two plugins register the callback 'wandb'"),
    ],
)
def test_what_a_plugin_registers_is_checked(plugin_file: Any, returned: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        plugin_file(returned)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("lambda: 1 / 0", "The callback 'bad' of .*my_callbacks.* fails: ZeroDivisionError"),
        ("lambda: exit(3)", "The callback 'bad' of .*my_callbacks.* fails: SystemExit"),
        ("lambda: None", "The callback 'bad' of .*my_callbacks.* built None; expected an object with on_start"),
        ("object", "built <object object.*expected an object with on_start"),
    ],
)
def test_a_factory_that_fails_is_named(plugin_file: Any, factory: str, message: str) -> None:
    plugin_file(f"[CallbackFactory('bad', 'x', {factory})]")
    with pytest.raises(PluginError, match=message):
        open_callbacks(config("bad"))


def test_a_factory_that_takes_arguments_breaks_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    body = PLUGIN.format(body="", returned="[CallbackFactory('a', 'x', lambda config: NoCallback())]")
    (tmp_path / "greedy_callbacks.py").write_text(body)
    with pytest.raises(PluginError, match="build must take no argument"):
        check_plugin("greedy_callbacks")


def test_callbacks_of_every_run_do_not_depend_on_the_chosen_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VILA_PLUGINS", "")
    assert len(open_callbacks(config())) == len(ALWAYS)
