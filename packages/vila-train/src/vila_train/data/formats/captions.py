"""Pictures and videos with captions or conversations in webdataset archives, as img2dataset writes them.

`17.jpg`, `17.txt` (the caption) and `17.json` (with "caption" and "url") make a sample. Pictures with conversations
have them in `17.json` as LLaVA does, and several pictures are `17.1.jpg`, `17.2.jpg` … Sources: github.com/rom1504/
img2dataset (output format "webdataset"); llava/data/dataset.py (`LazyCoyoWebDataset`, `LazyCCSWebDataset`) and
dataset_impl/eagle_wds.py of NVlabs/VILA.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from vila_core.chat import Message
from vila_core.checkpoint.json_files import parse_json_object
from vila_core.errors import CheckpointError, shown
from vila_core.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Image, Video
from vila_train.data.conversations import SampleError
from vila_train.data.entries import Learned
from vila_train.data.formats.llava import text_turns
from vila_train.data.placement import Placement, escape_placeholders, place_media
from vila_train.data.turns import check_turns

_IMAGE_SUFFIXES = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES) | {"img", "image"}
_VIDEO_SUFFIXES = frozenset(suffix[1:] for suffix in VIDEO_SUFFIXES)
_NUMBERED = re.compile(r"([0-9]{1,6})\.(\w+)")
_TEXTS = ("txt", "caption", "text")


@dataclass(frozen=True)
class WebdatasetReader:
    """Reads captions and conversations.

    Attributes:
        learn: a caption is the assistant's "answer", as the reference learns CC3M; or, in a "document", it continues
            its picture without a chat template, as the reference learns COYO; or the "picture" is the answer to its
            caption, as VILA-U learns to draw.
        placement: where media go among the texts of conversations.
    """

    learn: Learned = "answer"
    placement: Placement = "auto"

    def read(self, record: Mapping[str, object]) -> Sequence[Message]:
        """Return the messages of a sample's members. Raises `SampleError`."""
        members = cast("Mapping[str, bytes]", record)
        facts = _facts(members)
        images, videos = _images(members), _videos(members)
        if "conversations" in facts:
            return check_turns(place_media(text_turns(facts), images, videos, self.placement))
        caption = escape_placeholders(_caption(members, facts)).strip()
        if not images and not videos:
            raise SampleError(f"it has no picture or video, only {', '.join(members)}.", "missing media file")
        media = [*images, *videos][:1]  # of `17.jpg` and `17.png`, the first is the picture
        if not caption:
            raise SampleError("its caption is empty.", "empty message")
        if self.learn == "document":
            return [Message("assistant", [*media, f"\n{caption}"])]
        if self.learn == "picture":
            return check_turns([Message("user", [caption]), Message("assistant", media)])
        return check_turns([Message("user", media), Message("assistant", [caption])])


def _facts(members: Mapping[str, bytes]) -> Mapping[str, object]:
    if "json" not in members:
        return {}
    try:
        return parse_json_object(members["json"], "its .json")
    except CheckpointError as error:
        raise SampleError(str(error), "damaged JSON") from None


def _images(members: Mapping[str, bytes]) -> list[Image]:
    numbered = {
        int(found[1]): suffix
        for suffix in members
        if (found := _NUMBERED.fullmatch(suffix)) and found[2] in _IMAGE_SUFFIXES
    }
    single = [suffix for suffix in members if suffix in _IMAGE_SUFFIXES][:1]
    return [Image(members[suffix]) for suffix in (*single, *(numbered[number] for number in sorted(numbered)))]


def _videos(members: Mapping[str, bytes]) -> list[Video]:
    return [Video(members[suffix]) for suffix in members if suffix in _VIDEO_SUFFIXES]


def _caption(members: Mapping[str, bytes], facts: Mapping[str, object]) -> str:
    suffix = next((suffix for suffix in _TEXTS if suffix in members), None)
    if suffix is not None:
        try:
            return members[suffix].decode("utf-8-sig")
        except UnicodeDecodeError:
            raise SampleError(f"its .{suffix} is not text in UTF-8.", "message is not a text") from None
    caption = next((facts[key] for key in ("caption", "text", "prompt") if facts.get(key) is not None), None)
    if not isinstance(caption, str):
        raise SampleError(
            f"it has no caption (.txt, or 'caption' in .json), only {shown(', '.join(members))}.", "no answer"
        )
    return caption
