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

from vila_core.chat import Message
from vila_core.media import Video
from vila_train.data.media_files import MediaFolder
from vila_train.data.placement import Placement, TextTurn, place_media
from vila_train.data.stated_turns import read_turns
from vila_train.data.turns import check_turns, text_of

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
        turns = text_turns(record)
        images = [*self.media.images(record.get("image")), *self.media.images(record.get("images"))]
        return check_turns(place_media(turns, images, videos_of(record, self.media), self.placement))


def text_turns(record: Mapping[str, object]) -> list[TextTurn]:
    """Return the turns of a record in LLaVA's format. Raises `SampleError`."""
    turns = read_turns(record, "conversations", "from", "value")
    return [TextTurn(turn.role, text_of(turn.fields, "value"), turn.learned) for turn in turns]


def videos_of(record: Mapping[str, object], media: MediaFolder) -> list[Video]:
    """Return the videos of a record, with its `frames` and `fps`. Raises `SampleError`."""
    frames = next((record[key] for key in FRAME_KEYS if record.get(key) is not None), None)
    fps = None if record.get("frame_count") is not None else record.get("fps")
    return [video for key in ("video", "videos") for video in media.videos(record.get(key), frames, fps)]
