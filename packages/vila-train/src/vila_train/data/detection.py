"""What a data file or folder is, by its content: names are often missing or wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from vila_core.errors import listed, shown
from vila_train.data.conversations import SampleError
from vila_train.data.entries import Format
from vila_train.data.sources import Records
from vila_train.errors import DatasetError

LOOKED_AT = 100
"""Records that are looked at: the first may be damaged."""

_KEYS: dict[Format, tuple[set[str], ...]] = {
    "llava": ({"conversations"},),
    "chat": ({"messages"},),
    "mmc4": ({"text_list", "image_info"},),
    "m3it": ({"instruction", "outputs"},),
    "flan": ({"inputs", "targets"},),
    "texts": ({"texts", "images"},),
    "qa": ({"question", "answer"}, {"prompt", "answer"}),
    "video": ({"video_id", "captions"}, {"video_path", "captions"}, {"video_id", "q", "a"}, {"video", "caption"}),
}
"""Keys that tell a format, each set of them enough. The first format that fits is taken."""


def detect_format(records: Records, path: Path) -> Format:
    """Return the format of records by the keys of the first ones. Raises `DatasetError` if none is known."""
    problem: SampleError | None = None
    seen: list[Mapping[str, object]] = []
    for number in range(min(len(records), LOOKED_AT)):
        try:
            record = records[number]
        except SampleError as error:
            problem = problem or error
            continue
        for name, alternatives in _KEYS.items():
            if any(keys <= record.keys() for keys in alternatives):
                return name
        seen.append(record)
    if not seen:
        raise DatasetError(
            f"'{path}' has no readable sample among its first {LOOKED_AT}: {problem} Expected a JSON list of samples, "
            "or one sample per line. Samples that span several lines are rewritten with: jq -c . FILE."
        )
    within = next((key for key, value in seen[0].items() if _holds_objects(value)), None)
    if len(records) == 1 and within is not None:
        raise DatasetError(
            f"'{path}' is one JSON object. If its samples are in {shown(within)}, save that list as a file of its own."
        )
    raise DatasetError(
        f"'{path}' has samples with the keys {listed(map(shown, seen[0]), 8) or 'none'}, which is no known format. "
        "Expected 'conversations' (LLaVA), 'messages' (chat), or 'question' and 'answer'; see docs/training-data.md."
    )


def _holds_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(cast("list[object]", value)[0], dict)
