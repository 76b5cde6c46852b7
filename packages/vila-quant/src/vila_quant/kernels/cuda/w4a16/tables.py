"""Tables of the fastest configurations: shipped ones, and what `vila-quant tune` measured on this machine.

A table lists, for some shapes and numbers of tokens, the fastest configuration. A layer takes the entry of the nearest
shape, for the smallest listed number of tokens that is not below its own. Of several entries for the same, the first
that runs on the GPU counts: a kernel that needs a certain GPU or Triton has another one behind it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

from vila_core.checkpoint.json_files import read_json
from vila_core.errors import ConfigError, VilaError, warn
from vila_quant.kernels.cuda.w4a16.decode import MAX_TOKENS, DecodeConfig
from vila_quant.kernels.cuda.w4a16.panels import PanelConfig
from vila_quant.kernels.cuda.w4a16.tiles import TileConfig
from vila_quant.kernels.cuda.w4a16.warpgroups import WarpgroupConfig

Config = DecodeConfig | TileConfig | WarpgroupConfig | PanelConfig

CONFIGS: dict[str, type[Config]] = {
    "decode": DecodeConfig,
    "tiles": TileConfig,
    "warpgroups": WarpgroupConfig,
    "panels": PanelConfig,
}
SHIPPED = Path(__file__).parent / "tables"

POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ALLOWED: Mapping[str, range | tuple[int, ...]] = {
    "tiles": (1, 2),
    "warps": POWERS[:5],
    "slots": range(1, 9),
    "ahead": range(1, 9),
    "registers": range(0, 256, 8),
    "chains": POWERS[:3],
    "prefetch": range((64 << 20) + 1),
    "block_n": POWERS[5:],
    "block_m": POWERS[4:],
    "block_k": (64, 128),
    "splits": range(1, 65),
    "stages": range(1, 13),
    "resident": range(9),
    "waves": range(1, 9),
    "rows": range(32, (1 << 30) + 1, 32),
}
"""The values of a configuration that the kernels are written for."""


@dataclass(frozen=True)
class Entry:
    """The fastest configuration up to so many tokens for a weight of this shape."""

    tokens: int
    outputs: int
    inputs: int
    config: Config


@dataclass(frozen=True)
class Table:
    """The entries for a GPU: for those whose name contains `gpu`, or for any if it is empty."""

    gpu: str
    entries: tuple[Entry, ...]

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read a table. Raises `VilaError`, which names the file, if it is not a table that serves any layer."""
        data = read_json(path)
        rows = data.get("entries")
        if not isinstance(data.get("gpu"), str) or not isinstance(rows, list) or not rows:
            raise ConfigError(f"{path} is not a table of kernels: expected 'gpu' and a list 'entries'.")
        table = cls(str(data["gpu"]), tuple(_entry(row, f"{path}, entry {number}") for number, row in enumerate(rows)))
        if isinstance(max(table.entries, key=lambda entry: entry.tokens).config, DecodeConfig):
            raise ConfigError(f"{path} has no kernel for more than {MAX_TOKENS} tokens.")
        return table

    def write(self, path: Path) -> None:
        """Write the table as JSON, one entry per line."""
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

    def usable(self, runs: Callable[[Config], bool]) -> Table:
        """Return the table without the entries whose kernels do not run here."""
        return Table(self.gpu, tuple(entry for entry in self.entries if runs(entry.config)))

    def has(self, outputs: int, inputs: int) -> bool:
        """Return whether a weight of this shape was measured."""
        return any((entry.outputs, entry.inputs) == (outputs, inputs) for entry in self.entries)

    def choose(self, tokens: int, outputs: int, inputs: int) -> Config:
        """Return the configuration for `x [tokens, inputs]` times a weight `[outputs, inputs]`."""
        listed = sorted({entry.tokens for entry in self.entries})
        bucket = next((bucket for bucket in listed if tokens <= bucket), listed[-1])

        def distance(entry: Entry) -> float:
            return abs(math.log(entry.outputs / outputs)) + abs(math.log(entry.inputs / inputs))

        return min((entry for entry in self.entries if entry.tokens == bucket), key=distance).config


