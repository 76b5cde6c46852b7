"""Hostile values in every key of a checkpoint's configs: an answer, or an error of one line that names the fault."""

import functools
import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import pytest
from tests.core.checkpoint.conftest import build_checkpoint
from tests.core.checkpoint.foreign import FOREIGN, replace_language_model
from tests.fuzz.bounded import assert_bounded

import vila_core as vila
from vila_core.checkpoint import convert
from vila_core.checkpoint.embedded import embedded_model

pytestmark = pytest.mark.slow

HOSTILE: tuple[object, ...] = (
    ..., None, True, False, 0, 1, -1, 2, 3, 7, 255, 10**4, 10**7, 2**31, 2**63, 10**12, 10**30, -(2**63), 0.0, -0.0,
    0.5, 1.5, -1.5, 4096.0, 1e-45, 1e30, 1e300, "", "4096", "4096.0", "auto", "no such name", "evil/kernel",
    "\ud800", "\x1b[31m", "x" * 10_000, [], [1], [0, -1], ["a"], [[[]]], {}, {"": "evil/kernel"}, {"type": "su"},
    {"rope_type": "linear", "factor": -1.0}, {"rope_type": "yarn", "factor": 1e300}, {"model_type": "gpt2"},
)  # fmt: skip
"""`...` removes the key."""

EXTRA: dict[str, object] = dict.fromkeys(
    ("attn_implementation", "_attn_implementation", "experts_implementation", "quantization_config"), "evil/kernel"
) | dict.fromkeys(
    ("rope_scaling", "rope_parameters", "layer_types", "sliding_window", "head_dim", "per_layer_config"),
    1,
)
"""Keys that a config may have beside those of the tiny checkpoints."""

CASES_PER_FILE = 80


def ask(folder: Path) -> str:
    return vila.load(folder, device="cpu").generate("Hi", max_new_tokens=2)


def ask_with_value(file: Path, folder: Path, config: dict[str, object], key: str, value: object) -> str:
    """Load the checkpoint in `folder` with one value of one config replaced, in a child process of the tests."""
    changed = {**config, key: value}
    file.write_text(json.dumps({name: item for name, item in changed.items() if item is not ...}))
    try:
        return ask(folder)
    finally:
        file.write_text(json.dumps(config))


def cases_of(folder: Path, name: str, seed: int, limit: int = CASES_PER_FILE) -> Mapping[str, Callable[[], str]]:
    file = folder / name
    config = cast("dict[str, object]", json.loads(file.read_text()))
    pairs = [(key, value) for key in (*config, *EXTRA) for value in HOSTILE]
    chosen = random.Random(seed).sample(pairs, min(limit, len(pairs)))
    return {
        f"{name}: {key} = {str(value)[:60]!r}": functools.partial(ask_with_value, file, folder, config, key, value)
        for key, value in chosen
    }


def copy_embedded(folder: Path) -> Path:
    shutil.copytree(embedded_model(), folder)
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "vila-tiny": copy_embedded,
    "nvila_lite": lambda folder: build_checkpoint(folder, "nvila_lite"),
    "nvila": lambda folder: build_checkpoint(folder, "nvila"),
    "vila-1.5": lambda folder: build_checkpoint(folder, "clip_llama"),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "name",
    ["config.json", "llm/config.json", "vision_tower/config.json", "vision_tower/preprocessor_config.json"],
)
def test_configs_of_parts(tmp_path: Path, kind: str, name: str) -> None:
    folder = MAKERS[kind](tmp_path / "checkpoint")
    if not (folder / name).exists():
        pytest.skip(f"{kind} has no {name}")
    assert_bounded(cases_of(folder, name, 0))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "vila_config.json"])
def test_released_format(tmp_path: Path, name: str) -> None:
    source = build_checkpoint(tmp_path / "source", "nvila_lite")
    folder = tmp_path / "nvila"
    convert(source, folder, "nvila")
    assert_bounded(cases_of(folder, name, 1))


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
def test_sections_of_the_released_format(tmp_path: Path, section: str) -> None:
    folder = tmp_path / "nvila"
    convert(build_checkpoint(tmp_path / "source", "nvila_lite"), folder, "nvila")
    file = folder / "config.json"
    config = cast("dict[str, dict[str, object]]", json.loads(file.read_text()))
    pairs = [(key, value) for key in (*config[section], *EXTRA) for value in HOSTILE]
    chosen = random.Random(2).sample(pairs, CASES_PER_FILE)
    plain = cast("dict[str, object]", config)
    cases = {
        f"{section}.{key} = {str(value)[:60]!r}": functools.partial(
            ask_with_value, file, folder, plain, section,
            {name: item for name, item in {**config[section], key: value}.items() if item is not ...},
        )
        for key, value in chosen
    }  # fmt: skip
    assert_bounded(cases)


@pytest.mark.parametrize("model_type", FOREIGN)
def test_foreign_language_models(tmp_path: Path, model_type: str) -> None:
    folder = replace_language_model(build_checkpoint(tmp_path / "checkpoint", "nvila_lite"), model_type)
    assert_bounded(cases_of(folder, "llm/config.json", 3, limit=25))
