"""What a mixture is called: `a+b*3+c@subset`.

| text | meaning |
| --- | --- |
| `a+b` | the samples of both, mixed |
| `a*3` | each sample three times an epoch |
| `a*0.5` | half of the samples each epoch, other ones in the next |
| `a@subset` | a part of `a`: of a registered dataset, or a subset file by its name in the registry or its path |
| `my/data.jsonl` | a data file, its format found out by content |

`a@subset*2` and `a*2@subset` are the same. A text that is the path of a file is taken as that file, even with a `+`;
of a dataset and a file with the same name, the dataset is meant, and `./name` is the file.
"""

import math
import os
import re
from dataclasses import dataclass

from vila_core.errors import shown
from vila_train.errors import DatasetError

MAX_ITEMS = 10_000
MAX_WEIGHT = 10_000
MAX_PLUSES = 8
"""In the name of a file."""

_MARK = re.compile("([*@])")
_WEIGHT = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")


@dataclass(frozen=True)
class Item:
    """A part of a mixture.

    Attributes:
        name: of a dataset or mixture, or the path of a file.
        subset: after the `@`; None: all of it.
        weight: how many times it is read per epoch.
    """

    name: str
    subset: str | None = None
    weight: float = 1.0


def parse_mixture(text: str) -> list[Item]:
    """Return the items of a mixture's text. Raises `DatasetError` if it cannot be read."""
    if not text.strip():
        raise DatasetError("The mixture is empty. Name a dataset or a file, such as 'my_data.jsonl'.")
    count = text.count("+") + 1
    if count > MAX_ITEMS:
        raise DatasetError(f"The mixture has {count:,} items; the limit is {MAX_ITEMS:,}.")
    return [_parse_item(piece.strip(), text) for piece in _split(text)]


def is_path(text: str) -> bool:
    """Return whether a file or folder has this name."""
    try:
        return os.path.exists(os.path.expanduser(text))
    except ValueError:  # a null character
        return False


def _split(text: str) -> list[str]:
    """Split at each `+` that is not part of a file's name."""
    pieces = text.split("+")
    joined: list[str] = []
    start = 0
    while start < len(pieces):
        ends = range(min(start + MAX_PLUSES + 1, len(pieces)), start + 1, -1)
        end = next((end for end in ends if _path_in("+".join(pieces[start:end]), pieces[end - 1])), start + 1)
        joined.append("+".join(pieces[start:end]))
        start = end
    return joined


def _path_in(text: str, last: str) -> str:
    """Return the longest path that `text` starts with and that ends in its part `last`; "" if there is none."""
    text = text.strip()
    first = len(text) - len(last.strip())
    ends = [len(text), *reversed([found.start() for found in _MARK.finditer(text)])]
    return next((text[:end].strip() for end in ends if end > first and is_path(text[:end].strip())), "")


def _parse_item(piece: str, text: str) -> Item:
    if not piece:
        raise DatasetError(f"The mixture {shown(text)} has an empty item: is there a '+' too many?")
    path = _path_in(piece, piece)
    name, *marks = _MARK.split(piece[len(path) :])
    name = path or name.strip()
    subset, weight = None, None
    for mark, value in zip(marks[::2], marks[1::2], strict=True):
        value = value.strip()
        if mark == "@" and subset is None and value:
            subset = value
        elif mark == "*" and weight is None:
            weight = _parse_weight(value, piece)
        else:
            problem = "an empty subset" if not value else f"two {'subsets' if mark == '@' else 'weights'}"
            raise DatasetError(f"The mixture item {shown(piece)} has {problem}. Expected NAME@SUBSET*WEIGHT.")
    if not name:
        raise DatasetError(f"The mixture item {shown(piece)} has no name. Expected NAME@SUBSET*WEIGHT.")
    return Item(name, subset, 1.0 if weight is None else weight)


def _parse_weight(value: str, piece: str) -> float:
    weight = float(value) if _WEIGHT.fullmatch(value) and len(value) < 20 else math.nan
    if not 0 < weight <= MAX_WEIGHT:
        raise DatasetError(
            f"The mixture item {shown(piece)} has the weight {shown(value)}; expected a number above 0 and at most "
            f"{MAX_WEIGHT:,}, such as 3 or 0.5."
        )
    return weight