def _entry(row: object, where: str) -> Entry:
    """Return the entry in a row of a file. Raises `ConfigError`, which says `where`."""
    if not isinstance(row, dict) or row.keys() != {"tokens", "outputs", "inputs", "kernel", "config"}:
        raise ConfigError(f"{where}: expected tokens, outputs, inputs, kernel and config.")
    sizes = [row[name] for name in ("tokens", "outputs", "inputs")]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError(f"{where}: expected positive whole numbers, got {sizes}.")
    kind, values = CONFIGS.get(str(row["kernel"])), row["config"]
    if kind is None or not isinstance(values, dict):
        raise ConfigError(f"{where}: unknown kernel {row['kernel']!r}. Known: {', '.join(CONFIGS)}.")
    known = {field.name for field in fields(kind)}
    for name, value in values.items():
        if name not in known or type(value) is not int or value not in ALLOWED[name]:
            raise ConfigError(f"{where}: the kernel {row['kernel']} has no {name} {value!r}.")
    if kind is WarpgroupConfig and values.get("stages", 5) % 2 == 0:
        raise ConfigError(f"{where}: the kernel warpgroups takes an odd number of stages.")
    if kind is DecodeConfig and sizes[0] > MAX_TOKENS:
        raise ConfigError(f"{where}: the kernel decode takes at most {MAX_TOKENS} tokens, not {sizes[0]}.")
    tokens, outputs, inputs = sizes
    return Entry(tokens, outputs, inputs, kind(**values))


@cache
def shipped(gpu: str) -> Table:
    """Return the table made on a GPU with this name, or the one for GPUs that nobody has tuned."""
    tables = [Table.read(path) for path in sorted(SHIPPED.glob("*.json"))]
    return next((table for table in tables if table.gpu and table.gpu in gpu), next(t for t in tables if not t.gpu))


def tuned_file(gpu: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Return where `vila-quant tune` keeps the table of a GPU: in VILA_QUANT_CACHE, or vila-quant in the user's cache
    folder (XDG_CACHE_HOME or ~/.cache)."""
    named = environment.get("VILA_QUANT_CACHE")
    folder = Path(named) if named else Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "vila-quant"
    return folder.expanduser() / "w4a16" / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def check_writable(path: Path, *, is_cache: bool = False) -> None:
    """Make the folder of a table and check that the table can be written there.

    Args:
        path: of the table.
        is_cache: an existing file there was written by `save` and is replaced even if it is broken.

    Raises:
        ConfigError: it cannot be written, or something that is not a table is there.
    """
    advice = "Set VILA_QUANT_CACHE or use --output." if is_cache else "Give another file with --output."
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. {advice}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=path.name):
            pass
    except OSError as problem:
        raise ConfigError(f"Cannot write {path}: {problem.strerror or problem}. {advice}") from None
    if path.exists() and not is_cache:
        try:
            Table.read(path)
        except VilaError:
            raise ConfigError(f"{path} exists and is not a table of kernels. {advice}") from None


def save(table: Table, path: Path) -> None:
    """Write a table, with the entries for other shapes that a table of the same GPU at `path` has. All or nothing.

    Raises:
        ConfigError: the disk is full, or the folder is gone.
    """
    try:
        older = Table.read(path) if path.exists() else table
    except VilaError:
        older = table
    kept = (entry for entry in older.entries if older.gpu == table.gpu and not table.has(entry.outputs, entry.inputs))
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        Table(table.gpu, (*table.entries, *kept)).write(new)
        new.replace(path)
    except OSError as problem:
        raise ConfigError(f"Cannot write {path}: {problem.strerror or problem}.") from None
    finally:
        new.unlink(missing_ok=True)
    tuned.cache_clear()


@cache
def tuned(gpu: str) -> Table | None:
    """Return the table that `vila-quant tune` made on this machine for a GPU of this name, if there is one.

    A file that cannot be used is reported once and passed over.
    """
    path = tuned_file(gpu)
    try:
        if not path.exists():
            return None
        table = Table.read(path)
        if table.gpu != gpu:
            raise ConfigError(f"{path} was made on another GPU: {table.gpu!r}, not {gpu!r}.")
    except (VilaError, OSError) as problem:
        warn(f"The kernels' own settings are used instead of tuned ones. Run vila-quant tune again: {problem}")
        return None
    return table


def choose(
    gpu: str, tokens: int, outputs: int, inputs: int, runs: Callable[[Config], bool] = lambda config: True
) -> Config:
    """Return the configuration for a product on a GPU of this name.

    What was tuned on this machine counts for the shapes that were tuned; other shapes take it only if no table was
    shipped for the GPU.

    Args:
        gpu: its name.
        tokens: rows of the activations.
        outputs: of the weight.
        inputs: of the weight.
        runs: whether a kernel runs on the GPU.
    """
    own, base = tuned(gpu), shipped(gpu)
    if own is not None and (own.has(outputs, inputs) or not base.gpu):
        base = own
    return base.usable(runs).choose(tokens, outputs, inputs)
