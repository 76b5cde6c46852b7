"""Quantize a checkpoint layer by layer, with bounded memory; an interrupted run resumes at the last finished layer.

OUT/                     appears when it is complete
.OUT.quantizing/         finished steps of an unfinished run, beside OUT; removed at the end
"""

import resource
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

import vila_quant
from vila_core.checkpoint import Checkpoint, open_adapter, open_checkpoint
from vila_core.checkpoint.conversion import writable_format
from vila_core.checkpoint.fingerprints import checkpoint_files, file_fingerprint
from vila_core.checkpoint.lora import find_source
from vila_core.checkpoint.new_folder import require_new
from vila_core.checkpoint.tensors.lora import Adapter
from vila_core.cli.progress import NoProgress, Progress
from vila_core.device_choice import DTYPES, choose_device
from vila_core.errors import CheckpointError
from vila_core.template_choice import choose_template
from vila_core.tokenizer import Tokenizer
from vila_quant.awq.method import BlockQuantizer
from vila_quant.calibration.drawings import reads_what_it_draws, with_drawings
from vila_quant.calibration.embedding import Calibration, Embedder, collect
from vila_quant.calibration.samples import read_samples, resolve_source
from vila_quant.errors import QuantizationError
from vila_quant.quantizing.assembly import HEAD_STEP, VISION_STEP, stage
from vila_quant.quantizing.blocks import TensorReader
from vila_quant.quantizing.layer_loop import LayerLoop, step_name
from vila_quant.quantizing.options import PICTURE_SHARES, SEQUENCES, QuantizationOptions
from vila_quant.quantizing.plan import Plan, check_format, make_plan
from vila_quant.quantizing.report import (
    BranchReport,
    CalibrationReport,
    LayerReport,
    QuantizationReport,
    published_name,
    sizes_of,
)
from vila_quant.quantizing.report_files import read_report, write_report
from vila_quant.quantizing.search import find_method, search_digest
from vila_quant.quantizing.work_folder import WorkFolder, digest


def quantize_model(
    model: str | Path,
    out: str | Path,
    options: QuantizationOptions | None = None,
    progress: Progress | None = None,
    *,
    device: str | torch.device = "auto",
    lora: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    restart: bool = False,
) -> QuantizationReport:
    """Quantize a checkpoint into the new folder `out`. The same call resumes an interrupted run, with the same result.

    If `out` already holds the result of the same call, its report is returned and nothing is written.

    Args:
        model: folder or hub id of an unquantized model, in any format, or of a LoRA adapter that names its base model.
        out: a folder that does not exist yet, or is empty.
        options: None for the defaults.
        progress: receives progress.
        device: "auto", "cuda", "cpu", "cuda:1".
        lora: folder or hub id of a LoRA adapter to merge first.
        revision: branch, tag or commit of `model` on the hub.
        token: access token for a private repository.
        offline: only use what is in the hub's cache.
        restart: discard the unfinished work of an earlier call.

    Raises:
        CheckpointError: the checkpoint or adapter cannot be read, `out` is not empty or cannot be written, the
            format cannot store the model, or search results do not fit it.
        ConfigError: the method, device or template is unknown.
        QuantizationError: the model is already quantized, a width does not fit, values are not finite, there is too
            little calibration data or memory, or unfinished work of another run.
    """
    options, progress = options or QuantizationOptions(), progress or NoProgress()
    target, path = choose_device(device), Path(out).expanduser().absolute()
    finished = read_report(path)
    if finished is None:
        require_new(path)
    check_format(options)
    source, overlay = find_source(model, lora, revision=revision, token=token, offline=offline)
    job = _open_job(source, overlay, options, target, progress, token=token, offline=offline)
    if target.type == "cuda":
        torch.cuda.reset_peak_memory_stats(target)

    clock = Clock()
    with clock.phase("calibration"):
        embedder = _open_embedder(job)
        calibration = _calibrate(embedder, job)
        _warn_of_few_tokens(calibration, job.plan, progress)
        manifest = _manifest(job, calibration)
        if finished is not None:
            return _require_same_run(finished, manifest, path)
        work = WorkFolder(path, manifest, restart=restart)
    with clock.phase("vision"):
        _quantize_vision(embedder, calibration, job, work)
    del embedder
    _quantize_language_model(job, calibration, work, clock)
    with work.finishing():
        with clock.phase("writing"):
            progress.start("Writing the checkpoint", 1)
            staged = stage(job.checkpoint, job.adapter, job.plan, options, work, path.name)
        names = published_name(model), None if lora is None else published_name(lora)
        report = _report(job, calibration, work, staged, names, clock)
        write_report(report, job.checkpoint, staged)
        _move_into_place(staged, path)
    progress.advance()
    return report


