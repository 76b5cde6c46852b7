"""LLaVA's conversations, as in `llava_v1_5_mix665k.json`.

{"id": "1", "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "<image> What is this?"},
                                                     {"from": "gpt", "value": "A cat."}]}

`image` (or `images`) is a name or a list of them, `video` (or `videos`) too. `frames` says how many frames of a video
to sample, `fps` how many per second. Source: haotian-liu/LLaVA docs/Finetune_Custom_Data.md; llava/data/dataset_impl/
llava.py of NVlabs/VILA. In the reference's files, `fps` beside `frame_count` is the rate of the file itself, so it is
not read here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from vila_core.chat import Message
from vila_core.errors import shown
from vila_core.media import Video
from vila_train.data.conversations import SampleError
from vila_train.data.media_files import MediaFolder
from vila_train.data.placement import Placement, TextTurn, place_media
from vila_train.data.turns import check_turns, role_of, text_of

FRAME_KEYS = ("frames", "num_frames", "nframes")


@dataclass(frozen=True)
class LlavaReader:
    """Reads LLaVA's conversations.

    Attributes:
        media: where images and videos lie.
        placement: where they go among the texts.
    """

    media: MediaFolder
    placement: Placement = "auto"

    def read(self, record: Mapping[str, object]) -> Sequence[Message]:
        """Return the messages of a record. Raises `SampleError`."""
        turns = [TextTurn(role_of(turn, "from"), text_of(turn, "value")) for turn in turns_in(record, "conversations")]
        images = [*self.media.images(record.get("image")), *self.media.images(record.get("images"))]
        return check_turns(place_media(turns, images, videos_of(record, self.media), self.placement))


def turns_in(record: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    """Return the list of turns of a record. Raises `SampleError` if it is missing, empty, or not a list of objects."""
    turns = record.get(key)
    if isinstance(turns, Mapping):  # some tables hold a list of objects as an object of lists
        turns = _as_rows(cast("Mapping[str, object]", turns))
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in cast("list[object]", turns)):
        raise SampleError(f"'{key}' is {shown(turns)}; expected a list of messages.", "no messages")
    if not turns:
        raise SampleError("it has no messages.", "empty conversation")
    return cast("list[Mapping[str, object]]", turns)


def _as_rows(columns: Mapping[str, object]) -> list[dict[str, object]]:
    lists = [cast("list[object]", values) for values in columns.values() if isinstance(values, list)]
    if len(lists) < len(columns) or len({len(values) for values in lists}) > 1:
        raise SampleError("its messages are an object; expected a list.", "no messages")
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def videos_of(record: Mapping[str, object], media: MediaFolder) -> list[Video]:
    """Return the videos of a record, with its `frames` and `fps`. Raises `SampleError`."""
    frames = next((record[key] for key in FRAME_KEYS if record.get(key) is not None), None)
    fps = None if record.get("frame_count") is not None else record.get("fps")
    return [video for key in ("video", "videos") for video in media.videos(record.get(key), frames, fps)]
