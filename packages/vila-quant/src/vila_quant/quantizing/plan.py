"""Decide which linears of a model to quantize, and check their widths before computing anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vila_core.checkpoint import Checkpoint
from vila_core.checkpoint.checkpoint import require_no_head
from vila_core.config import DecoderConfig, RQSiglipConfig
from vila_quant.awq.block import LINEARS
from vila_quant.errors import QuantizationError
from vila_quant.quantizing.options import QuantizationOptions

LAYERS = "llm.model.layers"
HEAD = "llm.lm_head"
EMBEDDING = "llm.model.embed_tokens"
GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class Plan:
    """The linears to quantize.

    Attributes:
        config: config of the language model.
        skipped: by layer, the linears that are not quantized.
        head: how to quantize the output head ("none", "int8", "int4").
        head_weight: the tensor of the head's weight: the embedding in a tied model.
    """

    config: DecoderConfig
    skipped: Mapping[int, frozenset[str]]
    head: str
    head_weight: str


def make_plan(checkpoint: Checkpoint, options: QuantizationOptions) -> Plan:
    """Return the plan for a checkpoint.

    Raises:
        CheckpointError: the model draws, and the format cannot represent that.
        QuantizationError: the checkpoint is already quantized, its language model is not the native decoder, its tower
            makes codes and is to be quantized, a pattern matches nothing, nothing is left to quantize, or a width does
            not fit.
    """
    if checkpoint.quantization is not None:
        raise QuantizationError(
            f"{checkpoint.path} is already quantized ({checkpoint.quantization.method}). Quantize its original instead."
        )
    if options.format == "tinychat":
        require_no_head(checkpoint, options.format, instead="awq")
    if options.vision != "none" and isinstance(checkpoint.config.vision_tower, RQSiglipConfig):
        raise QuantizationError(
            "The tower of this model rounds its features to codes, which --vision would change. Leave --vision out."
        )
    config = checkpoint.config.language_model
    if not isinstance(config, DecoderConfig):
        raise QuantizationError(
            f"The language model '{config.name}' runs in transformers; vila-quant quantizes only the native decoder."
        )
    modules = [f"{LAYERS}.{layer}.{name}" for layer in range(config.num_hidden_layers) for name in LINEARS]
    for pattern in options.skip:
        if not any(fnmatchcase(module, pattern) for module in (*modules, HEAD)):
            raise QuantizationError(f"--skip '{pattern}' matches no linear. Names look like {modules[0]}, or {HEAD}.")
    skipped = {
        layer: frozenset(name for name in LINEARS if _is_skipped(f"{LAYERS}.{layer}.{name}", options.skip))
        for layer in range(config.num_hidden_layers)
    }
    if all(len(names) == len(LINEARS) for names in skipped.values()):
        raise QuantizationError("--skip leaves nothing to quantize. Use fewer patterns.")
    head = "none" if _is_skipped(HEAD, options.skip) else options.lm_head
    head_weight = (
        f"{HEAD}.weight"
        if f"{HEAD}.weight" in checkpoint.weights.entries and not config.tie_word_embeddings
        else f"{EMBEDDING}.weight"
    )
    _check_widths(checkpoint, skipped, head, head_weight, options.group_size)
    return Plan(config, skipped, head, head_weight)


def check_format(options: QuantizationOptions) -> None:
    """Raise `QuantizationError` for options that the format does not support, before the long computation."""
    if options.format != "tinychat":
        return
    problems = [
        *([f"--group-size {options.group_size} (it takes 128)"] if options.group_size != 128 else []),
        *([f"--lm-head {options.lm_head}"] if options.lm_head != "none" else []),
        *([f"--vision {options.vision}"] if options.vision != "none" else []),
        *(["--skip"] if options.skip else []),
    ]
    if problems:
        raise QuantizationError(
            f"Format 'tinychat' does not support {', '.join(problems)}. Leave that out, or use format 'awq'."
        )


def _is_skipped(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def _check_widths(
    checkpoint: Checkpoint, skipped: Mapping[int, frozenset[str]], head: str, head_weight: str, group_size: int
) -> None:
    entries = checkpoint.weights.entries
    shapes = {
        name: entries[name].shape
        for layer, names in skipped.items()
        for linear in LINEARS
        if linear not in names
        and (name := f"{LAYERS}.{layer}.{linear}.weight") in entries  # the reader reports missing tensors
    }
    if head == "int4":
        shapes[head_weight] = entries[head_weight].shape
    unfit = {name: shape for name, shape in shapes.items() if shape[1] % group_size}
    if unfit:
        name, shape = next(iter(unfit.items()))
        fitting = [size for size in GROUP_SIZES if all(other[1] % size == 0 for other in shapes.values())]
        offer = (
            f"--group-size {' or '.join(map(str, fitting))} fits all layers"
            if fitting
            else "no group size fits all layers"
        )
        raise QuantizationError(
            f"Group size {group_size} does not divide the {shape[1]} inputs of {name.removesuffix('.weight')} "
            f"({len(unfit)} such layers). "
            f"{offer[0].upper()}{offer[1:]}; --skip leaves layers out."
        )
    odd = next((name for name, shape in shapes.items() if shape[0] % 8), None)
    if odd is not None:
        raise QuantizationError(
            f"{odd.removesuffix('.weight')} has {shapes[odd][0]} outputs, but the format packs eight at a time. "
            "Leave it out with --skip."
        )
