"""The options of `vila-infer`, one dataclass per panel of the help page."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vila_core.cli.arguments import read_json_schema, read_overrides, read_prompt
from vila_core.cli.options import (
    MODEL,
    OUTPUT,
    Device,
    Dtype,
    LoraPath,
    Offline,
    Revision,
    json_option,
    name_embedded_model,
)
from vila_core.cli.words import split_words
from vila_core.errors import PromptError

if TYPE_CHECKING:
    from vila_core.conversation import Part
    from vila_core.runtime import GenerationSettings, Vila

_prompt = partial(typer.Option, rich_help_panel="Prompt")
_model = partial(typer.Option, rich_help_panel=MODEL)
_media = partial(typer.Option, rich_help_panel="Media")
_answer = partial(typer.Option, rich_help_panel="Answer")
_draw = partial(typer.Option, rich_help_panel="Drawing (--temperature, --top-p, --top-k and --seed apply, too)")
_output = partial(typer.Option, rich_help_panel=OUTPUT)


@dataclass(frozen=True)
class PromptOptions:
    """The question."""

    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MEDIA… TEXT",
            help="Images and videos by name, and the question: a short form of --media and --text.",
            show_default=False,
        ),
    ] = None
    text: Annotated[
        str | None, _prompt("--text", metavar="TEXT", help="The question. '-' reads it from standard input.")
    ] = None
    media: Annotated[
        list[str] | None,
        _prompt(
            "--media",
            metavar="FILE…",
            help="Images, videos, folders of frames or https URLs, in order; they come before the text. "
            "If the kind is not clear from the name, write image:SOURCE or video:SOURCE.",
        ),
    ] = None

    def read(self) -> "list[Part]":
        """Return the prompt: media in order, then the text. Raises `MediaError` and `PromptError` as `read_prompt`."""
        media, text = split_words(self.words or ())
        if text and self.text is not None:
            raise PromptError(f"Got two texts: --text {self.text!r} and {text!r}. Put the question in quotes, once.")
        return read_prompt(text or self.text, [*(self.media or ()), *media])


@dataclass(frozen=True)
class ModelOptions:
    """Which model to load, and how."""

    model_path: Annotated[
        str | None,
        _model("--model-path", "-m", metavar="MODEL", help="Folder or hub id. Default: vila-tiny, the demo model."),
    ] = None
    conv_mode: Annotated[
        str, _model("--conv-mode", "-c", metavar="NAME", help="Chat template; auto uses the checkpoint's own.")
    ] = "auto"
    lora_path: LoraPath = None
    revision: Revision = None
    offline: Offline = False
    device: Device = "auto"
    device_map: Annotated[
        str | None,
        _model(
            "--device-map",
            metavar="NAMES",
            help="auto: as many GPUs as the model needs, by layers; or those to use, such as cuda:0,cuda:1; "
            "tensor, or tensor:cuda:0,cuda:1: GPUs that compute every token together.",
        ),
    ] = None
    dtype: Dtype = "auto"

    @property
    def label(self) -> str:
        """The model's name in messages."""
        return self.model_path or "the embedded model"

    @property
    def _device_map(self) -> str | list[str] | None:
        if self.device_map in (None, "auto") or self.device_map.startswith("tensor"):
            return self.device_map
        return [name.strip() for name in self.device_map.split(",")]

    def load(self, overrides: dict[str, Any], on_phase: Callable[[str], None] | None = None) -> "Vila":
        """Load the model with `overrides` of its preprocessing. Raises whatever `vila_core.load` does.

        Args:
            overrides: fields of `PreprocessConfig`.
            on_phase: called with the progress of loading, such as "Loading NVILA-8B: 3.2 of 16.1 GB".
        """
        import vila_core
        from vila_core.checkpoint.embedded import EMBEDDED_MODEL  # not above: it imports pydantic, which is slow

        def report(done: int, total: int) -> None:
            if on_phase is not None:
                unit, size = ("GB", 1e9) if total >= 1e9 else ("MB", 1e6)
                on_phase(f"Loading {self.label}: {done / size:.1f} of {total / size:.1f} {unit}")

        name_embedded_model(self.model_path)
        return vila_core.load(
            self.model_path or EMBEDDED_MODEL,
            progress=report if on_phase is not None else False,
            device=self.device,
            device_map=self._device_map,
            dtype=self.dtype,
            chat_template=None if self.conv_mode == "auto" else self.conv_mode,
            revision=self.revision,
            offline=self.offline,
            lora=self.lora_path,
            **overrides,
        )


