"""AWQ search results in llm-awq's format (`--dump_awq`).

The file is a pickle `{"scale": [(prev, (layers, …), s)], "clip": [(name, max)]}`.

K inputs, N outputs, G groups per row. Source: llm-awq, `awq/quantize/pre_quant.py` (run_awq, apply_awq).

    results = read_search_results(Path("awq_cache/NVILA.pt"))
    results.apply(block, "model.layers.0")       # scales, then clips: the block is ready for rounding

`vila-quant awq --search FILE.pt` quantizes with them. Names may begin with "llm.", as in llm-awq's files for VILA
models.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from vila_core.checkpoint.tensors.pickles import is_dense, unpickle
from vila_core.config import DecoderConfig
from vila_core.errors import CheckpointError
from vila_core.language.decoder import Block
from vila_quant.awq.block import LINEARS, BlockInputs, ScaleGroup, linear
from vila_quant.awq.clips import apply_clips
from vila_quant.awq.method import BlockOptions, QuantizedBlock
from vila_quant.awq.reference import quantize_nearest
from vila_quant.awq.scales import ScaleChoice, apply_scales
from vila_quant.quantizing.blocks import empty_block

PREVIOUS = ("input_layernorm", "post_attention_layernorm", "self_attn.v_proj", "mlp.up_proj")
"""Modules of a block that can absorb scales."""


@dataclass(frozen=True)
class FoundScales:
    """Scales `[K]` of `linears`, whose input is the output of `previous`; full names ("model.layers.0.mlp.up_proj")."""

    previous: str
    linears: tuple[str, ...]
    scales: Tensor


@dataclass(frozen=True)
class SearchResults:
    """The results of a search, in order. `clips` are (full name of a linear, largest magnitudes `[N, G, 1]`)."""

    scales: tuple[FoundScales, ...]
    clips: tuple[tuple[str, Tensor], ...]

    def blocks(self) -> tuple[str, ...]:
        """Return the names of the blocks with results, in order of appearance."""
        names = (*(found.previous for found in self.scales), *(name for name, _ in self.clips))
        return tuple(dict.fromkeys(_block_name(name) for name in names))

    def of_block(self, prefix: str, skip: Collection[str] = ()) -> "SearchResults":
        """Return the results for the block `prefix`, except those only for linears in `skip` ("mlp.up_proj")."""
        skipped = {f"{prefix}.{name}" for name in skip}
        return SearchResults(
            tuple(
                found
                for found in self.scales
                if _block_name(found.previous) == prefix
                and found.previous not in skipped
                and not skipped.issuperset(found.linears)
            ),
            tuple((name, limits) for name, limits in self.clips if _block_name(name) == prefix and name not in skipped),
        )

    def check(self, block: Block, prefix: str) -> None:
        """Check the results for the block `prefix` against `block`, which may be on the meta device.

        Raises:
            CheckpointError: a result names no linear of the block, has a wrong shape, or invalid values.
        """
        own = self.of_block(prefix)
        for found in own.scales:
            _choice(block, prefix, found)
        for name, limits in own.clips:
            weight, (rows, groups, last) = _weight(block, prefix, name), limits.shape
            if last != 1 or rows != weight.shape[0] or not groups or weight.shape[1] % groups:
                raise CheckpointError(
                    f"The clips of '{name}' have shape {list(limits.shape)}; for its weight {list(weight.shape)}, "
                    "expected [N, G, 1]."
                )
            if not bool((torch.isfinite(limits) & (limits >= 0)).all()):
                raise CheckpointError(
                    f"The clips of '{name}' are not all finite magnitudes. The file is damaged, or its search diverged."
                )

    @torch.no_grad()
    def apply(self, block: Block, prefix: str) -> None:
        """Scale and clip the weights of `block` in place with the results for the block `prefix` ("model.layers.0").

        Raises `CheckpointError` as `check` does; the block is then unchanged.
        """
        self.check(block, prefix)
        own = self.of_block(prefix)
        apply_scales(block, [_choice(block, prefix, found) for found in own.scales])
        for name, limits in own.clips:
            weight = _weight(block, prefix, name)
            apply_clips(weight, limits.to(weight.device))


def check_layers(results: SearchResults, config: DecoderConfig, skipped: Mapping[int, Collection[str]]) -> None:
    """Check results against a language model before reading its weights.

    Args:
        results: results of a search.
        config: config of the language model.
        skipped: by layer, the linears that are not quantized.

    Raises:
        CheckpointError: results are for unknown layers, are missing for a layer, or do not fit one.
    """
    needed = {f"model.layers.{layer}": not set(LINEARS) <= set(names) for layer, names in skipped.items()}
    found = results.blocks()
    if foreign := [name for name in found if name not in needed]:
        raise CheckpointError(
            f"The search results name {_listed(foreign)}, but this model has {config.num_hidden_layers} layers. "
            "They are for another model."
        )
    if missing := [name for name, is_needed in needed.items() if is_needed and name not in found]:
        raise CheckpointError(
            f"The search results have none for {_listed(missing)}. They are for a model with fewer layers, or of an "
            "interrupted search."
        )
    for layer, name in enumerate(needed):
        results.check(empty_block(config, layer), name)


@dataclass(frozen=True)
class AppliedSearch:
    """A `BlockQuantizer` that applies results of another search, then rounds to nearest (llm-awq's `--load_awq`)."""

    results: SearchResults
    name: str = "search-results"
    follows_quantized: bool = False

    def quantize_block(
        self, block: Block, x: Tensor, block_inputs: BlockInputs, options: BlockOptions
    ) -> QuantizedBlock:
        """Quantize one block. Raises `CheckpointError` if its results are missing or are for another model."""
        prefix = f"model.layers.{block.self_attn.layer}"
        if prefix not in self.results.blocks() and not options.skip >= set(LINEARS):
            raise CheckpointError(
                f"The search results have none for '{prefix}'. They are for a model with fewer layers."
            )
        own = self.results.of_block(prefix, options.skip)
        own.apply(block, prefix)
        return replace(
            quantize_nearest(block, x, block_inputs, options),
            scales={_key(prefix, found): found.scales for found in own.scales},
            clips={name.removeprefix(f"{prefix}."): limits for name, limits in own.clips},
        )


def read_search_results(path: Path) -> SearchResults:
    """Read llm-awq's `.pt`.

    Raises:
        CheckpointError: the file is missing or damaged, contains code (never executed), or no search results.
    """
    content = unpickle(path)
    if not isinstance(content, Mapping) or not {"scale", "clip"} <= set(cast("Mapping[object, object]", content)):
        raise CheckpointError(
            f"{path} has no search results: expected the keys 'scale' and 'clip', as written by llm-awq --dump_awq."
        )
    results = cast("Mapping[str, object]", content)
    scales = [_read_scales(path, item) for item in _items(path, results, "scale")]
    clips = [_read_clip(path, item) for item in _items(path, results, "clip")]
    return SearchResults(tuple(scales), tuple(clips))


def write_search_results(blocks: Mapping[str, QuantizedBlock], path: Path) -> None:
    """Write the results of `blocks` (by name, "model.layers.0") in llm-awq's format, for its `--load_awq`.

    Raises:
        CheckpointError: the file cannot be written.
    """
    scales: list[tuple[str, tuple[str, ...], Tensor]] = []
    clips: list[tuple[str, Tensor]] = []
    for block, found in blocks.items():
        for key, tensor in found.scales.items():
            previous, _, linears = key.partition("|")
            scales.append(
                (f"{block}.{previous}", tuple(f"{block}.{name}" for name in linears.split(",")), tensor.detach().cpu())
            )
        clips += [(f"{block}.{name}", tensor.detach().cpu()) for name, tensor in found.clips.items()]
    try:
        torch.save({"scale": scales, "clip": clips}, path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        raise CheckpointError(f"{path} was not written: {error}. Free some space, then run it again.") from error


def _items(path: Path, results: Mapping[str, object], key: str) -> Sequence[object]:
    items = results[key]
    if not isinstance(items, list | tuple):
        raise CheckpointError(f"{path}: '{key}' is a {type(items).__name__}; expected a list.")
    return cast("Sequence[object]", items)


def _read_scales(path: Path, item: object) -> FoundScales:
    match item:
        case (str(previous), [*names], Tensor() as scales) if (
            names and all(isinstance(name, str) for name in names) and _holds_floats(scales, 1)
        ):
            return FoundScales(
                _short_name(previous), tuple(_short_name(name) for name in cast("list[str]", names)), scales
            )
        case _:
            raise CheckpointError(
                f"{path}: an item of 'scale' is {str(item)[:100]}; expected (previous, (linears, …), floats [K])."
            )


def _read_clip(path: Path, item: object) -> tuple[str, Tensor]:
    match item:
        case (str(name), Tensor() as limits) if _holds_floats(limits, 3):
            return _short_name(name), limits
        case _:
            raise CheckpointError(
                f"{path}: an item of 'clip' is {str(item)[:100]}; expected (linear, floats [N, G, 1])."
            )


def _holds_floats(tensor: Tensor, dimensions: int) -> bool:
    return tensor.ndim == dimensions and tensor.is_floating_point() and is_dense(tensor)


def _short_name(name: str) -> str:
    """Return a module's name in the language model, without the prefix "llm." of llm-awq's names for VILA models."""
    return name.removeprefix("llm.")


def _block_name(name: str) -> str:
    """Return the part of `name` up to the first number: "model.layers.0.mlp.up_proj" -> "model.layers.0"."""
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[: number + 1])


def _choice(block: Block, prefix: str, found: FoundScales) -> ScaleChoice:
    previous = found.previous.removeprefix(f"{prefix}.")
    if previous not in PREVIOUS:
        raise CheckpointError(f"Search results scale '{found.previous}'; expected one of {', '.join(PREVIOUS)}.")
    for name in found.linears:
        weight = _weight(block, prefix, name)
        if weight.shape[1] != len(found.scales):
            raise CheckpointError(
                f"The scales of '{name}' have {len(found.scales)} values; its weight has {weight.shape[1]} inputs."
            )
    if not bool((torch.isfinite(found.scales) & (found.scales > 0)).all()):
        raise CheckpointError(
            f"The scales of '{found.linears[0]}' are not all finite and positive. The file is damaged, or its search "
            "diverged."
        )
    linears = tuple(name.removeprefix(f"{prefix}.") for name in found.linears)
    return ScaleChoice(ScaleGroup(previous, linears, ""), found.scales, 0, ())


def _key(prefix: str, found: FoundScales) -> str:
    """Return the key of scales in a `QuantizedBlock`."""
    return f"{found.previous}|{','.join(found.linears)}".replace(f"{prefix}.", "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _weight(block: Block, prefix: str, name: str) -> Tensor:
    own = name.removeprefix(f"{prefix}.")
    if own not in LINEARS:
        raise CheckpointError(
            f"Search results name '{name}', which is not a linear of the block '{prefix}'. They are for another model."
        )
    return linear(block, own).weight
