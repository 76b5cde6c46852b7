"""Videos with a caption or a question, in a list of JSON objects.

{"video_id": "abc", "captions": [{"idx": "1", "content": "…"}, {"idx": "-1", "content": "The whole video …"}]}
{"video": "abc.mp4", "q": "What happens?", "a": "A box moves.", "frames": 8}

The caption with `idx` -1 is of the whole video; the question is then the reference's. `video_path`, `video` or
`video_id` names the file. Sources: ShareGPT4Video's `sharegpt4video_40k.jsonl`; `LazySupervisedDataset` in
llava/data/dataset.py of NVlabs/VILA.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from vila_core.chat import Message
from vila_core.errors import shown
from vila_train.data.conversations import SampleError
from vila_train.data.formats.llava import FRAME_KEYS
from vila_train.data.media_files import MediaFolder
from vila_train.data.placement import remove_placeholders
from vila_train.data.turns import check_turns, text_of

CAPTION_QUESTION = "Elaborate on the visual and narrative elements of the video in detail."


@dataclass(frozen=True)
class VideoReader:
    """Reads videos with captions or questions.

    Attributes:
        media: where videos lie.
    """

    media: MediaFolder

    def read(self, record: Mapping[str, object]) -> Sequence[Message]:
        """Return the messages of a record. Raises `SampleError`."""
        name = next((record[key] for key in ("video_path", "video", "video_id") if record.get(key) is not None), None)
        if name is None:
            raise SampleError("it names no 'video', 'video_path' or 'video_id'.", "missing media file")
        frames = next((record[key] for key in FRAME_KEYS if record.get(key) is not None), None)
        fps = None if record.get("frame_count") is not None else record.get("fps")
        question, answer = _question(record)
        videos = self.media.videos(name, frames, fps)
        return check_turns([Message("user", [*videos, question]), Message("assistant", [answer])])


def _question(record: Mapping[str, object]) -> tuple[str, str]:
    if record.get("captions") is not None:
        return CAPTION_QUESTION, _whole_caption(record["captions"])
    if record.get("caption") is not None:
        return CAPTION_QUESTION, remove_placeholders(text_of(record, "caption"))
    keys = ("q", "a") if "q" in record else ("question", "answer")
    question, answer = (remove_placeholders(text_of(record, key)) for key in keys)
    return question, answer


def _whole_caption(captions: object) -> str:
    entries = cast("list[object]", captions) if isinstance(captions, list) else []
    for entry in reversed(entries):
        if isinstance(entry, Mapping) and str(cast("Mapping[str, object]", entry).get("idx")) == "-1":
            return remove_placeholders(text_of(cast("Mapping[str, object]", entry), "content"))
    raise SampleError(f"'captions' is {shown(captions)}; expected one with idx -1, of the whole video.", "no answer")