@dataclass(frozen=True)
class MediaOptions:
    """How images and videos are preprocessed."""

    num_video_frames: Annotated[
        int, _media("--num-video-frames", "-nf", help="Frames per video; -1: the model's default.")
    ] = -1
    video_max_tiles: Annotated[
        int, _media("--video-max-tiles", "-vm", help="Tiles per video frame; -1: the model's default.")
    ] = -1
    override: Annotated[
        list[str] | None,
        _media("--set", metavar="NAME=VALUE", help="Any other preprocessing setting, such as max_tiles=6."),
    ] = None

    def overrides(self) -> dict[str, Any]:
        """Return the preprocessing settings to change. Raises `ConfigError` for a malformed `--set`."""
        return read_overrides(
            self.override or (), num_video_frames=self.num_video_frames, video_max_tiles=self.video_max_tiles
        )


@dataclass(frozen=True)
class AnswerOptions:
    """How the answer is generated."""

    max_new_tokens: Annotated[int, _answer("--max-new-tokens", help="Maximum length of the answer, in tokens.")] = 512
    temperature: Annotated[float, _answer(help="0 is greedy.")] = 0.0
    top_p: Annotated[float, _answer("--top-p", help="Nucleus sampling.")] = 1.0
    top_k: Annotated[int, _answer("--top-k", help="0 is off.")] = 0
    repetition_penalty: Annotated[float, _answer("--repetition-penalty", help="1 is off.")] = 1.0
    presence_penalty: Annotated[float, _answer("--presence-penalty", help="-2 to 2; 0 is off.")] = 0.0
    frequency_penalty: Annotated[float, _answer("--frequency-penalty", help="-2 to 2; 0 is off.")] = 0.0
    seed: Annotated[int | None, _answer(help="Makes sampling repeatable.")] = None
    prompt_lookup_num_tokens: Annotated[
        int, _answer("--prompt-lookup", metavar="TOKENS", help="Draft so many tokens from the prompt; 0 is off.")
    ] = 0
    stop: Annotated[
        list[str] | None, _answer("--stop", metavar="TEXT…", help="End the answer before any of these texts.")
    ] = None
    json_mode: Annotated[bool, _answer("--json-mode", metavar="", help="The answer is JSON.")] = False
    json_schema: Annotated[
        Path | None, _answer("--json-schema", metavar="FILE", help="The answer is JSON that follows this schema.")
    ] = None

    def settings(self) -> "GenerationSettings":
        """Return the validated settings. Raises `GenerationError` for values out of range and unreadable schemas."""
        from vila_core.engine.sampling import GenerationConfig

        settings: GenerationSettings = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "prompt_lookup_num_tokens": self.prompt_lookup_num_tokens,
            "stop": tuple(self.stop or ()),
            "json_mode": self.json_mode,
            "json_schema": read_json_schema(self.json_schema) if self.json_schema else None,
        }
        GenerationConfig.model_validate(settings)
        return settings


class Drawn(StrEnum):
    """What `--generate` draws."""

    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True)
class DrawOptions:
    """What is drawn instead of an answer."""

    generate: Annotated[Drawn | None, _draw("--generate", help="Draw the text instead of answering it.")] = None
    out: Annotated[
        Path | None,
        _draw("--out", "-o", metavar="FILE", help="Output: .png, .jpg or .webp; of a video .mp4, .webp or .gif."),
    ] = None
    count: Annotated[int, _draw("--count", "-n", help="How many to draw; the files are numbered.")] = 1
    guidance: Annotated[
        float, _draw("--guidance", help="How strictly the text is followed; 1 is off, and twice as fast.")
    ] = 3.0
    negative_prompt: Annotated[str, _draw("--negative-prompt", metavar="TEXT", help="What not to show.")] = ""
    preview: Annotated[
        Path | None, _draw("--preview", metavar="PNG", help="Write what has been drawn so far, every few rows.")
    ] = None


@dataclass(frozen=True)
class OutputOptions:
    """How the answer is printed."""

    as_json: Annotated[bool, json_option("Print text, token counts and timings as JSON.")] = False
    stream: Annotated[
        bool | None,
        _output(
            "--stream/--no-stream",
            metavar="",
            help="Print the answer while it is generated. Default: on a terminal.",
        ),
    ] = None
    explain: Annotated[
        Path | None,
        _output(
            metavar="[PNG]",
            help="Show what the model sees: prompt, token budget, and a PNG of the tiles (vila-explain.png).",
        ),
    ] = None
