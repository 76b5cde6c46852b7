"""Compare a quantized model with its original: errors by layer, next-token distributions, size, benchmarks.

T tokens, D width, V vocabulary

Only one model is in memory at a time. Benchmarks run first, each model in its own process. Then the original runs; its
logits of the compared tokens are kept, `[tokens, V]`, and the hidden states between blocks for at most `BLOCK_TOKENS`
tokens.
"""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vila_core.checkpoint import Checkpoint, open_checkpoint
from vila_core.checkpoint.lora import find_source
from vila_core.cli.progress import NoProgress, Progress
from vila_core.config import Config
from vila_core.errors import ConfigError
from vila_core.loading import load
from vila_core.runtime import Vila
from vila_quant.checking.comparison import Compared, Errors, Record, blocks_of, compare, record
from vila_quant.checking.held_out import HeldOutPrompt, PromptKind, read_prompts
from vila_quant.checking.tasks import TaskChange, compare_tasks, find_evaluation
from vila_quant.kernels import forced
from vila_quant.kernels.registry import scheme_of
from vila_quant.linears.eight_bit_linear import EightBitLinear
from vila_quant.linears.groupwise_linear import GroupwiseLinear
from vila_quant.quantizing.report import Sizes, sizes_of

PROMPTS = 16
BLOCK_TOKENS = 4096
"""Tokens whose hidden states between blocks are kept: 0.8 GB for an 8B model."""


class Divergence(Config):
    """How the distributions of the next token, or of the next code of a picture, differ from the original's.

    Attributes:
        prompts, tokens: how many prompts, and how many tokens or codes in them, were compared.
        kl: mean over tokens of KL(original ‖ quantized), in nats.
        kl_standard_error: from the means per prompt; None for a single prompt.
        top1_agreement: fraction of tokens for which both models have the same top token.
        perplexity_before, perplexity_after: on these tokens.
    """

    prompts: int
    tokens: int
    kl: float
    kl_standard_error: float | None
    top1_agreement: float
    perplexity_before: float
    perplexity_after: float

    @classmethod
    def of(cls, compared: Sequence[Compared]) -> "Divergence | None":
        """Return the divergence over all tokens of some prompts; None for no prompts."""
        if not compared:
            return None
        tokens = sum(one.tokens for one in compared)
        kl = sum(one.kl for one in compared) / tokens
        # Tokens of a prompt are dependent, so prompts are the sampling unit (a ratio of two means).
        spread = sum((one.kl - kl * one.tokens) ** 2 for one in compared)
        count = len(compared)
        return cls(
            prompts=count,
            tokens=tokens,
            kl=kl,
            kl_standard_error=math.sqrt(spread * count / (count - 1)) / tokens if count > 1 else None,
            top1_agreement=sum(one.agreements for one in compared) / tokens,
            perplexity_before=_perplexity(sum(one.loss_before for one in compared) / tokens),
            perplexity_after=_perplexity(sum(one.loss_after for one in compared) / tokens),
        )


def _perplexity(loss: float) -> float:
    """Return the perplexity of a mean loss; infinity beyond the range of numbers."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class CheckReport(Config):
    """The result of comparing a quantized model with its original.

    Attributes:
        model, against: the quantized model and the original.
        method: how it is quantized.
        device, dtype: of both runs.
        sizes: bytes by part.
        layers: relative error of what each block adds to the residual stream, both models given the original's input.
            Empty if the language model is not the native decoder.
        vision: relative error of the vision tower's features; None if no prompt has media.
        text, multimodal: prompts without and with media; None if there are none.
        drawing: codes of pictures, of a model that draws; None for other models.
        tasks: benchmarks, as vila-eval compares them.
    """

    model: str
    against: str
    method: str
    device: str
    dtype: str
    sizes: Sizes
    layers: list[float]
    vision: float | None
    text: Divergence | None
    multimodal: Divergence | None
    drawing: Divergence | None
    tasks: list[TaskChange]


def check(
    model: str | Path,
    against: str | Path,
    *,
    prompts: str = "auto",
    number: int = PROMPTS,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    results: Path = Path("results"),
    kernel: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Compare a quantized model with its original.

    Args:
        model: folder or hub id.
        against: folder or hub id of the original, or of a LoRA adapter that names its base model.
        prompts: a source of samples, as for calibration; "auto" uses held-out ones.
        number: number of prompts.
        tasks: benchmarks for vila-eval to run on both models, with the default kernels.
        limit: use only the first rows of each benchmark; None for all.
        results: folder for vila-eval's answers.
        kernel: for the quantized model's linears; None for the best.
        device: as for `vila_core.load`.
        dtype: of activations in both models; "auto" is the original's.
        offline: only use what is in the hub's cache.
        progress: receives progress.

    Raises:
        ConfigError: the models are swapped or differ in shape, or a kernel, device or dtype is unknown or unusable.
        MissingDependencyError: tasks are given, and vila-eval is not installed.
        QuantizationError: there are no prompts, or an evaluation failed.
    """
    progress = progress or NoProgress()
    if tasks:
        find_evaluation()
    if kernel is not None:
        scheme_of(kernel)  # report an unknown name before loading
    source, lora = find_source(against, offline=offline)
    before, after = _open_pair(source, model, against, offline=offline)
    # Benchmarks run first, so that an unknown task is reported at once; their answers are kept whatever happens later.
    changes = (
        compare_tasks(against, model, tasks, results, limit=limit, device=device, dtype=dtype, offline=offline)
        if tasks
        else []
    )
    original = load(source, device=device, dtype=dtype, offline=offline, lora=lora)
    dtype_used, target = original.dtype, original.device
    held_out = read_prompts(original, prompts, number)
    records = _record_original(original, held_out, progress)
    del original
    _free(target)
    with forced(kernel):
        quantized = load(model, device=target, dtype=dtype_used, offline=offline)
    if kernel is not None:
        _require_kernel(quantized, kernel)
    comparison = _compare_quantized(quantized, held_out, records, progress)
    del quantized
    _free(target)
    return CheckReport(
        model=str(model),
        against=str(against),
        method="not quantized" if after.quantization is None else after.quantization.method,
        device=str(target),
        dtype=str(dtype_used).removeprefix("torch."),
        sizes=sizes_of(before, after),
        layers=[errors.relative for errors in comparison.layers],
        vision=comparison.vision.relative if comparison.vision.power else None,
        text=comparison.divergence("text"),
        multimodal=comparison.divergence("multimodal"),
        drawing=comparison.divergence("drawing"),
        tasks=changes,
    )


