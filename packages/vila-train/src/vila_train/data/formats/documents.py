"""Documents with pictures: MMC4.

{"text_list": ["A sentence.", …], "image_info": [{"image_name": "1.jpg", "matched_text_index": 0, …}, …],
 "similarity_matrix": [[0.2, …], …]}

Source: github.com/allenai/mmc4 (documents); `LazyMMC4Dataset` in llava/data/dataset.py of NVlabs/VILA, which puts each
picture before the sentence that matches it, keeps the first 6 of a document in the file's order (the similarity matrix
is read there, but not used), and drops documents of which a picture is missing.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from vila_core.chat import Message
from vila_core.errors import shown
from vila_core.media import Image
from vila_train.data.conversations import SampleError
from vila_train.data.media_files import MAX_MEDIA, MediaFolder
from vila_train.data.placement import Parts, escape_placeholders

MAX_SENTENCES = 100_000


@dataclass(frozen=True)
class Mmc4Reader:
    """Reads MMC4's documents.

    Attributes:
        media: where pictures lie, unless they are embedded as `image_base64`.
        max_images: of a document.
        choose: which of them: the "first", as in the reference, or those of the highest "similarity" (`matched_sim`).
    """

    media: MediaFolder
    max_images: int = 6
    choose: Literal["first", "similarity"] = "first"

    def read(self, record: Mapping[str, object]) -> Sequence[Message]:
        """Return one message with the sentences and pictures of a document. Raises `SampleError`."""
        sentences = _sentences(record)
        pictures = _pictures(record, len(sentences))
        if self.choose == "similarity":
            pictures = sorted(pictures, key=_similarity, reverse=True)
        pictures = sorted(pictures[: self.max_images], key=lambda picture: cast("int", picture["matched_text_index"]))
        before: dict[int, list[Image]] = {}
        for picture in pictures:
            before.setdefault(cast("int", picture["matched_text_index"]), []).append(self._image(picture))
        parts: Parts = []
        for number, sentence in enumerate(sentences):
            images = before.get(number, [])
            glue = " " if number and not images else ""  # the reference removes the space before a picture
            for image in images:
                parts += [image, "\n"]
            parts.append(glue + sentence)
        return [Message("assistant", _joined(parts))]

    def _image(self, picture: Mapping[str, object]) -> Image:
        embedded = picture.get("image_base64")
        if embedded is None:
            return self.media.images(picture.get("image_name"))[0] if picture.get("image_name") else _no_picture()
        return Image(decode_base64(embedded))


def decode_base64(text: object) -> bytes:
    """Return the bytes that a text in base64 stands for. Raises `SampleError`."""
    try:
        if not isinstance(text, str):
            raise ValueError
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise SampleError(f"its picture {shown(text, 40)} is not base64.", "damaged picture") from None


def _sentences(record: Mapping[str, object]) -> list[str]:
    texts = record.get("text_list")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in cast("list[object]", texts)):
        raise SampleError(f"'text_list' is {shown(texts)}; expected a list of texts.", "message is not a text")
    sentences = [escape_placeholders(text) for text in cast("list[str]", texts)]
    if len(sentences) > MAX_SENTENCES:
        raise SampleError(f"it has {len(sentences):,} sentences; the limit is {MAX_SENTENCES:,}.", "too large")
    if not any(sentence.strip() for sentence in sentences):
        raise SampleError("it has no text.", "empty conversation")
    return sentences


def _pictures(record: Mapping[str, object], sentences: int) -> list[Mapping[str, object]]:
    pictures = record.get("image_info")
    if not isinstance(pictures, list) or not all(isinstance(one, Mapping) for one in cast("list[object]", pictures)):
        raise SampleError(f"'image_info' is {shown(pictures)}; expected a list of objects.", "damaged picture")
    if len(cast("list[object]", pictures)) > MAX_MEDIA:
        raise SampleError(f"it has over {MAX_MEDIA:,} pictures.", "too many media")
    checked = cast("list[Mapping[str, object]]", pictures)
    for picture in checked:
        place = picture.get("matched_text_index")
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < sentences:
            raise SampleError(
                f"'matched_text_index' is {shown(place)}; expected the number of one of its {sentences:,} sentences.",
                "damaged picture",
            )
    return checked


def _similarity(picture: Mapping[str, object]) -> float:
    value = picture.get("matched_sim")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise SampleError(f"'matched_sim' is {shown(value)}; expected a number.", "damaged picture")
    return float(value)


def _no_picture() -> Image:
    raise SampleError("a picture has neither 'image_name' nor 'image_base64'.", "missing media file")


def _joined(parts: Parts) -> Parts:
    """Return the parts with neighboring texts joined."""
    joined: Parts = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined
