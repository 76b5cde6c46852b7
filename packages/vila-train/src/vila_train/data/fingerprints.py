"""Fingerprints of datasets: they notice other samples, or another order of them, under the same name."""

import hashlib
import json
import os
from itertools import islice

from vila_core.conversation import Part, parts_of
from vila_core.media import Image
from vila_core.media.sources import is_data_uri, is_url
from vila_train.data.bad_samples import as_skipped
from vila_train.data.conversations import ConversationSource
from vila_train.data.permutation import Permutation
from vila_train.data.turns import is_learned

SAMPLES = 64
"""What is read of a dataset: enough to notice a file that was shuffled, replaced, or changed throughout."""


def dataset_fingerprint(source: ConversationSource) -> str:
    """Return a digest of a dataset, the same one for a copy of it elsewhere: of its size and up to 64 of its samples.

    Which samples are read depends on the size only. Their texts count, media embedded in the data, and the names of
    media files (without their folders), which are not opened. Of a sample that cannot be used, the reason counts.

    Raises:
        TrainingError: the dataset cannot be read.
        MissingDependencyError: a package for reading it is not installed.
    """
    size = len(source)
    digest = hashlib.blake2b(f"{size} ".encode(), digest_size=16)
    for index in sorted(islice(Permutation(size, (SAMPLES,)), SAMPLES)):
        digest.update(json.dumps([index, _sample(source, index)]).encode())
    return digest.hexdigest()


def _sample(source: ConversationSource, index: int) -> object:
    """Return what counts of a sample, as JSON values."""
    try:
        sample = source[index]
        messages = [[one.role, is_learned(one), *map(_part, parts_of(one))] for one in sample.messages]
    except Exception as error:  # noqa: BLE001 - `as_skipped` raises what is not the sample's fault
        return as_skipped(error, f"{source.name}/{index}").reason
    return [sample.is_document, messages]


def _part(part: Part) -> object:
    if isinstance(part, str):
        return part
    if isinstance(part, Image):
        return ["image", _medium(part.source)]
    return ["video", _medium(part.source), part.frames, part.fps]


def _medium(source: object) -> object:
    """Return what counts of a medium; nothing of pixels in memory, which other versions of a library may draw."""
    if isinstance(source, tuple):
        return [_medium(frame.source) for frame in source if isinstance(frame, Image)]
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).hexdigest()
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        return name if is_url(name) or is_data_uri(name) else os.path.basename(name)
    return None
