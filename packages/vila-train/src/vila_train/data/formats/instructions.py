"""Instructions with outputs: M3IT and the text of FLAN.

M3IT: {"instruction": "Describe it.", "inputs": "", "outputs": "A cat.", "image_base64_str": ["…"]}
FLAN: {"inputs": "Translate: …", "targets": "…"}

A table may have an image instead, as `image`. The question of M3IT is the instruction followed by the inputs, without a
space, as in the reference. Sources: huggingface.co/datasets/MMInstruction/M3IT and Open-Orca/FLAN; data_prepare/sft/
preprocess_m3it.py and preprocess_flan.py of NVlabs/VILA.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vila_core.chat import Message
from vila_core.media import Image
from vila_train.data.formats.documents import decode_base64
from vila_train.data.media_files import MediaFolder
from vila_train.data.placement import escape_placeholders, remove_placeholders
from vila_train.data.turns import check_turns, text_of


@dataclass(frozen=True)
class M3itReader:
    """Reads M3IT.

    Attributes:
        media: where images lie that are not embedded.
    """

    media: MediaFolder

    def read(self, record: Mapping[str, object]) -> Sequence[Message]:
        """Return the messages of a record. Raises `SampleError`."""
        inputs = text_of(record, "inputs") if record.get("inputs") is not None else ""
        question = remove_placeholders(text_of(record, "instruction") + inputs)
        embedded: object = record.get("image_base64_str")
        pictures: Sequence[object] = embedded if isinstance(embedded, list) else () if embedded is None else (embedded,)
        images = [*map(Image, map(decode_base64, pictures)), *self.media.images(record.get("image"))]
        answer = remove_placeholders(text_of(record, "outputs"))
        return check_turns([Message("user", [*images, question]), Message("assistant", [answer])])


@dataclass(frozen=True)
class FlanReader:
    """Reads the text of FLAN. A text that mentions `<image>` has no image, so it is written `<IMAGE>`."""

    def read(self, record: Mapping[str, object]) -> Sequence[Message]:
        """Return the messages of a record. Raises `SampleError`."""
        question, answer = (escape_placeholders(text_of(record, key)) for key in ("inputs", "targets"))
        return check_turns([Message("user", [question]), Message("assistant", [answer])])
