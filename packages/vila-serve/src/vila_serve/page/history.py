"""The conversation as the page keeps it, and as the model reads it.

The page sends the whole conversation with each question, so that the server keeps none. A message is a dict with "role"
and "content", a list of parts: `{"type": "text", "text": …}` or `{"type": "file", "file": {"path": …}}`.
"""

import asyncio
import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vila_core import Image, Message, Video
from vila_core.errors import MediaError
from vila_serve.media import MediaDoor
from vila_serve.page.question import PictureFile, Turn

PageMessage = dict[str, Any]
MIME_TYPES = {
    **{f".{name}": f"image/{name}" for name in ("png", "jpeg", "webp", "gif", "bmp", "avif", "tiff")},
    ".jpg": "image/jpeg",
    ".tif": "image/tiff",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
}
"""By the ending of a file's name."""
ENDINGS = tuple(MIME_TYPES)


def mime_type_of(path: Path) -> str:
    """Return the type of a file by its name; the decoder looks at its contents."""
    return MIME_TYPES.get(path.suffix.lower(), "application/octet-stream")


def user_message(text: str, files: Sequence[str]) -> PageMessage:
    """Return a message of the user with files above its text."""
    return {"role": "user", "content": [*map(file_part, files), *([text_part(text)] if text else [])]}


def assistant_message(parts: Sequence[str | PictureFile], store: Callable[[PictureFile], str]) -> PageMessage:
    """Return a message of the model; `store` returns the path of a picture's file."""
    content = [text_part(part) if isinstance(part, str) else file_part(store(part)) for part in parts]
    return {"role": "assistant", "content": content}


def file_part(path: str) -> dict[str, Any]:
    """Return an image or a video as a part."""
    return {"type": "file", "file": {"path": path, "mime_type": mime_type_of(Path(path))}}


def text_part(text: str) -> dict[str, Any]:
    """Return text as a part. As a plain string, Gradio would remove its indentation."""
    return {"type": "text", "text": text}


def in_turns(history: Sequence[PageMessage]) -> list[PageMessage]:
    """Return the conversation with one message per turn: Gradio may split a message with files."""
    turns: list[PageMessage] = []
    for message in history:
        role = "assistant" if message["role"] == "assistant" else "user"
        content = message["content"]
        parts = [text_part(content)] if isinstance(content, str) else list(content)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += parts
        else:
            turns.append({"role": role, "content": parts})
    return turns


def one_by_one(turns: Sequence[PageMessage]) -> list[PageMessage]:
    """Return a conversation with one message per part, as Gradio shows it best."""
    return [{"role": turn["role"], "content": [part]} for turn in turns for part in turn["content"]]


def up_to_question(history: Sequence[PageMessage], index: int) -> list[PageMessage]:
    """Return the messages up to the question that the message `index` belongs to; its answer is left out."""
    end = min(index, len(history) - 1)
    while end >= 0 and history[end]["role"] == "assistant":
        end -= 1
    while end + 1 < len(history) and history[end + 1]["role"] == "user":
        end += 1
    return list(history[: end + 1])


def paths_of(message: PageMessage) -> list[str]:
    """Return the files of a message."""
    return [part["file"]["path"] for part in message["content"] if part.get("type") == "file"]


def text_of(message: PageMessage) -> str:
    """Return the text of a message."""
    return "\n".join(part["text"] for part in message["content"] if part.get("type") == "text")


async def with_contents(history: Sequence[PageMessage], folders: Sequence[Path]) -> list[Turn]:
    """Return the conversation with the contents of its files in place of their paths.

    Args:
        history: as the page keeps it.
        folders: where files may lie.

    Raises:
        MediaError: a file is elsewhere, gone, or of another kind.
    """
    return [
        {"role": turn["role"], "content": [await _with_content(part, folders) for part in turn["content"]]}
        for turn in in_turns(history)
    ]


async def _with_content(part: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    if part.get("type") != "file":
        return text_part(str(part.get("text", "")))
    path = Path(part["file"]["path"])
    resolved, ending = path.resolve(), path.suffix.lower()
    if not any(resolved.is_relative_to(folder) for folder in folders) or not resolved.is_file():
        raise MediaError("A file of this conversation is not on the server any more. Add it again.")
    if ending not in ENDINGS:
        raise MediaError(f"'{path.name[:80]}' is neither an image nor a video. Known endings: {' '.join(ENDINGS)}.")
    mime_type = mime_type_of(resolved)
    return {
        "type": mime_type.partition("/")[0],
        "url": await asyncio.to_thread(_as_data_uri, resolved, mime_type),
    }


async def read_turns(turns: Sequence[Turn], system_prompt: str, media: MediaDoor, frames: int) -> list[Message]:
    """Return a conversation as the model reads it.

    Args:
        turns: the last one is a question.
        system_prompt: empty for none.
        media: opens the files.
        frames: per video.

    Raises:
        MediaError: a file cannot be opened.
    """
    messages = [Message("system", [system_prompt])] if system_prompt.strip() else []
    for turn in turns:
        content: list[str | Image | Video] = []
        for part in turn["content"]:
            if part["type"] == "text":
                content.append(part["text"])
            elif part["type"] == "video":
                content.append(await media.open_video(part["url"], frames))
            else:
                content.append(await media.open_image(part["url"]))
        messages.append(Message(turn["role"], content))
    return messages


def _as_data_uri(path: Path, mime_type: str) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
