"""Resolve `--search`: the name of a registered method, or a file of AWQ search results to apply."""

import hashlib
from pathlib import Path
from typing import cast

from vila_core.errors import CheckpointError
from vila_core.input_files import Content, check_input, open_input
from vila_core.plugins.loader import load_plugins
from vila_quant.awq.method import BlockQuantizer
from vila_quant.quantizing.plan import Plan
from vila_quant.quantizing.search_results import AppliedSearch, check_layers, read_search_results

SUFFIX = ".pt"
"""Suffix of files of search results."""
MAX_FILE_BYTES = 16 << 30
"""Scales and clips take a small part of a model's size."""
ADVICE = f"--search takes the name of a method, or a file of AWQ search results ({SUFFIX})."


def find_method(search: str, plan: Plan) -> BlockQuantizer:
    """Return the registered method `search`, or one that applies the search results in the file `search`.

    Raises:
        ConfigError: unknown method.
        CheckpointError: the file is missing or damaged, contains code (never executed), or is of another model.
    """
    file = _file(search)
    if file is None:
        return cast("BlockQuantizer", load_plugins().quantizers.get(search))
    results = read_search_results(file)
    try:
        check_layers(results, plan.config, plan.skipped)
    except CheckpointError as error:
        raise CheckpointError(f"{file} does not fit: {error}") from None
    return AppliedSearch(results, file.name)


def search_digest(search: str) -> str | None:
    """Return the SHA-256 of the file `search`; None for the name of a method."""
    file = _file(search)
    if file is None:
        return None
    with open_input(file, max_bytes=MAX_FILE_BYTES, advice=ADVICE, content=Content.ARCHIVE) as opened:
        digest = hashlib.sha256()
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _file(search: str) -> Path | None:
    if not search.endswith(SUFFIX):
        return None
    file = Path(search).expanduser()
    check_input(file, max_bytes=MAX_FILE_BYTES, advice=ADVICE, content=Content.ARCHIVE)
    return file
