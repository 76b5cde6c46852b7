"""Parsing of command-line arguments and environment variables. Nothing else in vila-eval reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.cli.arguments import join_values
from vila_core.errors import ConfigError, shown

if TYPE_CHECKING:
    from vila_eval.options import JudgeOptions, Rank

SEVERAL = ("--tasks", "--tags-include", "--tags-exclude", "--num-video-frames")
"""Options that take one or more values: separate words, comma-separated, or by repeating the option."""
LONG_NAMES = {"-t": "--tasks", "-ti": "--tags-include", "-te": "--tags-exclude", "-nf": "--num-video-frames"}
JUDGE_KEYS = ("VILA_JUDGE_API_KEY", "OPENAI_API_KEY")


def rewrite(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as typer reads them: one value per option, dashes in names (VILA spells `--max_tiles`)."""
    return join_values([LONG_NAMES.get(word, word) for word in arguments], several=SEVERAL, optional={})


def split_names(given: Sequence[str]) -> list[str]:
    """Return the names in comma-separated lists."""
    return [name.strip() for text in given for name in text.split(",") if name.strip()]


def read_frames(given: Sequence[str]) -> list[int] | None:
    """Return the distinct numbers of "8/16/32" or "8,16", or None if nothing was given. Raises `ConfigError`."""
    words = [word.strip() for text in given for word in text.replace("/", ",").split(",") if word.strip()]
    for word in words:
        if not (word.isdecimal() and len(word) < 10 and int(word) > 0):
            raise ConfigError(f"--num_video_frames takes whole numbers from 1, such as 8/16/32; got {shown(word)}.")
    return list(dict.fromkeys(map(int, words))) or None


def read_prices(given: str | None) -> tuple[float, float] | None:
    """Return the two prices in "0.15/0.60". Raises `ConfigError`."""
    if given is None:
        return None
    try:
        prompt, completion = map(float, given.split("/"))
    except ValueError:
        prompt = completion = -1.0
    if not (0 <= prompt < float("inf") and 0 <= completion < float("inf")):
        raise ConfigError(
            f"--judge-price takes two prices in US dollars per million tokens, in and out, such as 0.15/0.60; got "
            f"'{given}'."
        )
    return prompt, completion


def read_judge(
    url: str | None, model: str | None, concurrency: int, price: str | None, environment: Mapping[str, str] = os.environ
) -> JudgeOptions | None:
    """Return the judge, with the key from the environment, or None without a URL. Raises `ConfigError`."""
    from vila_eval.options import JudgeOptions

    if url is None:
        if model is not None or price is not None:
            raise ConfigError(
                "--judge-model and --judge-price need --judge-url, such as --judge-url https://api.openai.com/v1."
            )
        return None
    key = next((environment[name] for name in JUDGE_KEYS if environment.get(name)), None)
    return JudgeOptions(url, key, model, concurrency, prices=read_prices(price))


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the download cache: VILA_EVAL_CACHE, or vila-eval in XDG_CACHE_HOME or ~/.cache."""
    if named := environment.get("VILA_EVAL_CACHE"):
        return Path(named).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vila-eval"


def read_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """Return the rank of this process under `torchrun`, or None outside of it. Raises `ConfigError`."""
    from vila_eval.options import Rank

    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    try:
        rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
    except ValueError:
        rank = world_size = local_rank = -1
    if not 0 <= rank < world_size or local_rank < 0:
        named = ", ".join(f"{name}={environment.get(name)}" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        raise ConfigError(
            f"The environment does not describe a torchrun process: {named}. Unset RANK and WORLD_SIZE, or use "
            "torchrun."
        )
    return Rank(rank, world_size, local_rank)