@dataclass(frozen=True)
class _Job:
    """What a run quantizes, how, and where it computes."""

    checkpoint: Checkpoint
    adapter: Adapter | None
    plan: Plan
    options: QuantizationOptions
    method: BlockQuantizer
    device: torch.device
    dtype: torch.dtype
    progress: Progress


def _open_job(
    source: Path,
    overlay: str | Path | None,
    options: QuantizationOptions,
    device: torch.device,
    progress: Progress,
    *,
    token: str | None,
    offline: bool,
) -> _Job:
    checkpoint = open_checkpoint(source)
    plan = make_plan(checkpoint, options)
    method = find_method(options.search, plan)
    adapter = None if overlay is None else open_adapter(overlay, checkpoint, token=token, offline=offline)
    # Half precision gains nothing on a CPU, and loses digits of the second moments.
    dtype = torch.float32 if device.type == "cpu" else DTYPES[checkpoint.config.dtype]
    return _Job(checkpoint, adapter, plan, options, method, device, dtype, progress)


def _quantize_language_model(job: _Job, calibration: Calibration, work: WorkFolder, clock: "Clock") -> None:
    reader = TensorReader(job.checkpoint, job.adapter, job.device)
    with clock.phase("layers"):
        inputs = calibration.block_inputs(job.plan.config, job.device)
        loop = LayerLoop(job.plan, job.options, job.method, reader, work, job.device, job.dtype, job.progress)
        hidden = loop.run(calibration.embeds, inputs)
    with clock.phase("head"):
        _quantize_head(job, reader, hidden, work)


def _report(
    job: _Job, calibration: Calibration, work: WorkFolder, staged: Path, names: tuple[str, str | None], clock: "Clock"
) -> QuantizationReport:
    """Return the report on the checkpoint in `staged`; `names` are those of the model and of its adapter."""
    options, config = job.options, job.plan.config
    return QuantizationReport(
        run=work.digest,
        model=names[0],
        adapter=names[1],
        method=job.method.name,
        options={**options.model_dump(mode="json"), "search": published_name(options.search)},
        device=_device_name(job.device),
        calibration=CalibrationReport.of(calibration, resolve_source(options.calibration, config.vocab_size)),
        layers=_layer_reports(job.plan, work),
        vision=_branch_reports(work),
        head_error=_head_error(work),
        sizes=sizes_of(job.checkpoint, writable_format(options.format).read(staged)),
        seconds=clock.seconds,
        peak_memory_bytes=_peak_memory(job.device),
        version=vila_quant.__version__,
    )


def _layer_reports(plan: Plan, work: WorkFolder) -> list[LayerReport]:
    return [LayerReport.read(layer, work.record(step_name(layer))) for layer in range(plan.config.num_hidden_layers)]


def _branch_reports(work: WorkFolder) -> list[BranchReport]:
    branches = work.record(VISION_STEP)["branches"] if work.has(VISION_STEP) else []
    return [BranchReport.model_validate(branch) for branch in cast("list[object]", branches)]


def _head_error(work: WorkFolder) -> float | None:
    return cast("float", work.record(HEAD_STEP)["error"]) if work.has(HEAD_STEP) else None


def _require_same_run(finished: QuantizationReport, manifest: Mapping[str, object], path: Path) -> QuantizationReport:
    if finished.run != digest(manifest):
        raise CheckpointError(
            f"{path} holds a model quantized with other settings or from other files. Choose another folder, or remove "
            "it first."
        )
    return finished


def _move_into_place(staged: Path, path: Path) -> None:
    if path.exists():
        path.rmdir()  # empty, as `require_new` checked
    staged.rename(path)


