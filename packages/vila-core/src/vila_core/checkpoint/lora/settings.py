"""Rank and scale of each module, as peft reads them from `adapter_config.json`.

`rank_pattern` and `alpha_pattern` map regular expressions to numbers; the first that matches the end of a module's name
applies. The expressions come from the adapter, so matching is bounded in time.
"""

import math
import time
from collections.abc import Mapping

import regex

from vila_core.checkpoint.json_files import Section
from vila_core.errors import CheckpointError, shown

MATCHING_SECONDS = 3.0
"""For all modules together; a real adapter takes milliseconds."""
MAX_ALPHA = 1e6
_MAX_PATTERN_LENGTH = 2000
_MAX_REPEATS = 10_000
"""Product of all counts in a pattern, `{2,99}`: compiling writes repeats out."""
_REPEATS = regex.compile(r"(?<=[{,]\s*)[0-9]+(?=\s*[,}])")


class LoraSettings:
    """The numbers of an adapter's config.

    Raises:
        CheckpointError: a number is out of range, or a pattern is no regular expression or takes too long.
    """

    def __init__(self, config: Section):
        self._source = config.source
        self._alpha = _alpha(config, "lora_alpha", 8.0)
        self._rank = config.integer("r") if "r" in config else None
        self._alphas = _patterns(config, "alpha_pattern")
        self._ranks = _patterns(config, "rank_pattern")
        self._is_stabilized = config.boolean("use_rslora", False)
        self.uses_dora = config.boolean("use_dora", False)
        self._deadline: float | None = None

    def rank(self, module: str) -> int | None:
        """Return the rank of `module` that the config states, None if it states none."""
        pattern = self._match("rank_pattern", self._ranks.values, module)
        return self._rank if pattern is None else self._ranks.integer(pattern)

    def scale(self, module: str, rank: int) -> float:
        """Return s of `W + s B A` for `module`: alpha / r, or alpha / sqrt(r) if rank-stabilized."""
        pattern = self._match("alpha_pattern", self._alphas.values, module)
        alpha = self._alpha if pattern is None else _alpha(self._alphas, pattern)
        return alpha / (math.sqrt(rank) if self._is_stabilized else rank)

    def _match(self, key: str, patterns: Mapping[str, object], module: str) -> str | None:
        """Return the first of `patterns` that matches as in peft."""
        if self._deadline is None:
            self._deadline = time.monotonic() + MATCHING_SECONDS
        for pattern in patterns:
            if len(pattern) > _MAX_PATTERN_LENGTH:
                raise CheckpointError(f"{self._source}: '{key}' has a pattern of {len(pattern):,} characters.")
            if math.prod(max(1, int(count)) for count in _REPEATS.findall(pattern)) > _MAX_REPEATS:
                raise CheckpointError(f"{self._source}: '{key}' has {shown(pattern)}, which repeats too often.")
            try:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if regex.match(rf"(.*\.)?({pattern})$", module, timeout=left):
                    return pattern
            except (regex.error, OverflowError, RecursionError, MemoryError):
                raise CheckpointError(
                    f"{self._source}: '{key}' has {shown(pattern)}, which is not a valid regular expression."
                ) from None
            except TimeoutError:
                raise CheckpointError(
                    f"{self._source}: '{key}' ({len(patterns):,} regular expressions) takes too long to match, at "
                    f"{shown(pattern)}. Simplify it."
                ) from None
        return None


def _patterns(config: Section, key: str) -> Section:
    return config.section(key) if key in config else Section({}, config.source)


def _alpha(section: Section, key: str, default: float | None = None) -> float:
    alpha = section.number(key, default)
    if abs(alpha) > MAX_ALPHA:
        raise CheckpointError(f"{section.source}: '{key}' is {alpha:g}; expected at most {MAX_ALPHA:,.0f}.")
    return alpha
