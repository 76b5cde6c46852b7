"""Subset files: which samples of a dataset to keep, as `vila-train prune` writes them.

# vila-train subset of coco_captions
# samples: 1000
0
3
17

Text, so that people and other programs can write them: after the header, one number per line, counted from 0.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vila_core.errors import shown
from vila_core.input_files import read_input_text
from vila_core.new_file import write_file
from vila_train.errors import DatasetError

MAX_SUBSET_BYTES = 4 * 1024**3
_SAMPLES = "# samples:"


def write_subset(path: Path, dataset: str, samples: int, indices: npt.NDArray[np.int64]) -> None:
    """Write a subset file.

    Args:
        path: of the file.
        dataset: its name, as a comment.
        samples: how many the dataset has.
        indices: of the samples to keep.

    Raises:
        OutputError: it cannot be written.
    """
    lines = "\n".join(map(str, np.sort(indices).tolist()))
    write_file(path, f"# vila-train subset of {dataset}\n{_SAMPLES} {samples}\n{lines}\n")


def read_subset(path: Path, samples: int) -> npt.NDArray[np.int64]:
    """Return the numbers in a subset file, in ascending order.

    Args:
        path: of the file.
        samples: how many samples the dataset has.

    Raises:
        DatasetError: the file is missing, is not a subset file, belongs to a dataset of another size, names a sample
            twice or none at all.
    """
    advice = "Expected a file that `vila-train prune` wrote."
    text = read_input_text(path, max_bytes=MAX_SUBSET_BYTES, error=DatasetError, advice=advice)
    stated, values = None, list[str]()
    for line in text.splitlines():
        if line.startswith(_SAMPLES):
            stated = line.removeprefix(_SAMPLES).strip()
        elif line.strip() and not line.startswith("#"):
            values.append(line.strip())
    if stated is None:
        raise DatasetError(f"'{path}' has no line '{_SAMPLES} N'. {advice}")
    if stated != str(samples):
        raise DatasetError(
            f"'{path}' is a subset of {shown(stated)[1:-1]} samples, but the dataset has {samples:,}. "
            "Make it again for this dataset."
        )
    wrong = next((value for value in values if not (value.isascii() and value.isdecimal()) or len(value) > 18), None)
    if wrong is not None:
        raise DatasetError(f"'{path}' has the line {shown(wrong)}; expected a sample's number.")
    indices = np.array([int(value) for value in values], dtype=np.int64)
    if not len(indices):
        raise DatasetError(f"'{path}' keeps no samples.")
    unique = np.unique(indices)
    if len(unique) < len(indices):
        raise DatasetError(f"'{path}' names {len(indices) - len(unique):,} samples twice.")
    if unique[-1] >= samples:
        raise DatasetError(f"'{path}' names sample {unique[-1]:,}, but the dataset has {samples:,}, counted from 0.")
    return unique