class Clock:
    """Measures the seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Time a phase."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def _open_embedder(job: _Job) -> Embedder:
    checkpoint = job.checkpoint
    tokenizer = Tokenizer.from_folder(checkpoint.tokenizer_path)
    template = choose_template(job.options.chat_template, checkpoint.config.chat_template, tokenizer)
    return Embedder(checkpoint, tokenizer, template, job.device, job.dtype, job.adapter)


def _calibrate(embedder: Embedder, job: _Job) -> Calibration:
    options, kind = job.options, job.device.type
    source = resolve_source(options.calibration, embedder.config.language_model.vocab_size)
    samples = read_samples(source, options.seed, PICTURE_SHARES.get(kind, 0.0))
    if reads_what_it_draws(embedder.config):
        samples = with_drawings(samples)
    sequences = options.sequences or SEQUENCES.get(kind, SEQUENCES["cpu"])
    job.progress.start("Calibration", sequences)
    exact = options.sequences is not None
    return collect(
        samples, embedder, sequences, options.sequence_length, exact=exact, on_sequence=lambda _: job.progress.advance()
    )


def _warn_of_few_tokens(calibration: Calibration, plan: Plan, progress: Progress) -> None:
    tokens, widest = calibration.samples.numel(), plan.config.intermediate_size
    if tokens < widest:
        progress.warn(
            f"Calibration has {tokens:,} tokens, fewer than the widest layer has inputs ({widest:,}), so "
            "the search may overfit. Use more --sequences if time allows."
        )


def _quantize_vision(embedder: Embedder, calibration: Calibration, job: _Job, work: WorkFolder) -> None:
    options, progress = job.options, job.progress
    if options.vision == "none" or work.has(VISION_STEP):
        return
    from vila_quant.quantizing.smoothing import BranchLoss, quantize_tower

    if not calibration.pixels:
        raise QuantizationError(
            "--vision needs images in the calibration, but these samples have none. Add some, or leave --vision out."
        )
    tower = embedder.network.vision_tower
    losses: list[BranchLoss] = []

    def on_branch(loss: BranchLoss) -> None:
        losses.append(loss)
        progress.advance()

    progress.start("Vision tower", 2 * tower.depth)
    alpha = "search" if options.vision_alpha is None else options.vision_alpha
    changed = quantize_tower(tower, calibration.pixels, options.vision, alpha, on_branch)
    tensors = {f"vision_tower.{name}": tensor.cpu() for name, tensor in changed.items()}
    stored = {
        name: tensor.to(DTYPES[embedder.config.dtype]) if _is_norm(name, tensor) else tensor
        for name, tensor in tensors.items()
    }
    work.save(VISION_STEP, stored, {"branches": [vars(loss) for loss in losses]})


def _is_norm(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 1 and not name.endswith("_scale")


def _quantize_head(job: _Job, reader: TensorReader, hidden: Tensor, work: WorkFolder) -> None:
    plan, options, progress = job.plan, job.options, job.progress
    if plan.head == "none" or work.has(HEAD_STEP):
        return
    from vila_quant.quantizing.head import HeadInputs, quantize_head_int4, quantize_head_int8

    progress.start("Head", 1)
    weight = reader.read([plan.head_weight])[plan.head_weight]
    norm = reader.read([(name := "llm.model.norm.weight")])[name]
    inputs = HeadInputs(hidden, norm, plan.config.rms_norm_eps)
    if plan.head == "int8":
        head = quantize_head_int8(weight, inputs)
    else:
        head = quantize_head_int4(weight, inputs, options.bits, options.group_size)
    work.save(HEAD_STEP, head.tensors, {"error": head.error})
    progress.advance()


def _manifest(job: _Job, calibration: Calibration) -> dict[str, object]:
    checkpoint, adapter, options = job.checkpoint, job.adapter, job.options
    changed = [] if adapter is None else sorted(file for file in adapter.path.iterdir() if file.is_file())
    return {
        "version": vila_quant.__version__,
        "model": str(checkpoint.path),
        "files": {str(file): file_fingerprint(file) for file in [*checkpoint_files(checkpoint), *changed]},
        "adapter": None if adapter is None else str(adapter.path),
        "device": job.device.type,  # sums differ in their last bits between devices
        "calibration": calibration.digest,
        **options.model_dump(mode="json"),
        "samples": options.calibration,
        "search_results_digest": search_digest(options.search),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU if one is used, otherwise of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
