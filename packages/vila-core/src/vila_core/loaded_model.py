"""A loaded model: its parts, its engine, and how its prompts are prepared.

Dimensions: T' tokens with media spliced in, D language model width, V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch

from vila_core.chat import ChatTemplate, Message
from vila_core.checkpoint import Checkpoint, estimate
from vila_core.checkpoint.description import count, name_checkpoint, name_family
from vila_core.config import VilaConfig
from vila_core.conversation import Prompt
from vila_core.display import html
from vila_core.encoders import ExpandedPrompt
from vila_core.engine.drawing import OutputModes
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import EngineInput, MediaPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.engine.media import MediaEmbeddings
from vila_core.engine.time_tokens import TimeTokenStream
from vila_core.generation.image_tokenizer import ImageTokenizer, require_codes
from vila_core.generation.prompts import PicturePrompts
from vila_core.inspection import Inspection
from vila_core.language.divided import current
from vila_core.media import MediaLimits
from vila_core.model import PromptBatch, VilaModel
from vila_core.other_names import OTHER_NAMES
from vila_core.prepared_videos import PreparedVideos
from vila_core.prompt import PreparedMedium, PreparedPrompt, prepare
from vila_core.token_counts import require_room, token_counts
from vila_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vila_core.towers.rq_siglip.tower import RQSiglipTower


class LoadedModel:
    """The parts of a loaded model, and what the answers and pictures of `Vila` are made with."""

    def __init__(
        self,
        network: VilaModel,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        config: VilaConfig,
        limits: MediaLimits,
        checkpoint: Checkpoint | None = None,
        engine: EngineConfig | None = None,
    ):
        self.network = network
        self.tokenizer = tokenizer
        self.template = template
        self.config = config
        self.limits = limits
        self.checkpoint = checkpoint
        self.stop_token_ids = tokenizer.stop_token_ids(template)
        self._engine_config = engine or EngineConfig()
        self._videos = PreparedVideos(self._engine_config.video_cache_bytes)
        self.on_phase: Callable[[str], None] = _ignore
        """Called with what runs now, such as "Encoding 1 image and 1 video (13 tiles)"; programs show it."""

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @cached_property
    def image_tokenizer(self) -> ImageTokenizer:
        """Pictures to codes and back (VILA-U). Raises `ConfigError` for models whose tower makes no codes."""
        require_codes(self.config.vision_tower)
        tower = cast("RQSiglipTower", cast("object", self.network.vision_tower))
        return ImageTokenizer(tower, self.config.pixels, self.config.preprocess)

    @property
    def name(self) -> str:
        """The hub id or folder name of the checkpoint."""
        return "no checkpoint" if self.checkpoint is None else name_checkpoint(self.checkpoint.path)

    def __repr__(self) -> str:
        facts = self._facts()
        method = f", {facts['quantization']}" if "quantization" in facts else ""
        return (
            f"Vila({self.name!r}, {facts['family']}, {facts['parameters']} parameters{method}, "
            f"{facts['dtype']} on {facts['device']}, chat template '{self.template.name}', context {facts['context']})"
        )

    def _repr_html_(self) -> str:
        return html.card(f"Vila: {self.name}", html.facts_table(self._facts()))

    def _facts(self) -> dict[str, str]:
        """Return what `repr` shows besides the name."""
        checkpoint = self.checkpoint
        if checkpoint is None:
            parameters = sum(parameter.numel() for parameter in self.network.parameters())
        else:
            parameters = estimate(checkpoint).parameters
        method = None if checkpoint is None or checkpoint.quantization is None else checkpoint.quantization.method
        return {
            "family": name_family(self.config),
            "parameters": count(parameters),
            **({} if method is None else {"quantization": method}),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "chat template": self.template.name,
            "context": f"{self.config.language_model.max_length:,} tokens",
        }

    if not TYPE_CHECKING:  # otherwise a type checker would accept every name

        def __getattr__(self, name: str) -> object:
            hint = f" {OTHER_NAMES[name]}" if name in OTHER_NAMES else ""
            raise AttributeError(f"'Vila' object has no attribute {name!r}.{hint}", name=name, obj=self)

    @cached_property
    def engine(self) -> Engine:
        """What answers the prompts of all methods, those of other threads too. It is made with the first prompt."""
        modes = self._output_modes
        return Engine(self.network.llm, self.tokenizer, self.stop_token_ids, self._engine_config, self._encode, modes)

    @cached_property
    def _output_modes(self) -> OutputModes | None:
        """What it makes besides text."""
        head = self.network.generation_head
        if head is None:
            return None
        prompts = PicturePrompts(head, self.template, self.tokenizer, self.config.language_model.max_length)
        return OutputModes(head, prompts.start_tokens, prompts.ids)

    @cached_property
    def _media(self) -> MediaEmbeddings:
        return MediaEmbeddings(self.network, self._engine_config.media_cache_bytes)

    def _encode(self, prompts: Sequence[tuple[EngineInput, int, int]], max_tiles: int) -> None:
        """Encode media of prompts for the engine; see `LoadMedia`."""
        inputs = [(prompt, start, end) for prompt, start, end in prompts if isinstance(prompt, MediaPrompt)]
        if missing := [prompt.missing(start) for prompt, start, _ in inputs if prompt.missing(start)]:
            kinds = [kind for parts in missing for _, kind in dict.fromkeys((p.number, p.medium.kind) for p in parts)]
            self.on_phase(_encoding_phase(kinds, sum(len(part.medium.tiles) for parts in missing for part in parts)))
            self._media.load([prompt.missing(start, end) for prompt, start, end in inputs], max_tiles)
        self.on_phase(f"Reading the prompt ({sum(len(prompt) - start for prompt, start, _ in inputs):,} tokens)")

    def time_token_stream(self, prompt: PreparedPrompt) -> TimeTokenStream:
        """Return what turns the time tokens of an answer into seconds of the prompt's last video."""
        return TimeTokenStream.of_video(self.config.time_tokens, prompt.video_duration)

    @torch.inference_mode()
    def inspect(self, prompt: "Prompt | PreparedPrompt", *, num_logits: int = 16) -> Inspection:
        """Return what the model sees of `prompt`, step by step, without generating.

        Args:
            prompt: as for `generate`.
            num_logits: for how many of the last positions to compute scores.
        """
        prepared = self.prepare(prompt)
        expanded = self._expand(prepared)
        if prepared.media:
            kinds = [medium.kind for medium in prepared.media]
            self.on_phase(_encoding_phase(kinds, sum(len(medium.tiles) for medium in prepared.media)))
        with current(self.device):
            embeds = self.network.embed(PromptBatch.of([prepared], [expanded], self.device))  # [T', D]
            self.on_phase(f"Reading the prompt ({len(embeds):,} tokens)")
            hidden = self.network.llm(embeds[None])[0]
            logits = self.network.llm.logits(hidden[-num_logits:])
        return Inspection(
            prompt_text=prepared.text,
            input_ids=prepared.input_ids,
            media=prepared.media,
            pixel_values=torch.cat([medium.tiles.pixels for medium in prepared.media]) if prepared.media else None,
            media_embeddings=[embeds[block.start : block.stop] for one in expanded.blocks for block in one],
            inputs_embeds=embeds,
            last_hidden=hidden,
            logits=logits,
            token_counts=token_counts(prepared, expanded),
            config=self.config,
        )

    def prepare(self, prompt: "Prompt | PreparedPrompt") -> PreparedPrompt:
        """Load and tile the media of `prompt`, render its template and tokenize. It uses no GPU; a thread can do it.

        Every method that takes a prompt also takes a prepared one.
        """
        return self._prepare(prompt, None)

    def _prepare(
        self,
        prompt: "Prompt | PreparedPrompt",
        on_media: Callable[[Sequence[PreparedMedium]], None] | None,
    ) -> PreparedPrompt:
        if isinstance(prompt, PreparedPrompt):
            return prompt
        self.on_phase("Preparing the prompt")
        return prepare(
            prompt, self.config, self.tokenizer, self.template, self.limits, videos=self._videos, on_media=on_media
        )

    def _prepare_and_encode(self, prompt: "Prompt | PreparedPrompt") -> PreparedPrompt:
        """`prepare` a prompt that is answered next. A GPU without other work encodes its picture meanwhile."""

        def begin(media: Sequence[PreparedMedium]) -> None:
            # What fails here is done, and fails, again in the engine's step, which knows which request to end.
            with suppress(Exception):
                self.engine.while_idle(lambda: self._media.begin(media))

        return self._prepare(prompt, begin if _works_beside_the_host(self.device) else None)

    def prepare_untrusted(
        self, conversation: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> PreparedPrompt:
        """Do as `prepare` for messages that strangers wrote, whose parts are strings, `Image`s and `Video`s.

        `prepare` warns when a text names an existing file, for which it looks in the file system; this does not.

        Args:
            conversation: the messages.
            tools: functions that the model may call, in OpenAI's form, for chat templates that list them.
        """
        return prepare(
            (),
            self.config,
            self.tokenizer,
            self.template,
            self.limits,
            videos=self._videos,
            conversation=conversation,
            tools=tools,
        )

    def count_tokens(self, prompt: PreparedPrompt) -> dict[str, int]:
        """Count the tokens of a prompt by part, without encoding anything. Raises `PromptError` as `complete` does."""
        return token_counts(prompt, self._expand(prompt))

    def _expand(self, prompt: PreparedPrompt) -> ExpandedPrompt:
        """Make room for the media. Raises `PromptError` if no room is left in the context."""
        expanded = self.network.expand(prompt)
        require_room(prompt, expanded, self.config.language_model.max_length)
        return expanded


def _works_beside_the_host(device: torch.device) -> bool:
    return device.type == "cuda"


def _ignore(phase: str) -> None:
    pass


def _encoding_phase(kinds: Sequence[str], tiles: int) -> str:
    """Return what is encoded, such as "Encoding 2 images (14 tiles)", from the kind of each medium."""
    numbers = Counter(kinds)
    media = " and ".join(f"{number} {kind}{'s'[: number != 1]}" for kind, number in numbers.items())
    return f"Encoding {media} ({tiles} tile{'s'[: tiles != 1]})"
