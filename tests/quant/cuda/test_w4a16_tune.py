"""`vila-quant tune`, with a timer that invents its times: no GPU."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("triton")

from vila_core.checkpoint.embedded import embedded_model
from vila_core.errors import ConfigError, VilaError, VilaWarning
from vila_quant.checking.kernel_choices import NVILA_8B
from vila_quant.checking.tuned_shapes import fused_shapes, named_shapes
from vila_quant.cli import tune as command
from vila_quant.cli.main import app
from vila_quant.kernels.cuda.w4a16 import W4Weight, reference, tables, timing
from vila_quant.kernels.cuda.w4a16.candidates import TOKENS, candidates
from vila_quant.kernels.cuda.w4a16.decode import DecodeConfig
from vila_quant.kernels.cuda.w4a16.tables import Config, Entry, Table, tuned_file
from vila_quant.kernels.cuda.w4a16.tiles import TileConfig
from vila_quant.kernels.cuda.w4a16.tune import tune
from vila_quant.kernels.cuda.w4a16.warpgroups import WarpgroupConfig
from vila_quant.kernels.kernel import LinearShape

GPU = "NVIDIA GeForce RTX 4090"
SHAPES = ((512, 256), (256, 512))
BEST = {1: DecodeConfig(1, 16, 2, 1, 64), 64: TileConfig(64, 64, 128, 4, 4, 4)}


class FakeTimer:
    """Every product takes 1 ms, the best 0.5 ms; the best chain prefetches 2 MB of each weight."""

    def __init__(self, gpu: str = GPU, best: dict[int, Config] | None = None, hopper: bool = False) -> None:
        self.gpu, self.best, self.hopper = gpu, BEST if best is None else best, hopper
        self.prepared: Sequence[tuple[int, int]] = ()
        self.failing: type[Config] | None = None

    def runs(self, config: Config) -> bool:
        return self.hopper or not isinstance(config, WarpgroupConfig)

    def chosen(self, tokens: int, shape: tuple[int, int]) -> Config:
        return tables.choose(self.gpu, tokens, *shape, self.runs)

    def prepare(self, shapes: Sequence[tuple[int, int]], tokens: Sequence[int]) -> None:
        self.prepared = shapes

    def product(self, tokens: int, shape: tuple[int, int], config: Config) -> float | None:
        assert self.runs(config)
        if self.failing is not None and isinstance(config, self.failing):
            return None
        return 0.5 if config == self.best.get(tokens) else 1.0

    def chain(self, tokens: int, shapes: Sequence[tuple[int, int]], configs: Sequence[DecodeConfig]) -> float:
        return 1.0 + sum(abs(config.prefetch - (2 << 20)) for config in configs) / 1e8


@pytest.fixture(autouse=True)
def timer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTimer:
    """A fake timer for the command, and an empty cache."""
    monkeypatch.setenv("VILA_QUANT_CACHE", str(tmp_path / "cache"))
    tables.tuned.cache_clear()
    fake = FakeTimer()
    monkeypatch.setattr(command, "open_timer", lambda *arguments: fake)
    return fake


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["tune", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_fastest_configuration_is_found() -> None:
    table, gains = tune(SHAPES, FakeTimer())
    assert table.gpu == GPU
    for shape in SHAPES:
        assert table.choose(1, *shape) == replace(BEST[1], prefetch=2 << 20)
        assert table.choose(64, *shape) == BEST[64]
    found = {(gain.tokens, gain.shape): gain.before / gain.after for gain in gains}
    assert found.keys() == {(tokens, shape) for tokens in TOKENS for shape in SHAPES}
    assert {found[1, SHAPES[0]], found[4, SHAPES[0]], found[64, SHAPES[1]]} == {2.0, 1.0}


def test_a_table_serves_any_number_of_tokens(tmp_path: Path) -> None:
    table, _ = tune(SHAPES, FakeTimer())
    table.write(tmp_path / "table.json")
    assert Table.read(tmp_path / "table.json") == table
    for tokens in (1, 2, 16, 17, 100, 5000, 10**6):
        assert isinstance(table.choose(tokens, *SHAPES[0]), DecodeConfig) == (tokens <= 16)


def test_what_is_in_use_stays_unless_something_is_faster() -> None:
    timer = FakeTimer(best={})
    table, gains = tune(SHAPES, timer)
    assert all(gain.before == gain.after for gain in gains)
    assert table.choose(64, *SHAPES[0]) == timer.chosen(64, SHAPES[0])


def test_a_kernel_for_a_certain_triton_has_another_behind_it() -> None:
    best: dict[int, Config] = {1024: WarpgroupConfig(256, 5)}
    table, _ = tune(SHAPES, FakeTimer(best=best, hopper=True))
    assert table.choose(1024, *SHAPES[0]) == best[1024]
    others = table.usable(lambda config: not isinstance(config, WarpgroupConfig))
    assert {entry.tokens for entry in others.entries} == set(TOKENS)


def test_configurations_that_do_not_fit_are_left_out(timer: FakeTimer) -> None:
    timer.failing = TileConfig
    with pytest.raises(ConfigError, match="No kernel for 32 tokens and a weight of 512 x 256 fits"):
        tune(SHAPES, timer)


@pytest.mark.parametrize("tokens", TOKENS)
def test_candidates_are_few_and_the_kernels_allow_them(tokens: int, tmp_path: Path) -> None:
    found = candidates(tokens)
    assert 5 < len(found) <= 36
    last = Entry(4096, 1, 1, TileConfig())
    Table("", (*(Entry(tokens, 1, 1, config) for config in found), last)).write(tmp_path / "table.json")
    assert len(Table.read(tmp_path / "table.json").entries) == len(found) + 1


def test_the_command_writes_where_the_kernels_look(timer: FakeTimer) -> None:
    output = run("--shapes", "nvila-8b")
    assert timer.prepared == ((4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944))
    assert "2.00 x" in output
    assert str(tuned_file(GPU)) in output.replace("\n", "")
    assert tables.choose(GPU, 1, 4608, 3584) == replace(BEST[1], prefetch=2 << 20)


def test_the_command_keeps_other_shapes() -> None:
    run("--shapes", "nvila-8b")
    run("--shapes", "nvila-3b")
    table = Table.read(tuned_file(GPU))
    assert table.has(37888, 3584)
    assert table.has(22016, 2048)
    run("--shapes", "nvila-8b")
    assert Table.read(tuned_file(GPU)).entries.count(table.entries[0]) == 1


def test_the_command_takes_a_checkpoint(timer: FakeTimer) -> None:
    report = json.loads(run(str(embedded_model()), "--json"))
    assert report["gpu"] == GPU
    assert {(product["outputs"], product["inputs"]) for product in report["products"]} == set(timer.prepared)
    best = [product for product in report["products"] if product["tokens"] == 64]
    assert {(product["before_us"], product["after_us"]) for product in best} == {(1000.0, 500.0)}


def test_the_command_writes_to_a_file_to_share(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rtx-4090.json"
    output = run("--shapes", "nvila-3b", "--output", str(path)).replace("\n", "")
    assert Table.read(path).gpu == GPU
    assert not tuned_file(GPU).exists()
    assert str(tuned_file(GPU)) in output, "where to copy it"
    run("--shapes", "nvila-8b", "--output", str(path))
    assert len({(entry.outputs, entry.inputs) for entry in Table.read(path).entries}) == 8


@pytest.mark.parametrize("content", ["", "{", "[]", '{"gpu": "x", "entries": []}', "my notes"])
def test_a_broken_table_in_the_cache_is_replaced(content: str) -> None:
    tuned_file(GPU).parent.mkdir(parents=True)
    tuned_file(GPU).write_text(content)
    with pytest.warns(VilaWarning, match="Run vila-quant tune again"):
        run()
    assert Table.read(tuned_file(GPU)).gpu == GPU


def test_a_file_that_is_no_table_is_not_overwritten(tmp_path: Path) -> None:
    notes = tmp_path / "notes.json"
    notes.write_text('{"mine": 1}')
    with pytest.raises(VilaError, match=r"notes.json exists and is not a table"):
        run("--output", str(notes))
    assert notes.read_text() == '{"mine": 1}'


def test_a_place_that_cannot_be_written_is_found_before_measuring(
    tmp_path: Path, timer: FakeTimer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "table.json", Path("/proc/nothing/table.json"), tmp_path):
        with pytest.raises(VilaError, match=r"--output"):
            run("--output", str(output))
    monkeypatch.setenv("VILA_QUANT_CACHE", str(tmp_path / "file"))
    with pytest.raises(VilaError, match=r"Cannot write .*VILA_QUANT_CACHE"):
        run()
    assert not timer.prepared


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    before = tuned_file(GPU).read_bytes()

    def full(self: Table, path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Table, "write", full)
    with pytest.raises(VilaError, match="No space left on device"):
        run()
    assert tuned_file(GPU).read_bytes() == before
    assert list(tuned_file(GPU).parent.iterdir()) == [tuned_file(GPU)]


def test_a_full_gpu_is_reported(timer: FakeTimer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256 MiB")

    monkeypatch.setattr(timer, "product", full)
    with pytest.raises(ConfigError, match="memory of NVIDIA GeForce RTX 4090 is full"):
        run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["my-model", "--shapes", "nvila-8b"], "not both"),
        (["--shapes", "nvila-9b"], "Unknown model shapes 'nvila-9b'"),
        (["--dtype", "float32"], "Unknown dtype 'float32'"),
        (["--dtype", "int4"], "Unknown dtype 'int4'"),
        (["./nowhere"], "nowhere"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    with pytest.raises(VilaError, match=message):
        run(*arguments)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("auto", "vila doctor"),
        ("cpu", "Got --device cpu"),
        ("tpu", "Unknown device"),
        ("cuda:7", "not on this machine"),
    ],
)
def test_without_a_gpu(device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=message):
        run("--device", device)


@pytest.mark.parametrize(
    ("capability", "has_triton", "message"),
    [((7, 5), True, "sm80 or later; this GPU is sm75"), ((9, 0), False, "Triton is not installed")],
)
def test_a_gpu_that_the_kernels_do_not_run_on(
    capability: tuple[int, int], has_triton: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("vila_core.ops.support.find_spec", lambda name: object() if has_triton else None)
    with pytest.raises(ConfigError, match=f"do not run on Tesla T4: .*{message}"):
        run()


def test_linears_of_the_same_activations_are_one_product() -> None:
    assert fused_shapes(NVILA_8B) == named_shapes("nvila-8b")
    other = {LinearShape(64, 256, 64): ("a.experts.*.w1",), LinearShape.eight_bit("w8a8", 32, 64): ("vision.fc1",)}
    assert fused_shapes(other).shapes == ((64, 256),)
    assert fused_shapes(other).group_size == 64
    with pytest.raises(ConfigError, match="no four-bit layers"):
        fused_shapes({LinearShape.eight_bit("w8a8", 32, 64): ("vision.fc1",)})


def test_calls_are_timed_in_turns_that_first_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two calls takes 10 or 20 ms, and three times as long for 40 ms after the other."""
    clock, last, changed = 0.0, None, 0.0
    turns: list[object] = []

    def replays(graph: float, repetitions: int) -> list[float]:
        nonlocal clock, last, changed
        if graph != last:
            last, changed = graph, clock
            turns.append(graph)
        times: list[float] = []
        for _ in range(repetitions):
            times.append(graph * (3 if clock - changed < 40 else 1))
            clock += times[-1]
        return times

    monkeypatch.setattr(timing, "captured", lambda call: call())
    monkeypatch.setattr(timing, "replays_milliseconds", replays)
    assert timing.milliseconds_in_turns([lambda: 10.0, lambda: 20.0], rounds=3, milliseconds=400) == [10, 20]
    assert turns == [10, 20, 10, 20, 10, 20]  # the second round begins with the call that ended the first


@pytest.mark.parametrize("group_size", [32, 128])
def test_random_weights_are_normal_numbers_that_keep_the_size_of_activations(group_size: int) -> None:
    torch.manual_seed(0)
    packed = timing.random_weight(64, 1024, group_size, torch.device("cpu"))
    w = reference.dequantize(W4Weight(packed, 64, 1024, group_size), torch.float32)
    assert w.std().item() * 1024**0.5 == pytest.approx(1, abs=0.03)
    assert abs(w.mean().item()) * 1024**0.5 < 0.05
    kurtosis = ((w - w.mean()) ** 4).mean() / w.var() ** 2
    assert kurtosis.item() == pytest.approx(3, abs=0.3)
