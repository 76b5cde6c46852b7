"""A loaded model, as users see it in a notebook.

Dimensions: T' tokens with media spliced in, D language model width, V vocabulary.
"""

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack, cast

import torch

from vila_core.chat import ChatTemplate, Message
from vila_core.checkpoint import Checkpoint, estimate
from vila_core.checkpoint.description import count, name_checkpoint, name_family
from vila_core.config import VilaConfig
from vila_core.conversation import Prompt
from vila_core.display import html
from vila_core.encoders import ExpandedPrompt
from vila_core.engine.answer import Generated
from vila_core.engine.completion import Completion, OutputPart, Timings, Usage
from vila_core.engine.drawing import Drawn, OutputModes
from vila_core.engine.drawing_settings import DrawingConfig, DrawingSettings, takes_drawing_settings
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import EngineInput, MediaPrompt, TextPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.engine.media import MediaEmbeddings
from vila_core.engine.painting import OnProgress, checked_count, paint, picture_request
from vila_core.engine.request import Handle
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.settings import GenerationSettings, takes_generation_settings
from vila_core.engine.time_tokens import TimeTokenStream
from vila_core.errors import BatchGenerationError, GenerationError, PromptError, VilaError, warn
from vila_core.generation.image_tokenizer import ImageTokenizer, require_codes
from vila_core.generation.pictures import VIDEO_FPS, Codes, preview, to_frames, to_medium
from vila_core.generation.prompts import PicturePrompts, checked_text, require_kind
from vila_core.inspection import Inspection
from vila_core.language.divided import current
from vila_core.media import MediaLimits, Video
from vila_core.model import PromptBatch, VilaModel
from vila_core.prepared_videos import PreparedVideos
from vila_core.prompt import PreparedMedium, PreparedPrompt, prepare
from vila_core.token_counts import require_room, token_counts
from vila_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    import PIL.Image

    from vila_core.towers.rq_siglip.tower import RQSiglipTower

OTHER_NAMES = {
    **dict.fromkeys(("generate_content", "predict", "ask", "query"), "To get an answer, use model.generate(prompt)."),
    **dict.fromkeys(
        ("to", "cuda", "cpu", "half", "float", "bfloat16"),
        "Choose when loading: vila_core.load(…, device='cuda', dtype='bfloat16').",
    ),
    **dict.fromkeys(
        ("eval", "train", "requires_grad_"), "The model is ready for inference; model.network is the module."
    ),
    **dict.fromkeys(
        ("parameters", "named_parameters", "state_dict", "modules", "named_modules", "forward", "num_parameters"),
        "The torch module is model.network.",
    ),
    **dict.fromkeys(("llm", "vision_tower", "mm_projector"), "The parts of the model are in model.network."),
    **dict.fromkeys(("processor", "image_processor"), "Prompts are prepared by model.prepare(prompt)."),
    **dict.fromkeys(("encode", "decode"), "Texts are encoded by model.tokenizer."),
    **dict.fromkeys(("generation_config", "default_generation_config"), "Settings are arguments of model.generate."),
    **dict.fromkeys(
        ("generate_images", "generate_image_content", "draw", "text_to_image"),
        "To draw, use model.generate_image(prompt, n=4).",
    ),
    "from_pretrained": "Models are loaded by vila_core.load('owner/name').",
    "save_pretrained": "Checkpoints are written by the program `vila convert`.",
    "batch_generate": "For several prompts, use model.generate_batch(prompts).",
    "generate_stream": "For an answer piece by piece, use model.stream(prompt).",
    "chat_template": "The template is model.template.",
}
"""Names of other libraries -> what to use instead."""


