"""Calibration samples: from a folder, a JSONL or text file, a registered dataset, or built in.

| source | samples |
| --- | --- |
| `auto` | `drawn-world`, if registered, for models with a small vocabulary; otherwise `builtin` |
| `builtin` | text of several kinds and languages, and drawn images: works offline, for any model |
| a dataset's name | training samples of a registered dataset (hook `vila_datasets`), such as `drawn-world` |
| a folder | images and videos; `NAME.txt` beside a medium is its prompt |
| a `.jsonl` file | `{"prompt": …, "image": … or "images": […], "video": …, "answer": …}` per line |
| a `.txt` file | documents, separated by form feeds |
"""

import json
import os
import random
from collections.abc import Iterator
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import cast

from vila_core.checkpoint.json_files import parse_json_object
from vila_core.errors import CheckpointError, unknown_name
from vila_core.input_files import read_input_text
from vila_core.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Image, Video, open_media
from vila_core.plugins.datasets import Dataset
from vila_core.plugins.loader import load_plugins
from vila_quant.calibration.pictures import draw_sample
from vila_quant.calibration.sample import Sample
from vila_quant.errors import QuantizationError

DEFAULT_PROMPT = "Describe the image in detail."
DRAWN_WORLD = "drawn-world"
SMALL_VOCABULARY = 4096
"""Models with a smaller vocabulary were not trained on general text."""
WINDOW = 2000
"""Characters of built-in text per sample: about 500 tokens of English."""
MAX_TEXT_BYTES = 1 << 30
"""More text than any calibration reads."""
KEYS = ("prompt", "image", "images", "video", "answer")


def resolve_source(source: str, vocab_size: int) -> str:
    """Return the source that "auto" means for a model with `vocab_size` tokens; others are returned unchanged."""
    if source != "auto":
        return source
    return DRAWN_WORLD if vocab_size < SMALL_VOCABULARY and DRAWN_WORLD in load_plugins().datasets else "builtin"


def read_samples(source: str, seed: int, picture_share: float) -> Iterator[Sample]:
    """Yield samples: endlessly from generated sources, once from files.

    Args:
        source: see the table above; "auto" must be resolved.
        seed: seed for the order, and for generated samples.
        picture_share: fraction of built-in samples with an image, 0 to 1.

    Raises:
        QuantizationError: unknown source, empty folder, or an invalid line.
    """
    if source == "builtin":
        return _builtin(seed, picture_share)
    path = Path(source).expanduser()
    if os.path.isdir(path):  # False even for strings that cannot be file names
        return _folder(path, seed)
    if os.path.exists(path):
        return _text(_read_text(path), seed) if path.suffix == ".txt" else _json_lines(path, seed)
    datasets = load_plugins().datasets
    if source not in datasets:
        message = unknown_name("calibration", source, [*datasets.names(), "auto", "builtin"])
        raise QuantizationError(f"{message} There is no such folder or file either.")
    return _registered(datasets.get(source), seed)


def builtin_text() -> str:
    """Return the text included in vila-quant: documents separated by form feeds."""
    return (files("vila_quant") / "assets" / "calibration.txt").read_text(encoding="utf-8")


def _builtin(seed: int, picture_share: float) -> Iterator[Sample]:
    """Yield images spread evenly among texts, and only images once the text is used up."""
    text = builtin_text()
    story = text.partition("\f")[0]
    windows = _text(text, seed)
    pictures = (draw_sample(number, seed, story) for number in count())
    owed = 1.0 if picture_share else 0.0  # start with an image, so that even a few samples include one
    while True:
        sample = next(pictures) if owed >= 1 else next(windows, None)
        if sample is None:
            yield from pictures
            return
        owed += picture_share - (owed >= 1)
        yield sample


def _text(text: str, seed: int) -> Iterator[Sample]:
    """Return windows of all documents, shuffled."""
    documents = [document.strip() for document in text.split("\f")]
    windows = [document[start : start + WINDOW] for document in documents for start in range(0, len(document), WINDOW)]
    random.Random(seed).shuffle(windows)
    return iter([Sample((window,), is_text=True) for window in windows if window.strip()])


def _registered(dataset: Dataset, seed: int) -> Iterator[Sample]:
    """Yield training samples endlessly, one per subset in turn."""
    sizes = {subset: dataset.size("train", subset) for subset in dataset.subsets()}
    subsets = {subset: size for subset, size in sizes.items() if size != 0}
    if not subsets:
        raise QuantizationError(f"The dataset '{dataset.name}' has no training samples. Choose another calibration.")
    for number in count(seed * 1_000_000):
        for subset, size in subsets.items():
            sample = dataset.sample("train", subset, number if size is None else number % size)
            yield Sample(sample.prompt, sample.answer)


def _folder(folder: Path, seed: int) -> Iterator[Sample]:
    media = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)]
    if not media:
        raise QuantizationError(
            f"{folder} has no images or videos (subfolders are not searched). "
            "Choose a folder with some, or a .jsonl or .txt file."
        )
    random.Random(seed).shuffle(media)
    return (Sample((open_media(path), _prompt_beside(path))) for path in media)


def _prompt_beside(path: Path) -> str:
    file = path.with_suffix(".txt")
    return _read_text(file).strip() or DEFAULT_PROMPT if file.exists() else DEFAULT_PROMPT


def _read_text(path: Path) -> str:
    advice = "Expected a .jsonl or .txt file in UTF-8."
    return read_input_text(path, max_bytes=MAX_TEXT_BYTES, error=QuantizationError, advice=advice)


def _json_lines(path: Path, seed: int) -> Iterator[Sample]:
    lines = _read_text(path).split("\n")  # other line separators may occur in strings
    samples = [_read_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    random.Random(seed).shuffle(samples)
    return iter(samples)


def _read_line(path: Path, number: int, line: str) -> Sample:
    where = f"{path}, line {number}"
    try:
        row = parse_json_object(line, where)
    except CheckpointError as error:
        raise QuantizationError(f"{error} Expected one sample per line.") from None
    unknown = [key for key in row if key not in KEYS]
    if unknown:
        raise QuantizationError(f"{where}: {unknown_name('key', unknown[0], KEYS)}")
    images = row.get("images", [])
    pictures: list[object] = [
        *([row["image"]] if "image" in row else []),
        *(cast("list[object]", images) if isinstance(images, list) else [images]),
    ]
    videos = [row["video"]] if "video" in row else []
    prompt, answer = row.get("prompt"), row.get("answer")
    texts = [*pictures, *videos, *([answer] if answer is not None else []), *([prompt] if prompt is not None else [])]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise QuantizationError(f"{where}: {json.dumps(row)[:100]}; expected strings, and a prompt or a medium.")
    sources = {name: _beside(path, name) for name in cast("list[str]", [*pictures, *videos])}
    if missing := [source for name, source in sources.items() if ":" not in name and not os.path.isfile(source)]:
        raise QuantizationError(
            f"{where}: no file '{missing[0][:200]}'. Paths are relative to the file that names them."
        )
    media = [Image(sources[name]) for name in cast("list[str]", pictures)] + [
        Video(sources[name]) for name in cast("list[str]", videos)
    ]
    return Sample((*media, cast("str", prompt or DEFAULT_PROMPT)), cast("str | None", answer))


def _beside(path: Path, name: str) -> str:
    return name if ":" in name else str(path.parent / name)
