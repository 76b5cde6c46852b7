"""Read, check and write the `quantization_config` of an AWQ checkpoint.

Source: transformers, `utils/quantization_config.py` (AwqConfig); AutoAWQ 0.2.9, `awq/models/_config.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vila_core.checkpoint.json_files import Section, read_section
from vila_core.errors import CheckpointError
from vila_quant.formats.layers import Entries, QuantizedLayers

KEY = "quantization_config"


@dataclass(frozen=True)
class AwqConfig:
    """A `quantization_config`: `group_size` (-1: one group per row), modules `not_converted`, and its `source` file."""

    group_size: int
    not_converted: tuple[str, ...]
    source: str

    def names(self, module: str) -> str | None:
        """Return the entry of `modules_to_not_convert` that matches whole components of the name `module`, or None."""
        return next((entry for entry in self.not_converted if f".{entry}." in f".{module}."), None)


def read_awq_config(path: Path) -> AwqConfig:
    """Read the config of the folder `path` from `config.json`, its `text_config`, or `llm/config.json`.

    Raises:
        CheckpointError: a key has an unsupported value, or two configs contradict each other.
    """
    roots = [read_section(file) for file in (path / "config.json", path / "llm" / "config.json") if file.exists()]
    nested = [root.section("text_config") for root in roots if "text_config" in root]
    found = [_read(section.section(KEY)) for section in (*roots, *nested) if KEY in section]
    if not found:
        raise CheckpointError(f"{path} has no '{KEY}': expected it in config.json or llm/config.json.")
    for other in found[1:]:
        if other.group_size != found[0].group_size:
            raise CheckpointError(
                f"{other.source}: 'group_size' is {other.group_size}, but {found[0].source} says "
                f"{found[0].group_size}. Fix one of them."
            )
    return AwqConfig(
        found[0].group_size, tuple(dict.fromkeys(name for one in found for name in one.not_converted)), found[0].source
    )


def _read(section: Section) -> AwqConfig:
    section.choice("quant_method", ("awq",))
    version_key = "version" if "version" in section else "format"
    version = section.string(version_key, "gemm")
    if version.lower() != "gemm":
        raise CheckpointError(
            f"{section.source}: '{version_key}' is '{version}'; expected 'gemm', the layout that AutoAWQ, vLLM "
            "and SGLang share. Quantize the original again."
        )
    if (bits := section.integer("bits", 4)) != 4:
        raise CheckpointError(f"{section.source}: 'bits' is {bits}; expected 4.")
    if not section.boolean("zero_point", True):
        raise CheckpointError(
            f"{section.source}: 'zero_point' is false; expected true: the gemm layout stores zero points."
        )
    group_size = section.integer("group_size", 128, minimum=-1)
    if group_size == 0:
        raise CheckpointError(
            f"{section.source}: 'group_size' is 0; expected a size that divides the layers' widths, or -1."
        )
    return AwqConfig(group_size, _names(section), section.source)


def _names(section: Section) -> tuple[str, ...]:
    value = section.values.get("modules_to_not_convert")
    items = cast("list[object]", value) if isinstance(value, list) else [] if value is None else None
    if items is None or not all(isinstance(item, str) and item for item in items):
        raise CheckpointError(
            f"{section.source}: 'modules_to_not_convert' is {str(value)[:100]}; expected a list of names, or null."
        )
    return tuple(item.removesuffix(".weight") for item in cast("list[str]", items))


def check_awq_config(config: AwqConfig, layers: QuantizedLayers) -> None:
    """Raise `CheckpointError` if group sizes or quantized layers contradict the config."""
    if not layers.groupwise:
        raise CheckpointError(f"{config.source} says that the model is quantized, but there is no tensor 'qweight'.")
    for layer in layers.groupwise:
        stated = layer.inputs if config.group_size == -1 else config.group_size
        if layer.group_size != stated:
            raise CheckpointError(
                f"{config.source}: 'group_size' is {config.group_size}, but '{layer.name}.scales' has groups of "
                f"{layer.group_size} ({layer.inputs} inputs in {layer.inputs // layer.group_size} rows)."
            )
        entry = config.names(layer.name)
        if entry is not None:
            raise CheckpointError(
                f"{config.source}: 'modules_to_not_convert' names '{entry}', but '{layer.name}' is quantized. "
                "The config belongs to another checkpoint, or was changed."
            )


def write_awq_config(layers: QuantizedLayers, entries: Entries) -> Mapping[str, object]:
    """Return the `quantization_config` for quantized layers. Raises `CheckpointError` if group sizes differ."""
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": layers.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [*_whole_layers(layers, entries), *_whole_parts(layers)],
    }


def _whole_layers(layers: QuantizedLayers, entries: Entries) -> Sequence[str]:
    """Return the language model's linears that are not int4, without the prefix "llm.".

    Readers match parts of full names, so these work for the folder of the language model and for the whole model.
    The head is named even if a tied model stores none, since readers create it from the embedding.
    """
    whole = [name for name in whole_linears(entries) if name != "lm_head"]
    return [*whole, *(() if any(layer.name == "llm.lm_head" for layer in layers.groupwise) else ("lm_head",))]


def whole_linears(entries: Entries) -> Sequence[str]:
    """Return the language model's linears that have a tensor `weight`, without the prefix "llm."."""
    names = [
        name.removesuffix(".weight")
        for name, entry in entries.items()
        if name.endswith(".weight") and len(entry.shape) == 2
    ]
    return [
        name.removeprefix("llm.") for name in names if name.startswith("llm.") and not name.endswith(".embed_tokens")
    ]


def _whole_parts(layers: QuantizedLayers) -> Sequence[str]:
    converted = {layer.name.partition(".")[0] for layer in layers.groupwise}
    return [part for part in ("vision_tower", "mm_projector") if part not in converted]
