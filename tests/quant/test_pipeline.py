"""`vila-quant awq` on the embedded model: what is written, resuming, and what is refused."""

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.programs import run_program
from tests.quant.conftest import tensors_of, with_tensors
from torch import Tensor

import vila_core as vila
from vila_core.checkpoint import Checkpoint, convert, open_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.cli.progress import NoProgress
from vila_core.errors import CheckpointError, ConfigError
from vila_quant.cli.main import main
from vila_quant.errors import QuantizationError
from vila_quant.quantizing import pipeline
from vila_quant.quantizing.options import QuantizationOptions
from vila_quant.quantizing.pipeline import quantize_model
from vila_quant.quantizing.report import QuantizationReport
from vila_quant.quantizing.report_files import read_report
from vila_quant.quantizing.search_results import read_search_results
from vila_quant.quantizing.work_folder import WorkFolder

QUICK = QuantizationOptions(calibration="drawn-world", sequences=2, sequence_length=256)
SETTINGS = {
    name: value for name, value in QUICK.model_dump().items() if name in ("calibration", "sequences", "sequence_length")
}
FIRST = "llm.model.layers.0.mlp.down_proj"


def quick(**changes: object) -> QuantizationOptions:
    return QuantizationOptions.model_validate({**SETTINGS, **changes})


class Steps(NoProgress):
    """Counts, by phase, the announced and the finished steps."""

    def __init__(self) -> None:
        self.stated: dict[str, int] = {}
        self.done: dict[str, int] = {}

    def start(self, name: str, total: int, done: int = 0) -> None:
        self.stated[name], self.done[name] = total, done

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done[list(self.done)[-1]] += steps


@pytest.fixture(scope="module")
def steps() -> Steps:
    """Of the run that `quantized` is."""
    return Steps()


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, steps: Steps) -> tuple[Path, QuantizationReport]:
    """The embedded model in four bits, its head and its tower in eight; not to be changed."""
    out = tmp_path_factory.mktemp("quantized") / "out"
    options = quick(
        lm_head="int8", vision="int8", vision_alpha=0.5, skip=("llm.model.layers.5.mlp.*",), search_results=True
    )
    return out, quantize_model(embedded_model(), out, options, steps, device="cpu")


def test_every_phase_finishes_its_announced_steps(quantized: tuple[Path, QuantizationReport], steps: Steps) -> None:
    assert list(steps.stated) == ["Calibration", "Vision tower", "Layers", "Head", "Writing the checkpoint"]
    assert steps.done == steps.stated


def test_the_quantized_folder_loads_and_gives_the_same_answer(quantized: tuple[Path, QuantizationReport]) -> None:
    out, _ = quantized
    assert open_checkpoint(out).quantization is not None
    picture = Path("examples/media")
    case = json.loads((picture / "questions.json").read_text())[0]
    prompt = [*(vila.Image(picture / name) for name in case["media"]), case["text"]]
    assert vila.load(out, device="cpu").generate(prompt) == case["answer"]


def test_the_requested_parts_are_quantized(quantized: tuple[Path, QuantizationReport]) -> None:
    tensors = tensors_of(open_checkpoint(quantized[0]))
    assert tensors[f"{FIRST}.qweight"].dtype == torch.int32
    assert f"{FIRST}.weight" not in tensors
    assert "llm.model.layers.5.mlp.down_proj.weight" in tensors
    assert "llm.model.layers.5.self_attn.q_proj.qweight" in tensors
    assert tensors["llm.lm_head.weight"].dtype == torch.int8
    assert tensors["llm.lm_head.weight_scale"].shape == (1024, 1)
    whole = tensors_of(open_checkpoint(embedded_model()))
    assert torch.equal(tensors["llm.model.embed_tokens.weight"], whole["llm.model.embed_tokens.weight"])
    restored = tensors["llm.lm_head.weight"] * tensors["llm.lm_head.weight_scale"]
    torch.testing.assert_close(
        restored,
        whole["llm.model.embed_tokens.weight"].float(),
        atol=float(tensors["llm.lm_head.weight_scale"].max()),
        rtol=0,
    )
    assert any(name.startswith("vision_tower.") and tensor.dtype == torch.int8 for name, tensor in tensors.items())
    assert tensors["llm.model.layers.0.input_layernorm.weight"].dtype == torch.bfloat16


