"""Which kernel multiplies: chosen by the number of tokens and the layer's shape from a table measured on a GPU.

A table (`tables/*.json`) lists, for some shapes and numbers of tokens, the fastest configuration. A layer takes the
entry of the nearest shape, for the smallest listed number of tokens that is not below its own. `tune.py` writes tables
for other GPUs.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vila_quant.kernels.cuda.w4a16.decode import DecodeConfig, decode
from vila_quant.kernels.cuda.w4a16.panels import PanelConfig, multiply_panels
from vila_quant.kernels.cuda.w4a16.tiles import TileConfig, multiply_tiles

Config = DecodeConfig | TileConfig | PanelConfig

CONFIGS: dict[str, type[Config]] = {"decode": DecodeConfig, "tiles": TileConfig, "panels": PanelConfig}
TABLES = Path(__file__).parent / "tables"
PDL_CAPABILITY = 9


@dataclass(frozen=True)
class Entry:
    """The fastest configuration up to so many tokens for a weight of this shape."""

    tokens: int
    outputs: int
    inputs: int
    config: Config


@dataclass(frozen=True)
class Table:
    """The entries for the GPUs whose name contains `gpu`."""

    gpu: str
    entries: tuple[Entry, ...]

    @classmethod
    def read(cls, path: Path) -> Table:
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = tuple(
            Entry(row["tokens"], row["outputs"], row["inputs"], CONFIGS[row["kernel"]](**row["config"]))
            for row in data["entries"]
        )
        return cls(data["gpu"], entries)

    def write(self, path: Path) -> None:
        names = {kind: name for name, kind in CONFIGS.items()}
        rows = [
            {
                "tokens": e.tokens,
                "outputs": e.outputs,
                "inputs": e.inputs,
                "kernel": names[type(e.config)],
                "config": asdict(e.config),
            }
            for e in self.entries
        ]
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        path.write_text(f'{{"gpu": {json.dumps(self.gpu)}, "entries": [\n{lines}\n]}}\n', encoding="utf-8")

    def choose(self, tokens: int, outputs: int, inputs: int) -> Config:
        """Return the configuration for `x [tokens, inputs]` times a weight `[outputs, inputs]`."""
        listed = sorted({entry.tokens for entry in self.entries})
        bucket = next((bucket for bucket in listed if tokens <= bucket), listed[-1])

        def distance(entry: Entry) -> float:
            return abs(math.log(entry.outputs / outputs)) + abs(math.log(entry.inputs / inputs))

        return min((entry for entry in self.entries if entry.tokens == bucket), key=distance).config


@cache
def table_for(gpu: str) -> Table:
    """Return the table made on a GPU with this name, or the one for GPUs that nobody has tuned."""
    tables = [Table.read(path) for path in sorted(TABLES.glob("*.json"))]
    return next((table for table in tables if table.gpu and table.gpu in gpu), next(t for t in tables if not t.gpu))


@cache
def choose(tokens: int, outputs: int, inputs: int, device: torch.device) -> Config:
    """Return the configuration for a product on `device`."""
    return table_for(torch.cuda.get_device_name(device)).choose(tokens, outputs, inputs)


@cache
def _properties(device: torch.device) -> tuple[bool, int]:
    """Return whether a kernel may start early, and the number of multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    return properties.major >= PDL_CAPABILITY, properties.multi_processor_count


def run(
    config: Config,
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    y: Tensor,
    group_size: int,
    next_packed: Tensor | None = None,
) -> None:
    """Write `x Wᵀ + bias` to `y` with the kernel that `config` belongs to."""
    pdl, multiprocessors = _properties(x.device)
    if isinstance(config, DecodeConfig):
        decode(x, packed, bias, y, group_size, config, next_packed=next_packed, pdl=pdl)
    elif isinstance(config, TileConfig):
        multiply_tiles(x, packed, bias, y, group_size, config, multiprocessors=multiprocessors, pdl=pdl)
    else:
        multiply_panels(x, packed, bias, y, group_size, config)


def launches_early(device: torch.device) -> bool:
    """Return whether a kernel on `device` may start before the one ahead of it ends."""
    return _properties(device)[0]
