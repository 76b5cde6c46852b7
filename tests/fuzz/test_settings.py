"""Hostile settings, in Python and on the command lines: an answer or an error of one line, within bounds."""

import contextlib
import importlib
import inspect
import io
import itertools
import math
import os
import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from tests.fuzz.bounded import assert_bounded
from typer.main import get_command

import vila_core as vila
from vila_core.engine.sampling import GenerationConfig
from vila_core.media import FetchPolicy, MediaLimits
from vila_quant.quantizing.options import QuantizationOptions

pytestmark = pytest.mark.slow

SEED = 12


class Unprintable:
    """A value without a `repr`."""

    def __repr__(self) -> str:
        raise ValueError("no repr")


VALUES: dict[str, Callable[[], Any]] = {
    **{repr(value): lambda value=value: value for value in (
        None, True, False, 0, 1, -1, 3, 10**6, 10**12, 2**63, -(2**63), 0.0, -0.0, 0.5, 1.5, 1e-300, 1e300, -1e300,
        math.nan, math.inf, "", " ", "x", "1", "1.0", "nan", "auto", "cpu", "cuda:99", "\0", "\n", "\x1b[31m", b"",
        b"x",
        (), (1,), [], [0], [1, -1], [None], ["a", 1], [[]], {}, {"a": 1}, set(), {1}, range(3), 1j,
    )},
    "a number of 5,000 digits": lambda: 10**5000,
    "a surrogate": lambda: "\ud800",
    "a long text": lambda: "x" * 1_000_000,
    "a long list": lambda: [1] * 1_000_000,
    "many texts": lambda: [str(number) for number in range(100_000)],
    "an endless iterator": itertools.count,
    "an object": object,
    "a value without a repr": Unprintable,
    "a function": lambda: print,
    "a class": lambda: int,
    "a path": lambda: Path("/dev/zero"),
    "a path of NUL": lambda: Path("\0"),
    "a tensor": lambda: torch.ones(2),
    "a scalar tensor": lambda: torch.tensor(1.5),
    "an array": lambda: np.ones(3),
    "a NumPy integer": lambda: np.int64(3),
    "a NumPy NaN": lambda: np.float32("nan"),
    "a device": lambda: torch.device("meta"),
    "a dtype": lambda: torch.int8,
    "float8": lambda: torch.float8_e4m3fn,
}  # fmt: skip
"""Name -> what makes the value, because not every value can be pickled."""


@cache
def tiny() -> vila.Vila:
    return vila.load("vila-tiny", device="cpu")


def generate(name: str, value: str) -> str:
    return tiny().generate("What is this?", **{"max_new_tokens": 2, name: VALUES[value]()})


def test_generation_settings() -> None:
    names = [*GenerationConfig.model_fields, "num_beams", "\ud800", ""]
    assert_bounded({f"{name} = {value:.60}": partial(generate, name, value) for name in names for value in VALUES})


def load(name: str, value: str) -> str:
    return vila.load(**{"path": "vila-tiny", "offline": True, "device": "cpu", name: VALUES[value]()}).generate(
        ["What is this?", vila.Image(np.zeros((60, 80, 3), np.uint8))], max_new_tokens=2
    )


def test_load_settings() -> None:
    names = [name for name in inspect.signature(vila.load).parameters if name not in ("progress", "limits")]
    pairs = [(name, value) for name in (*names, "trust_remote_code") for value in VALUES]
    chosen = random.Random(SEED).sample(pairs, 300)
    assert_bounded({f"{name} = {value:.60}": partial(load, name, value) for name, value in chosen})


def limit(kind: type[Any], name: str, value: str) -> object:
    limits = kind(**{name: VALUES[value]()})
    if isinstance(limits, FetchPolicy):
        limits = MediaLimits(fetch=limits)
    return vila.Image("https://127.0.0.1:9/a.png").load(limits)


def test_limits() -> None:
    assert_bounded(
        {
            f"{kind.__name__}.{name} = {value:.60}": partial(limit, kind, name, value)
            for kind in (MediaLimits, FetchPolicy)
            for name in inspect.signature(kind).parameters
            for value in VALUES
        }
    )


def options(name: str, value: str) -> object:
    return QuantizationOptions(**{name: VALUES[value]()})


def test_quantization_options() -> None:
    names = QuantizationOptions.model_fields
    assert_bounded({f"{name} = {value:.60}": partial(options, name, value) for name in names for value in VALUES})


STRINGS = (
    "", " ", "-1", "0", "1", "2", "1e308", "-1e308", "nan", "inf", "9" * 5000, "1_0", "٣", "0x10", "true", "auto",
    "evil",
    "\x1b[31mred", "\udce9", "a\nb", "x" * 100_000, "../../x", "~nobody/x", "~", "%s", "{0}", "{", "[red]", "[/]", "=",
    "max_tiles=", "=3", "max_tiles=1e9", "max_tiles=[", "fps=1e308", "s2_scales=[1]", "num_video_frames=10000000",
    "cuda:99", "cuda:-1", "meta", "mps", "int8", "/dev/zero", "pipe", "folder", "sparse.json", "loop", "empty.py",
    "noise.png", "https://127.0.0.1:9/x", "https://[", "file:///etc/passwd", "a/b", "a/b/c", "owner/name", "1/0",
    "8/64",
    "*", "[", "vila/", "text:", "image:", "video:noise.png",
)  # fmt: skip