def test_the_report_describes_the_run(quantized: tuple[Path, QuantizationReport]) -> None:
    out, report = quantized
    written = json.loads((out / "quantization_report.json").read_text())
    assert written["calibration"]["digest"] == report.calibration.digest
    assert (report.calibration.sequences, report.calibration.sequence_length) == (2, 256)
    assert len(report.layers) == 6
    assert all(0 < layer.mse < layer.mse_nearest < layer.power for layer in report.layers)
    assert report.sizes.after < 0.52 * report.sizes.before  # the tied head is stored once more, in eight bits
    page = (out / "quantization_report.html").read_text()
    assert page.count('<rect class="after"') == 6
    assert "http" not in page  # it needs nothing from elsewhere
    assert "<h1>Quantization of vila-tiny</h1>" in page
    assert report.head_error is not None
    assert 0 < report.head_error < 0.02
    assert f"{report.head_error:.2%}" in page
    assert all(0 < branch.error < 0.1 for branch in report.vision)
    assert len(report.vision) == 12  # attention and MLP of the six layers that run
    assert "<td>seed</td><td>0</td>" in page
    card = (out / "README.md").read_text()
    assert "int8, activations too" in card
    assert "license: apache-2.0" in card
    assert "| not quantized | embeddings, norms, projector, `llm.model.layers.5.mlp.*` |" in card


def test_the_search_results_are_those_that_were_applied(quantized: tuple[Path, QuantizationReport]) -> None:
    results = read_search_results(quantized[0] / "awq_search_results.pt")
    assert results.blocks() == tuple(f"model.layers.{layer}" for layer in range(6))


def test_a_finished_run_leaves_only_its_output(quantized: tuple[Path, QuantizationReport]) -> None:
    assert [path.name for path in quantized[0].parent.iterdir()] == ["out"]


