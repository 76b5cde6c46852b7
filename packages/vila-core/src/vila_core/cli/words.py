"""Words of a command line: names that other programs use for our options, and which words are media, which text."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vila_core.errors import ConfigError

ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("--model", "--model-id", "--checkpoint", "--ckpt", "--pretrained"), "--model-path"),
    **dict.fromkeys(("--prompt", "--question", "--query", "--message", "--instruction"), "--text"),
    **dict.fromkeys(("--file", "--files", "--input", "--path"), "--media"),
    **dict.fromkeys(("--max-tokens", "--max-length", "--max-completion-tokens", "--num-tokens"), "--max-new-tokens"),
    **dict.fromkeys(("--chat-template", "--template", "--conv-template"), "--conv-mode"),
    **dict.fromkeys(("--lora", "--adapter", "--adapter-path"), "--lora-path"),
    **dict.fromkeys(("--num-frames", "--nframes", "--frames", "--max-frames"), "--num-video-frames"),
    **dict.fromkeys(("--torch-dtype", "--precision"), "--dtype"),
    **dict.fromkeys(("--cfg", "--cfg-scale", "--guidance-scale"), "--guidance"),
    **dict.fromkeys(("--generation-nums", "--num-images", "--num-images-per-prompt"), "--count"),
    **dict.fromkeys(("--output", "--save-path"), "--out"),
    "--local-files-only": "--offline",
    "--schema": "--json-schema",
    "--top-probability": "--top-p",
}
"""Names of other programs -> ours. They work, but `--help` does not list them."""

MARKED: Mapping[str, str] = {
    **dict.fromkeys(("--image", "--images", "--image-file", "--image-path", "--img", "--picture"), "image"),
    **dict.fromkeys(("--video", "--videos", "--video-file", "--video-path"), "video"),
}
"""Options of other programs whose values are media of a kind -> the prefix that `--media` takes for that kind."""

INSTEAD: Mapping[str, str] = {
    "--do-sample": "Sampling is on when --temperature is above 0.",
    "--greedy": "Leave it out: answers are greedy unless --temperature is above 0.",
    **dict.fromkeys(("--num-beams", "--best-of"), "Beam search is not available: leave it out."),
    **dict.fromkeys(
        ("--load-4bit", "--load-8bit", "--load-in-4bit", "--load-in-8bit", "--quant-path", "--quant-llm"),
        "Quantize once with `vila-quant awq MODEL OUT`, then use -m OUT.",
    ),
    "--cache-dir": "Set the environment variable HF_HOME instead.",
    "--trust-remote-code": "Leave it out: the code of a checkpoint is never run.",
    "--model-base": "Leave it out; for a LoRA adapter use -m BASE --lora-path ADAPTER.",
    **dict.fromkeys(("--max-tiles", "--min-tiles", "--fps"), "Use --set NAME=VALUE, such as --set max_tiles=6."),
    **dict.fromkeys(("--system", "--system-prompt"), "Put it in --text; in Python, use a Message('system', …)."),
}
"""Options of other programs that have no equal here -> what to do."""


FILE_NAME = re.compile(r"\S*\.[A-Za-z][A-Za-z0-9]{1,3}")
"""A word that is rather a misspelled file name than a question."""
OPTION_NAME = re.compile(r"--[a-z]+(_[a-z]+)+")


def with_dashes(word: str) -> str:
    """Return an option that is spelled with underscores, as in VILA, with dashes: `--num_video_frames=8`."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if OPTION_NAME.fullmatch(name) else word


def with_known_names(arguments: Sequence[str]) -> Iterator[str]:
    """Yield `arguments` with names of other programs replaced by ours. `--image a b` becomes `--media image:a image:b`.

    Raises:
        ConfigError: an option has no equal here; the message says what to do.
    """
    kind = ""  # of the media whose values follow
    for word in map(with_dashes, arguments):
        name, equals, value = word.partition("=")
        if name in INSTEAD:
            raise ConfigError(f"Unknown option '{name}'. {INSTEAD[name]}")
        if word.startswith("-"):
            kind = MARKED.get(name, "")
        if kind and word.startswith("-"):
            yield f"--media={kind}:{value}" if equals else "--media"
        elif kind and not is_text(word):
            yield f"{kind}:{word}"
        else:
            yield ALIASES.get(name, name) + equals + value


def is_text(word: str) -> bool:
    """Return whether a word with spaces is a question rather than the name of a file."""
    return any(character.isspace() for character in word.strip()) and not is_medium(word)


def is_medium(word: str) -> bool:
    """Return whether a word names media: a URL, a file, a folder with pictures, or the name of a picture or video."""
    from vila_core.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
    from vila_core.media.sources import is_data_uri, is_url

    kind, colon, rest = word.partition(":")
    name = rest if colon and kind in ("image", "video") else word
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    if name is not word or is_data_uri(name) or (is_url(name) and " " not in name):
        return True
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return any(entry.name.lower().endswith(suffixes) for entry in os.scandir(path))
        return path.is_file() or (name.lower().endswith(suffixes) and " " not in name.strip())
    except (OSError, ValueError, RuntimeError):  # an impossible name, or ~ of an unknown user
        return False


def split_words(words: Sequence[str]) -> tuple[list[str], str]:
    """Return the media among `words`, and the other words as one text."""
    media = [word for word in words if is_medium(word) or FILE_NAME.fullmatch(word)]
    return media, " ".join(word for word in words if word not in media)