def make_places(folder: Path) -> None:
    """Files that a value may name."""
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "empty.py").touch()
    (folder / "noise.png").write_bytes(random.Random(SEED).randbytes(3000))
    with (folder / "sparse.json").open("wb") as file:
        file.truncate(10**12)


def run(program: str, arguments: list[str], folder: Path) -> None:
    """Run a program in a new folder, and require an exit code, and output without tracebacks and control characters."""
    make_places(folder)
    os.chdir(folder)
    module, _, function = program.partition(":")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stderr = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    code: object = "none"
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            getattr(importlib.import_module(module), function)(arguments)
        except SystemExit as ended:
            code = ended.code
        stdout.flush()
        stderr.flush()
    written = [stream.buffer.getvalue().decode() for stream in (stdout, stderr)]  # type: ignore[attr-defined]
    assert code in (0, 1, 2), code
    assert "Traceback" not in written[1], written[1][-500:]
    assert all(character in "\n\t" or character.isprintable() for character in written[1]), written[1][-500:]
    assert code != 2 or "Error" in written[1] or "Usage" in written[1], written


def options_of(program: str, *path: str) -> Iterator[str]:
    """Yield the options of a (sub)command that take a value."""
    module, _, name = program.partition(":")
    loaded = getattr(importlib.import_module(module), name)
    if not isinstance(loaded, typer.Typer):
        app = typer.Typer()
        app.command()(loaded)
        loaded = app
    command: Any = get_command(loaded)
    for step in path:
        command = command.commands[step]
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.is_flag:
            yield parameter.opts[0]


PROGRAMS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "vila-infer": (("vila_core.cli.infer:app",), "vila_core.cli.infer:main", ("--text=Hi", "--max-new-tokens=2")),
    "vila-eval": (
        ("vila_eval.cli.main:app",),
        "vila_eval.cli.main:main",
        ("--tasks=pope", "--limit=1", "--fixtures", "--dry-run"),
    ),
    "vila-quant awq": (
        ("vila_quant.cli.awq:quantize",),
        "vila_quant.cli.main:main",
        ("awq", "vila-tiny", "out", "--sequences=1", "--sequence-length=64", "--search=nearest", "--device=cpu"),
    ),
    "vila-train tiny": (
        ("vila_train.cli:app", "tiny"),
        "vila_train.cli:main",
        ("tiny", "--out=out", "--device=cpu", "--stage=none such"),
    ),
    "vila-train report": (
        ("vila_train.cli:app", "report"),
        "vila_train.cli:main",
        ("report", "--samples=1", "--device=cpu"),
    ),
    "vila-train world": (("vila_train.cli:app", "world"), "vila_train.cli:main", ("world", "--sheet=a.png")),
}
"""Program -> where its options are defined, its entry point, and arguments that make it quick."""
CASES = {"vila-infer": 150, "vila-eval": 150, "vila-quant awq": 60, "vila-train report": 20}
UNUSED = ("--install-completion", "--show-completion", "--samples")


@pytest.mark.parametrize("name", PROGRAMS)
def test_options_of_programs(name: str, tmp_path: Path) -> None:
    defined, program, arguments = PROGRAMS[name]
    options = [option for option in options_of(*defined) if option not in UNUSED]
    pairs = [(option, value) for option in options for value in STRINGS]
    chosen = random.Random(name).sample(pairs, min(len(pairs), CASES.get(name, 150)))
    assert_bounded(
        {
            f"{option} {value[:40]!r}": partial(run, program, [*arguments, f"{option}={value}"], tmp_path / str(number))
            for number, (option, value) in enumerate(chosen)
        }
    )


POSITIONAL: dict[str, tuple[str, tuple[str, ...]]] = {
    "vila-infer": ("vila_core.cli.infer:main", ("{}", "What?", "--max-new-tokens=2")),
    "vila info": ("vila_core.cli.main:main", ("info", "{}", "--offline")),
    "vila export": ("vila_core.cli.main:main", ("export", "tensorrt-llm", "{}")),
    "vila convert": ("vila_core.cli.main:main", ("convert", "vila-tiny", "{}", "--format=nvila")),
    "vila-eval show": ("vila_eval.cli.main:main", ("show", "{}")),
    "vila-eval compare": ("vila_eval.cli.main:main", ("compare", "{}", "folder")),
    "vila-eval report": ("vila_eval.cli.main:main", ("report", "{}")),
    "vila-quant kernels": ("vila_quant.cli.main:main", ("kernels", "{}")),
    "vila-quant tune": ("vila_quant.cli.main:main", ("tune", "{}")),
    "vila-quant check": ("vila_quant.cli.main:main", ("check", "{}", "--against=vila-tiny")),
}


@pytest.mark.parametrize("name", POSITIONAL)
def test_arguments_of_programs(name: str, tmp_path: Path) -> None:
    program, arguments = POSITIONAL[name]
    assert_bounded(
        {
            repr(value[:40]): partial(
                run, program, [part.replace("{}", value) for part in arguments], tmp_path / str(number)
            )
            for number, value in enumerate(STRINGS)
        }
    )