def test_a_complete_run_is_not_run_again(lite: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = quick(search="nearest", group_size=32, calibration="builtin")
    first = quantize_model(lite.path, tmp_path / "out", options, device="cpu")
    before = weights(tmp_path / "out")
    assert quantize_model(lite.path, tmp_path / "out", options, device="cpu") == first
    arguments = [str(lite.path), str(tmp_path / "out"), "-g", "32", "-s", "nearest", "-c", "builtin", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main(["awq", *arguments, "--sequences", "2", "--sequence-length", "256"])
    assert ended.value.code == 0
    assert f"{tmp_path / 'out'} is already complete" in " ".join(capsys.readouterr().out.split())
    assert weights(tmp_path / "out") == before
    assert not (tmp_path / ".out.quantizing").exists()
    with pytest.raises(CheckpointError, match="quantized with other settings"):
        quantize_model(lite.path, tmp_path / "out", options.model_copy(update={"seed": 1}), device="cpu")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"run": 1}'])
def test_a_foreign_report_makes_no_folder_complete(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "quantization_report.json").write_bytes(content)
    assert read_report(tmp_path) is None
    with pytest.raises(CheckpointError, match="not empty"):
        quantize_model(embedded_model(), tmp_path, QUICK, device="cpu")


def test_two_processes_do_not_share_a_working_folder(tmp_path: Path) -> None:
    held = WorkFolder(tmp_path / "out", {"seed": 0})
    code = "import sys; from pathlib import Path; from vila_quant.quantizing.work_folder import WorkFolder; " + (
        "WorkFolder(Path(sys.argv[1]), {'seed': 0})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    second = run_program(command)
    assert "Another process is quantizing into" in second.stderr
    with held.finishing():
        pass
    assert run_program(command).returncode == 0


RUN = """
import os, signal, sys
from vila_quant.quantizing.options import QuantizationOptions
from vila_quant.quantizing.pipeline import quantize_model
from vila_core.cli.progress import NoProgress

class Killed(NoProgress):
    def start(self, name, total, done=0):
        self.phase = name

    def advance(self, steps=1, note=""):
        if self.phase == "Layers":
            os.kill(os.getpid(), signal.SIGKILL)

quantize_model(sys.argv[1], sys.argv[2], QuantizationOptions.model_validate_json(sys.argv[3]), Killed(), device="cpu")
"""


def weights(folder: Path) -> Mapping[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if "report" not in file.name and file.is_file()
    }


@pytest.mark.parametrize("search", ["best", pytest.param("reference", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_bytes(lite: Checkpoint, tmp_path: Path, search: str) -> None:
    options = quick(search=search, lm_head="int4", group_size=32, calibration="builtin")
    quantize_model(lite.path, tmp_path / "whole" / "out", options, device="cpu")

    out = tmp_path / "killed" / "out"
    out.parent.mkdir()
    work = out.parent / ".out.quantizing"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    arguments = [str(lite.path), str(out), options.model_dump_json()]
    run = run_program([sys.executable, "-c", RUN, *arguments], env=environment)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not out.exists()
    assert not (work / "layer-001").exists()
    finished = (work / "layer-000" / "record.json").stat().st_mtime_ns

    with pytest.raises(QuantizationError, match=r"unfinished work of another run: .* was .* and is .*--restart"):
        quantize_model(lite.path, out, options.model_copy(update={"seed": 1}), device="cpu")
    assert (work / "layer-000" / "record.json").stat().st_mtime_ns == finished

    quantize_model(lite.path, out, options, device="cpu")
    assert weights(out) == weights(tmp_path / "whole" / "out")
    assert not work.exists()


def test_other_weights_at_the_same_path_are_noticed(
    lite: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have the size and the date of the earlier ones, as from an archive without dates."""

    def stop(self: WorkFolder, step: str, *_: object) -> None:
        raise KeyboardInterrupt

    model, options = Path(shutil.copytree(lite.path, tmp_path / "model")), quick(group_size=32)
    with monkeypatch.context() as patched:
        patched.setattr(WorkFolder, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize_model(model, tmp_path / "out", options, device="cpu")
    file = model / "model.safetensors"
    date, tensors = file.stat().st_mtime_ns, load_file(file)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.down_proj.weight"))
    save_file({**tensors, name: 1.01 * tensors[name]}, file)
    os.utime(file, ns=(date, date))
    with pytest.raises(QuantizationError, match=r"unfinished work of another run: files\..*model.safetensors was"):
        quantize_model(model, tmp_path / "out", options, device="cpu")


def test_a_run_that_stopped_between_a_search_and_its_layer_goes_on(
    lite: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = WorkFolder.save

    def stop_before_a_layer(
        self: WorkFolder, step: str, tensors: Mapping[str, Tensor], record: Mapping[str, object]
    ) -> None:
        if step == "layer-001":
            raise KeyboardInterrupt
        save(self, step, tensors, record)

    options = quick(search="reference", group_size=32, calibration="builtin", search_results=True)
    with monkeypatch.context() as patched:
        patched.setattr(WorkFolder, "save", stop_before_a_layer)
        with pytest.raises(KeyboardInterrupt):
            quantize_model(lite.path, tmp_path / "out", options, device="cpu")
    assert (tmp_path / ".out.quantizing" / "layer-001-search").exists()
    quantize_model(lite.path, tmp_path / "out", options, device="cpu")
    assert read_search_results(tmp_path / "out" / "awq_search_results.pt").blocks() == (
        "model.layers.0",
        "model.layers.1",
    )


def changed_copy(whole_tiny: Checkpoint, folder: Path, changed: dict[str, Tensor | None]) -> Path:
    return convert(with_tensors(whole_tiny, changed), folder, "vila").path


def test_weights_that_are_not_finite_are_named(whole_tiny: Checkpoint, tmp_path: Path) -> None:
    weight = tensors_of(whole_tiny)[f"{FIRST}.weight"].clone()
    weight[3, 4] = torch.nan
    model = changed_copy(whole_tiny, tmp_path / "model", {f"{FIRST}.weight": weight})
    with pytest.raises(QuantizationError, match=rf"{FIRST}\.weight has values that are not finite"):
        quantize_model(model, tmp_path / "out", QUICK, device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("search", ["best", "reference"])
def test_activations_that_are_not_finite_are_named(whole_tiny: Checkpoint, tmp_path: Path, search: str) -> None:
    name = "llm.model.layers.1.mlp.up_proj.weight"
    huge = torch.full_like(tensors_of(whole_tiny)[name].float(), 3e38).bfloat16()
    model = changed_copy(whole_tiny, tmp_path / "model", {name: huge})
    with pytest.raises(QuantizationError, match=r"llm\.model\.layers\.1\.mlp\.down_proj: its inputs are not finite"):
        quantize_model(model, tmp_path / "out", quick(search=search), device="cpu")


def test_a_group_size_that_does_not_fit_is_rejected_with_suggestions(lite: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(
        QuantizationError, match=r"128 does not divide the 64 inputs of llm\.model\.layers\.0.*--group-size 32 fits all"
    ):
        quantize_model(lite.path, tmp_path / "out", quick(calibration="builtin"), device="cpu")


def test_a_quantized_model_is_not_quantized_again(quantized: tuple[Path, QuantizationReport], tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="already quantized"):
        quantize_model(quantized[0], tmp_path / "out", QUICK, device="cpu")


def test_too_little_calibration_says_how_much_there_is(tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"prompt": "Hello", "answer": "Hi"}\n')
    with pytest.raises(
        QuantizationError, match=r"Not enough calibration data: the samples have \d+ tokens, but 2048 are needed"
    ):
        quantize_model(
            embedded_model(),
            tmp_path / "out",
            QuantizationOptions(calibration=str(tmp_path / "few.jsonl")),
            device="cpu",
        )


def test_patterns_methods_and_folders_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="matches no linear"):
        quantize_model(embedded_model(), tmp_path / "out", quick(skip=("lm_haed",)), device="cpu")
    with pytest.raises(ConfigError, match="Did you mean 'best'"):
        quantize_model(embedded_model(), tmp_path / "out", quick(search="bestt"), device="cpu")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(CheckpointError, match="not empty"):
        quantize_model(embedded_model(), tmp_path / "full", QUICK, device="cpu")
    with pytest.raises(CheckpointError, match=rf"cannot be written: {tmp_path}/full/file is a file"):
        quantize_model(embedded_model(), tmp_path / "full" / "file" / "out", QUICK, device="cpu")
    with pytest.raises(CheckpointError, match="cannot be written: File name too long"):
        quantize_model(embedded_model(), tmp_path / ("o" * 256), QUICK, device="cpu")
    with pytest.raises(CheckpointError, match="quantizing cannot be written: File name too long"):
        quantize_model(embedded_model(), tmp_path / ("o" * 250), QUICK, device="cpu")  # the working folder's is longer
    with pytest.raises(QuantizationError, match="tinychat"):
        quantize_model(embedded_model(), tmp_path / "out", quick(format="tinychat", lm_head="int8"), device="cpu")


def test_a_disk_that_is_full_at_the_report_loses_no_work(
    lite: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    options = quick(search="nearest", group_size=32, calibration="builtin", search_results=True)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "write_report", full)
        with pytest.raises(
            CheckpointError,
            match=r"out cannot be written: No space left on device\. Free some space\. Finished steps are kept",
        ):
            quantize_model(lite.path, tmp_path / "out", options, device="cpu")
        patched.setattr(torch, "save", full)
        with pytest.raises(CheckpointError, match=r"awq_search_results\.pt was not written.*Finished steps are kept"):
            quantize_model(lite.path, tmp_path / "out", options, device="cpu")
    assert not (tmp_path / "out").exists()
    record = (tmp_path / ".out.quantizing" / "layer-001" / "record.json").read_text()
    assert (
        json.loads(record)["seconds"]
        == quantize_model(lite.path, tmp_path / "out", options, device="cpu").layers[1].seconds
    )


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate")],
    ids=lambda error: type(error).__name__,
)
def test_full_memory_halves_the_sequences_and_warns(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vila_quant.quantizing import layer_loop

    at_once: list[int] = []
    original = layer_loop.LayerLoop._quantize

    def fails_twice(self: layer_loop.LayerLoop, *arguments: object) -> None:
        at_once.append(self.sequences_at_once)
        if len(at_once) <= 2:
            raise error
        original(self, *arguments)  # pyright: ignore

    warned: list[str] = []

    class Warnings(NoProgress):
        def warn(self, message: str) -> None:
            warned.append(message)

    monkeypatch.setattr(layer_loop.LayerLoop, "_quantize", fails_twice)
    quantize_model(embedded_model(), tmp_path / "out", quick(search="nearest"), Warnings(), device="cpu")
    assert at_once[:4] == [4, 2, 1, 1]
    assert warned[0].startswith("Calibration has 512 tokens, fewer than the widest layer has inputs (640)")
    assert warned[1:] == [
        f"The memory of cpu is full at layer 0: continuing with {count} sequences at a time." for count in (2, 1)
    ]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError(), QuantizationError, r"layers\.0 does not fit .* Use a shorter --sequence-length\.$"),
        (RuntimeError("shapes do not match"), RuntimeError, "shapes do not match"),
    ],
    ids=["never fits", "another failure"],
)
def test_a_layer_that_fails_for_good(
    error: Exception, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vila_quant.quantizing import layer_loop

    def fails(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(layer_loop.LayerLoop, "_quantize", fails)
    with pytest.raises(kind, match=message):
        quantize_model(embedded_model(), tmp_path / "out", quick(search="nearest"), device="cpu")


def test_the_program_quantizes_an_nvila_folder_for_tinychat_or_says_why_not(
    lite: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = [
        str(lite.path),
        str(tmp_path / "out"),
        "--group-size",
        "32",
        "--search",
        "nearest",
        "--device",
        "cpu",
    ]
    calibration = ["--calibration", "builtin", "--sequences", "2", "--sequence-length", "64"]
    with pytest.raises(SystemExit) as ended:
        main(["awq", *source, *calibration])
    assert ended.value.code == 0, capsys.readouterr().err
    assert open_checkpoint(tmp_path / "out").quantization is not None
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        main(["awq", *source, *calibration, "--format", "tinychat"])
    assert ended.value.code == 2
    assert "tinychat" in capsys.readouterr().err


def test_a_home_of_nobody_is_a_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["awq", "vila-tiny", "~nobody-of-this-name/out"])
    assert ended.value.code == 2
    assert "user that does not exist" in capsys.readouterr().err


def test_an_interrupt_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "quantize_model", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["awq", "vila-tiny", str(tmp_path / "out")])
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert "Finished layers are kept" in said
    assert "Nothing was written" not in said