def _open_pair(
    original: str | Path, model: str | Path, against: str | Path, *, offline: bool
) -> tuple[Checkpoint, Checkpoint]:
    """Open the original, which the user named `against`, and the quantized model. Raises `ConfigError`."""
    before, after = (open_checkpoint(path, offline=offline) for path in (original, model))
    if before.quantization is not None and after.quantization is None:
        raise ConfigError(f"{model} is not quantized, and {against} is. Swap them: --against takes the original.")
    _require_same(before, after)
    return before, after


@dataclass
class _Comparison:
    """Errors of the quantized model: of its vision tower, by layer, and by prompt."""

    vision: Errors
    layers: list[Errors]
    prompts: list[Compared]

    def divergence(self, kind: PromptKind) -> Divergence | None:
        """Return how the distributions of the next token or code differ on the prompts of one kind."""
        return Divergence.of([one for one in self.prompts if one.kind == kind])


def _record_original(original: Vila, prompts: Sequence[HeldOutPrompt], progress: Progress) -> list[Record]:
    """Run the original on all prompts; keep the blocks' inputs and outputs for at most `BLOCK_TOKENS` tokens."""
    progress.start("Running the original", len(prompts))
    records: list[Record] = []
    room = BLOCK_TOKENS
    for prompt in prompts:
        records.append(record(original, prompt, keeps_blocks=room > 0))
        room -= len(records[-1].blocks[0]) if records[-1].blocks else 0
        progress.advance()
    return records


def _compare_quantized(
    quantized: Vila, prompts: Sequence[HeldOutPrompt], records: Sequence[Record], progress: Progress
) -> _Comparison:
    progress.start("Running the quantized model", len(prompts))
    found = _Comparison(Errors(), [Errors() for _ in blocks_of(quantized)], [])
    for prompt, kept in zip(prompts, records, strict=True):
        found.prompts.append(compare(quantized, prompt, kept, found.vision, found.layers))
        progress.advance()
    return found


def _require_kernel(model: Vila, kernel: str) -> None:
    """Raise `ConfigError` unless some layer runs on the requested kernel."""
    layers = [module for module in model.network.modules() if isinstance(module, GroupwiseLinear | EightBitLinear)]
    if not any(layer.kernel is not None and layer.kernel.name == kernel for layer in layers):
        schemes = ", ".join(sorted({layer.shape.scheme for layer in layers})) or "none that is quantized"
        raise ConfigError(
            f"The kernel '{kernel}' was requested, but is for {scheme_of(kernel)} layers; the model has {schemes}. "
            "Leave --kernel out, or request another (`vila-quant kernels` lists them)."
        )


def _require_same(before: Checkpoint, after: Checkpoint) -> None:
    ours, theirs = (
        (
            one.config.language_model.vocab_size,
            one.config.language_model.hidden_size,
            one.config.vision_tower.hidden_size,
        )
        for one in (before, after)
    )
    if ours != theirs:
        raise ConfigError(
            f"{after.path} was not made from {before.path}: vocabulary, width and vision tower width are "
            f"{list(theirs)} and {list(ours)}. Pass the original to --against."
        )
    if before.config.generation_head != after.config.generation_head:
        raise ConfigError(
            f"{after.path} was not made from {before.path}: they draw with different heads, or one has none."
        )


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