class Vila:
    """A VILA-family model, ready to answer. Made by `vila_core.load`.

    A prompt is a text, a list of texts and media in order, or a conversation: a list of `Message`s or of dicts such as
    `{"role": "user", "content": …}`. Media are `Image`s, `Video`s, paths, PIL images, arrays, or content parts of
    OpenAI and transformers. Answers are greedy by default.
    """

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

    @takes_generation_settings
    def generate(self, prompt: "Prompt | PreparedPrompt", **settings: Unpack[GenerationSettings]) -> str:
        """Return the text of the answer.

            model.generate(["What is in this picture?", vila_core.Image("cat.png")], max_new_tokens=64)

        Args:
            prompt: a text, a list of texts and media in order, or a conversation.

        Raises:
            PromptError: the prompt is empty, does not fit the template, or is longer than the context.
            MediaError: a medium cannot be read or exceeds the limits.
            GenerationError: a setting is out of range, or a JSON schema cannot be followed.
        """
        return self.complete(prompt, **settings).text

    @takes_generation_settings
    def chat(self, messages: "Prompt | PreparedPrompt", **settings: Unpack[GenerationSettings]) -> str:
        """Return the next answer of a conversation.

            model.chat([{"role": "user", "content": ["What is in this picture?", vila_core.Image("cat.png")]}])

        Args:
            messages: `Message`s, or dicts with "role" and "content" as in OpenAI's and transformers' chats.

        Raises:
            PromptError, MediaError, GenerationError: as `generate` does.
        """
        return self.complete(messages, **settings).text

    @takes_generation_settings
    def generate_batch(
        self, prompts: "Sequence[Prompt | PreparedPrompt]", **settings: Unpack[GenerationSettings]
    ) -> list[str]:
        """Return the answers to several prompts, computed together; each is what `generate` would give.

        Args:
            prompts: a list of prompts, each as for `generate`.

        Raises:
            BatchGenerationError: some prompts failed while they were answered; it holds the other completions.
            PromptError, MediaError, GenerationError: as `generate` does.
        """
        return [completion.text for completion in self.complete_batch(prompts, **settings)]

    @takes_generation_settings
    def complete(self, prompt: "Prompt | PreparedPrompt", **settings: Unpack[GenerationSettings]) -> Completion:
        """Return the answer with its token ids, why it ended, token counts and timings.

        Args:
            prompt: as for `generate`.

        Raises:
            PromptError, MediaError, GenerationError: as `generate` does.
        """
        try:
            return self.complete_batch([prompt], **settings)[0]
        except BatchGenerationError as error:
            raise error.errors[0] from None

    @takes_generation_settings
    def complete_batch(
        self, prompts: "Sequence[Prompt | PreparedPrompt]", **settings: Unpack[GenerationSettings]
    ) -> list[Completion]:
        """Return a completion for each of several prompts, computed together.

        Args:
            prompts: a list of prompts, each as for `generate`.

        Raises:
            BatchGenerationError: some prompts failed while they were answered; it holds the other completions.
            PromptError, MediaError, GenerationError: as `generate` does.
        """
        generation = GenerationConfig.model_validate(settings)
        if isinstance(prompts, str | Mapping):
            raise PromptError("A batch is a list of prompts. For one prompt use generate or complete.")
        prepare = self._prepare_and_encode if len(prompts) == 1 else self.prepare  # several are encoded together
        prepared = [prepare(prompt) for prompt in prompts]
        expanded = [self._expand(prompt) for prompt in prepared]
        inputs = [MediaPrompt(self.network, *one) for one in zip(prepared, expanded, strict=True)]
        answers = self.engine.answer_all(inputs, generation)
        outcomes = [
            answer if isinstance(answer, GenerationError) else self._completion(prompt, room, answer)
            for prompt, room, answer in zip(prepared, expanded, answers, strict=True)
        ]
        completions = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
        if len(completions) < len(outcomes):
            raise BatchGenerationError(outcomes)
        return completions

    @takes_generation_settings
    def complete_each(
        self,
        prompts: "Iterable[Prompt | PreparedPrompt | None]",
        *,
        at_once: int = 16,
        **settings: Unpack[GenerationSettings],
    ) -> Iterator[Completion | VilaError]:
        """Yield the completion of each prompt in order, or the error that it ended with. For many prompts: as soon as
        an answer ends, another prompt joins the others.

        Args:
            prompts: each as for `generate`, taken from the iterable as they are needed. None stands for "none is ready
                yet"; the others are answered meanwhile.
            at_once: how many are answered at the same time.

        Raises:
            GenerationError: a setting is out of range.
        """
        return self._complete_each(prompts, GenerationConfig.model_validate(settings), at_once)

    def _complete_each(
        self, prompts: "Iterable[Prompt | PreparedPrompt | None]", generation: GenerationConfig, at_once: int
    ) -> Iterator[Completion | VilaError]:
        running: deque[_Running | VilaError] = deque()
        try:
            for prompt in prompts:
                if prompt is not None:
                    while sum(not _has_ended(one) for one in running) >= at_once:
                        self.engine.step()
                    running.append(self._start(prompt, generation))
                elif not all(_has_ended(one) for one in running):
                    self.engine.step()
                while running and _has_ended(running[0]):
                    yield self._finish(running.popleft())
            while running:
                yield self._finish(running.popleft())
        finally:
            for one in running:
                if isinstance(one, _Running):
                    one.handle.cancel()

    def _start(self, prompt: "Prompt | PreparedPrompt", generation: GenerationConfig) -> "_Running | VilaError":
        """Put a prompt into the engine's queue; return the error if it cannot be answered."""
        try:
            prepared = self.prepare(prompt)
            expanded = self._expand(prepared)
            handle = self.engine.submit_when_free(MediaPrompt(self.network, prepared, expanded), generation)
            return _Running(prepared, expanded, handle)
        except VilaError as error:
            return error

    def _finish(self, running: "_Running | VilaError") -> Completion | VilaError:
        """Wait for an answer."""
        if isinstance(running, VilaError):
            return running
        try:
            return self._completion(running.prompt, running.expanded, running.handle.result())
        except VilaError as error:
            return error

    @takes_generation_settings
    def stream(self, prompt: "Prompt | PreparedPrompt", **settings: Unpack[GenerationSettings]) -> Iterator[str]:
        """Yield the answer piece by piece.

            for piece in model.stream("Count to ten."): print(piece, end="", flush=True)

        Args:
            prompt: as for `generate`.

        Raises:
            PromptError, MediaError, GenerationError: as `generate` does, and before the first piece, except for a
                `GenerationError` when the model's values stop being finite in the middle of the answer.
        """
        generation = GenerationConfig.model_validate(settings)
        prepared = self._prepare_and_encode(prompt)
        return self._pieces(self.submit(prepared, generation), self.time_token_stream(prepared))

    def submit(self, prompt: "Prompt | PreparedPrompt", config: GenerationConfig) -> Handle:
        """Put a prompt into the engine's queue. For servers, which step the engine themselves.

        Raises:
            PromptError, MediaError, GenerationError: as `generate` does.
            QueueFullError: too many prompts wait already.
        """
        prepared = self._prepare_and_encode(prompt)
        return self.engine.submit(MediaPrompt(self.network, prepared, self._expand(prepared)), config)

    def _pieces(self, handle: Handle, times: TimeTokenStream) -> Iterator[str]:
        for piece in handle:
            if text := times.push(piece.text):
                yield text
        if text := times.finish():
            yield text

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

    @takes_drawing_settings
    def generate_image(
        self,
        prompt: str,
        n: int = 1,
        *,
        progress: OnProgress | None = None,
        **settings: Unpack[DrawingSettings],
    ) -> "list[PIL.Image.Image]":
        """Draw n images.

            model.generate_image("a snowy mountain", n=4, guidance=3.0, seed=0)[0].save("mountain.png")

        Image i of a seed is the same whatever n is, alone or beside other requests.

        Args:
            prompt: what to draw.
            n: how many images, drawn together.
            progress: called with a `DrawingProgress` every few rows; its `preview()` shows the images so far.

        Raises:
            ConfigError: the model has no generation head.
            PromptError: the prompt is no text, is empty, or is longer than the context.
            GenerationError: a setting is out of range, or there is too little memory.
        """
        prompts = [(prompt, number) for number in range(checked_count(n))]
        return [frames[0] for frames in self._draw("image", prompts, progress, settings)]

    @takes_drawing_settings
    def generate_image_batch(
        self, prompts: Sequence[str], *, progress: OnProgress | None = None, **settings: Unpack[DrawingSettings]
    ) -> "list[PIL.Image.Image]":
        """Draw one image for each prompt, together. Each is the same as `generate_image(prompt, seed=…)` draws.

            model.generate_image_batch(["a cat", "a dog"], seed=0)

        Raises:
            ConfigError, PromptError, GenerationError: as `generate_image` does; there are no prompts, or too many.
        """
        checked_count(len(prompts))
        return [frames[0] for frames in self._draw("image", [(one, 0) for one in prompts], progress, settings)]

    @takes_drawing_settings
    def generate_video(
        self,
        prompt: str,
        n: int = 1,
        *,
        progress: OnProgress | None = None,
        **settings: Unpack[DrawingSettings],
    ) -> list[Video]:
        """Draw n videos, of as many frames as the model was trained for. Arguments as for `generate_image`.

            model.generate_video("Fireworks in the air.", seed=0)[0].load().frames

        Raises:
            ConfigError, PromptError, GenerationError: as `generate_image` does.
        """
        prompts = [(prompt, number) for number in range(checked_count(n))]
        return [Video(frames, fps=VIDEO_FPS) for frames in self._draw("video", prompts, progress, settings)]

    def _draw(
        self, kind: str, prompts: Sequence[tuple[str, int]], progress: OnProgress | None, settings: DrawingSettings
    ) -> "list[list[PIL.Image.Image]]":
        """Return the frames of pictures, for each prompt and its number."""
        head = require_kind(self.network.generation_head, kind, self.name)
        config = DrawingConfig.model_validate(settings)
        inputs = {prompt: self.prepare_picture(kind, prompt, config) for prompt, _ in prompts}
        if config.seed is None:
            config = config.model_copy(update={"seed": random.getrandbits(62)})
        self.on_phase(f"Drawing {len(prompts)} {kind}{'s'[: len(prompts) != 1]}")
        numbered = [(inputs[prompt], number) for prompt, number in prompts]
        drawn = paint(self.engine, head, kind, numbered, config, progress, self.device)
        return [self.decode_picture(kind, one.codes) for one in drawn]

    def prepare_picture(self, kind: str, prompt: str, config: DrawingConfig) -> TextPrompt:
        """Return the prompt of a picture, for `submit_picture`. It uses no GPU; a thread can do it.

        Raises:
            ConfigError, PromptError: as `generate_image` does.
        """
        head = require_kind(self.network.generation_head, kind, self.name)
        modes = self._output_modes
        assert modes is not None, "there is a head"
        if config.is_guided and not head.kinds[kind].knows_empty_prompt:
            warn(
                f"The model was not trained to draw {kind}s without a prompt, so guidance={config.guidance:g} may make "
                "them worse. guidance=1 turns it off."
            )
        return TextPrompt(self.network.llm, modes.empty_prompt(kind, checked_text(prompt)))

    def submit_picture(self, prompt: TextPrompt, config: DrawingConfig, number: int) -> Handle:
        """Put picture `number` of a prompt into the engine's queue. For servers, which step the engine themselves.

        Args:
            prompt: made by `prepare_picture`.
            config: with a seed.
            number: pictures of one seed differ; it is i for image i of `generate_image`.

        Raises:
            PromptError, GenerationError: as `generate_image` does.
            QueueFullError: too many prompts wait already.
        """
        return self.engine.submit(prompt, *picture_request(config, number))

    def decode_picture(self, kind: str, codes: Codes) -> "list[PIL.Image.Image]":
        """Return the frames of a picture that the engine has drawn: one of an image."""
        head = require_kind(self.network.generation_head, kind, self.name)
        with current(self.device):
            return to_frames(head, codes, kind, self.device)

    def preview_picture(self, kind: str, codes: Codes) -> "PIL.Image.Image":
        """Return a picture of which the engine has drawn some positions, as it looks now."""
        head = require_kind(self.network.generation_head, kind, self.name)
        with current(self.device):
            return preview(head, codes, kind, self.device)

    @property
    def drawn_kinds(self) -> Mapping[str, int]:
        """What the model draws ("image", "video") -> the id of the token that begins it. Empty for most models."""
        modes = self._output_modes
        return {} if modes is None else {kind: token for token, kind in modes.kinds.items()}

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

    def _parts(self, prompt: PreparedPrompt, answer: Generated) -> tuple[OutputPart, ...]:
        """Return the text of an answer and what was drawn in it, in order."""
        parts: list[OutputPart] = []
        for part in answer.parts:
            if isinstance(part, Drawn):
                parts.append(to_medium(self.decode_picture(part.kind, part.codes), part.kind))
                continue
            times = self.time_token_stream(prompt)
            text = (times.push(part) + times.finish()).strip()
            if text or len(answer.parts) == 1:
                parts.append(text)
        return tuple(parts)

    def _completion(self, prompt: PreparedPrompt, expanded: ExpandedPrompt, answer: Generated) -> Completion:
        return Completion(
            parts=self._parts(prompt, answer),
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason,
            usage=Usage(
                prompt_tokens=len(expanded.ids),
                media_tokens=sum(expanded.media_lengths),
                completion_tokens=len(answer.token_ids),
                cached_tokens=answer.cached_tokens,
                drafted_tokens=answer.drafted_tokens,
                accepted_tokens=answer.accepted_tokens,
            ),
            timings=Timings(prompt.seconds, answer.encode_seconds, answer.prefill_seconds, answer.decode_seconds),
            logprobs=answer.logprobs or None,
        )


@dataclass(frozen=True)
class _Running:
    """A prompt that is being answered."""

    prompt: PreparedPrompt
    expanded: ExpandedPrompt
    handle: Handle


def _has_ended(running: _Running | VilaError) -> bool:
    return isinstance(running, VilaError) or running.handle.has_ended


def _works_beside_the_host(device: torch.device) -> bool:
    return device.type == "cuda"


def _ignore(phase: str) -> None:
    pass


def _encoding_phase(kinds: Sequence[str], tiles: int) -> str:
    """Return what is encoded, such as "Encoding 2 images (14 tiles)", from the kind of each medium."""
    numbers = Counter(kinds)
    media = " and ".join(f"{number} {kind}{'s'[: number != 1]}" for kind, number in numbers.items())
    return f"Encoding {media} ({tiles} tile{'s'[: tiles != 1]})"
