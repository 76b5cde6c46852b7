"""What a quantized model lost: layer by layer, in the distribution of its answers, on disk, and on benchmarks.

T tokens, D width, V vocabulary

One model is in memory at a time. Benchmarks run first, each model in a process of its own. Then the original runs; kept of it are the
logits of the tokens that are compared, `[tokens, V]`, and what flows between the blocks, for at most `BLOCK_TOKENS` tokens.
"""

import gc
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from vila_core.checkpoint import Checkpoint, open_checkpoint
from vila_core.config import Config
from vila_core.errors import ConfigError
from vila_core.loading import load
from vila_quant.checking.comparison import Compared, Errors, Record, blocks_of, compare, record
from vila_quant.checking.held_out import read_prompts
from vila_quant.checking.tasks import TaskChange, compare_tasks, find_evaluation
from vila_quant.kernels import forced
from vila_quant.kernels.registry import scheme_of
from vila_quant.progress import Progress, Silent
from vila_quant.quantizing.report import Sizes, sizes_of
from vila_quant.quantizing.source import find_source

PROMPTS = 16
BLOCK_TOKENS = 4096
"""Of so many tokens what flows between the blocks is kept: 0.8 GB for an 8B model."""


class Divergence(Config):
    """How the next-token distributions differ from the original's on some prompts.

    Attributes:
        prompts, tokens: that were compared.
        kl: mean over tokens of KL(original ‖ quantized), in nats.
        kl_standard_error: from the means of the prompts; None for a single one.
        top1_agreement: share of tokens for which both models like the same one best.
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
        # The tokens of a prompt depend on one another: prompts are what is drawn at random (a ratio of two means).
        spread = sum((one.kl - kl * one.tokens) ** 2 for one in compared)
        count = len(compared)
        return cls(
            prompts=count,
            tokens=tokens,
            kl=kl,
            kl_standard_error=math.sqrt(spread * count / (count - 1)) / tokens if count > 1 else None,
            top1_agreement=sum(one.agreements for one in compared) / tokens,
            perplexity_before=math.exp(sum(one.loss_before for one in compared) / tokens),
            perplexity_after=math.exp(sum(one.loss_after for one in compared) / tokens),
        )


class CheckReport(Config):
    """What a quantized model lost.

    Attributes:
        model, against: the quantized model and the original.
        method: how it is quantized.
        device, dtype: of both runs.
        sizes: bytes by part.
        layers: by block, the relative error of what it adds to the residual stream, both models given the original's input. Empty where
            the language model is not the native decoder.
        vision: relative error of the vision tower's features; None without media among the prompts.
        text, multimodal: the prompts without and with media; None where there are none.
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
    """Compare a quantized model with the one it was made from.

    Args:
        model: folder or hub id.
        against: the same, of the original; or of a LoRA adapter that names its base model.
        prompts: a source of samples, as for calibration; "auto" takes held-out ones.
        number: of prompts.
        tasks: benchmarks for vila-eval, which runs on both models with the kernels that loading takes by itself.
        limit: rows of each benchmark, from the first; None takes all.
        results: folder for vila-eval's answers.
        kernel: of the quantized model's linears; None takes the best.
        device: as for `vila_core.load`.
        dtype: of activations in both models; "auto" is the original's.
        offline: use only what is in the hub's cache.
        progress: told what is done.

    Raises:
        ConfigError: the two are not the same model, or a kernel, device or dtype is unknown.
        MissingDependencyError: tasks are asked for, and vila-eval is not installed.
        QuantizationError: no prompts, or an evaluation failed.
    """
    progress = progress or Silent()
    if tasks:
        find_evaluation()
    if kernel is not None:
        scheme_of(kernel)  # report an unknown name before loading
    source, lora = find_source(against, offline=offline)
    before, after = (open_checkpoint(path, offline=offline) for path in (source, model))
    _require_same(before, after)
    # First, so that a misspelt name is told at once; the answers are kept, whatever comes after.
    changes = (
        compare_tasks(against, model, tasks, results, limit=limit, device=device, dtype=dtype, offline=offline)
        if tasks
        else []
    )
    original = load(source, device=device, dtype=dtype, offline=offline, lora=lora)
    chosen, target = original.dtype, original.device
    asked = read_prompts(original, prompts, number)
    progress.start("Running the original", len(asked))
    records: list[Record] = []
    room = BLOCK_TOKENS
    for prompt in asked:
        records.append(record(original, prompt, keeps_blocks=room > 0))
        room -= len(records[-1].blocks[0]) if records[-1].blocks else 0
        progress.advance()
    del original
    _free(target)
    with forced(kernel):
        quantized = load(model, device=target, dtype=chosen, offline=offline)
    progress.start("Running the quantized model", len(asked))
    vision, blocks = Errors(), blocks_of(quantized)
    layers = [Errors() for _ in blocks]
    compared: list[Compared] = []
    for prompt, kept in zip(asked, records, strict=True):
        compared.append(compare(quantized, prompt, kept, vision, layers))
        progress.advance()
    del quantized, blocks
    _free(target)
    return CheckReport(
        model=str(model),
        against=str(against),
        method="not quantized" if after.quantization is None else after.quantization.method,
        device=str(target),
        dtype=str(chosen).removeprefix("torch."),
        sizes=sizes_of(before, after),
        layers=[errors.relative for errors in layers],
        vision=vision.relative if vision.power else None,
        text=Divergence.of([one for one in compared if not one.has_media]),
        multimodal=Divergence.of([one for one in compared if one.has_media]),
        tasks=changes,
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
            f"{after.path} was not made from {before.path}: vocabulary, width and width of the vision tower are {list(theirs)} and "
            f"{list(ours)}. Give the checkpoint that was quantized to --against."
        )


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
