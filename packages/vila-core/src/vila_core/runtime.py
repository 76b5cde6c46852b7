"""A loaded model, as users see it in a notebook."""

import itertools
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from typing import TYPE_CHECKING, Unpack

from vila_core.answers import RunningPrompt, answer_each, completion_of
from vila_core.conversation import Prompt
from vila_core.encoders import ExpandedPrompt
from vila_core.engine.answer import Generated
from vila_core.engine.completion import Completion, OutputPart
from vila_core.engine.drawing import Drawn
from vila_core.engine.drawing_settings import DrawingConfig, DrawingSettings, takes_drawing_settings
from vila_core.engine.image_generation import OnProgress, checked_count, draw_pictures, picture_request
from vila_core.engine.inputs import MediaPrompt, TextPrompt
from vila_core.engine.request import Handle
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.settings import GenerationSettings, takes_generation_settings
from vila_core.engine.time_tokens import TimeTokenStream
from vila_core.engine.warming import USUAL, warm_up
from vila_core.errors import BatchGenerationError, GenerationError, PromptError, VilaError, shown, warn
from vila_core.generation.files import VIDEO_FPS
from vila_core.generation.pictures import Codes, preview, to_frames, to_medium
from vila_core.generation.prompts import checked_text, require_kind
from vila_core.language.divided import current
from vila_core.loaded_model import LoadedModel
from vila_core.media import Image, Video
from vila_core.model import TILES_AT_ONCE
from vila_core.prompt import PreparedPrompt
from vila_core.towers.captured import BUCKETS

if TYPE_CHECKING:
    import PIL.Image

WORDS = "A short sentence with some plain words"
"""What `Vila.warm_up` writes."""


class Vila(LoadedModel):
    """A VILA-family model, ready to answer. Made by `vila_core.load`.

    A prompt is a text, a list of texts and media in order, or a conversation: a list of `Message`s or of dicts such as
    `{"role": "user", "content": …}`. Media are `Image`s, `Video`s, paths, PIL images, arrays, or content parts of
    OpenAI and transformers. Answers are greedy by default.
    """

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
        return text_of(self.complete(prompt, **settings))

    @takes_generation_settings
    def chat(self, messages: "Prompt | PreparedPrompt", **settings: Unpack[GenerationSettings]) -> str:
        """Return the next answer of a conversation.

            model.chat([{"role": "user", "content": ["What is in this picture?", vila_core.Image("cat.png")]}])

        Args:
            messages: `Message`s, or dicts with "role" and "content" as in OpenAI's and transformers' chats.

        Raises:
            PromptError, MediaError, GenerationError: as `generate` does.
        """
        return text_of(self.complete(messages, **settings))

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
        return [text_of(completion) for completion in self.complete_batch(prompts, **settings)]

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
        _require_list(prompts, "For one prompt use generate or complete; for an iterator, complete_each.")
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
        generation = GenerationConfig.model_validate(settings)
        return answer_each(prompts, at_once, lambda prompt: self._start(prompt, generation), self.engine.step)

    def _start(self, prompt: "Prompt | PreparedPrompt", generation: GenerationConfig) -> RunningPrompt:
        """Put a prompt into the engine's queue, when there is room."""
        prepared = self.prepare(prompt)
        expanded = self._expand(prepared)
        handle = self.engine.submit_when_free(MediaPrompt(self.network, prepared, expanded), generation)
        return RunningPrompt(handle, lambda: self._completion(prepared, expanded, handle.result()))

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
        num_pictures = 0
        for piece in handle:
            num_pictures += piece.drawn is not None
            if text := times.push(piece.text):
                yield text
        if text := times.finish():
            yield text
        _warn_of_pictures(num_pictures)

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
        return [frames[0] for frames in self._draw("image", [prompt], n, progress, settings)]

    @takes_drawing_settings
    def generate_image_batch(
        self, prompts: Sequence[str], *, progress: OnProgress | None = None, **settings: Unpack[DrawingSettings]
    ) -> "list[PIL.Image.Image]":
        """Draw one image for each prompt, together. Each is the same as `generate_image(prompt, seed=…)` draws.

            model.generate_image_batch(["a cat", "a dog"], seed=0)

        Raises:
            ConfigError, PromptError, GenerationError: as `generate_image` does; there are no prompts, or too many.
        """
        _require_list(prompts, "For one prompt use generate_image.")
        checked_count(len(prompts))
        return [frames[0] for frames in self._draw("image", prompts, 1, progress, settings)]

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
        return [Video(frames, fps=VIDEO_FPS) for frames in self._draw("video", [prompt], n, progress, settings)]

    def _draw(
        self, kind: str, prompts: Sequence[str], n: int, progress: OnProgress | None, settings: DrawingSettings
    ) -> "list[list[PIL.Image.Image]]":
        """Return the frames of n pictures of each prompt."""
        head = require_kind(self.network.generation_head, kind, self.name)
        config = DrawingConfig.model_validate(settings)
        numbers = range(checked_count(n))
        inputs = [self.prepare_picture(kind, prompt, config) for prompt in prompts]
        if config.seed is None:
            config = config.model_copy(update={"seed": random.getrandbits(62)})
        numbered = [(one, number) for one in inputs for number in numbers]
        self.on_phase(f"Drawing {len(numbered)} {kind}{'s'[: len(numbered) != 1]}")
        drawn = draw_pictures(self.engine, head, kind, numbered, config, progress, self.device)
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

    def warm_up(self, configs: Sequence[GenerationConfig] = USUAL) -> None:
        """Do what takes long the first time, so that the first prompts need not wait for it.

        On a GPU, kernels are compiled and CUDA graphs captured for prompts, pictures and batches of all sizes: a minute
        or more where no compiled kernels are stored from an earlier run. On a CPU, short prompts are answered. Nothing
        is left of it in caches and in `engine.stats()`. The engine should have no other prompts meanwhile.

        Args:
            configs: settings that prompts will have: greedy, sampled, with top_p, with penalties or `logit_bias`.
        """
        on_gpu = self.device.type == "cuda"
        warm_up(self.engine, self.network.llm, self.tokenizer.encode(WORDS), configs, all_sizes=on_gpu)
        try:
            with self.engine.uncounted():
                self._warm_up_pictures(all_sizes=on_gpu)
        finally:
            self._media.clear()

    def _warm_up_pictures(self, *, all_sizes: bool) -> None:
        """Look at 1 … 8 pictures of one prompt, then at one of each of many prompts; draw one."""
        together = [(count, 1) for count in BUCKETS] + [(1, min(self.engine.config.max_batch, TILES_AT_ONCE))]
        numbers = itertools.count()  # pictures that are alike are encoded once
        for count, prompts in together if all_sizes else [(1, 1)]:
            asked = [[*(_picture(next(numbers)) for _ in range(count)), WORDS] for _ in range(prompts)]
            with suppress(PromptError, GenerationError):  # a small context or cache has no room for many
                self.generate_batch(asked, max_new_tokens=2, seed=0)
        if "image" in self.drawn_kinds:
            with suppress(PromptError, GenerationError):  # likewise
                self.generate_image(WORDS, seed=0, guidance=self._usual_guidance())

    def _usual_guidance(self) -> float:
        """Return a guidance that pictures can have: it needs two rows, and a model that knows the empty prompt."""
        head = require_kind(self.network.generation_head, "image", self.name)
        return 3.0 if self.engine.config.max_batch > 1 and head.kinds["image"].knows_empty_prompt else 1.0

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
        return completion_of(prompt, expanded, answer, self._parts(prompt, answer))


def text_of(completion: Completion) -> str:
    """Return the text of an answer, with a warning if the model drew something beside it."""
    _warn_of_pictures(sum(not isinstance(part, str) for part in completion.parts))
    return completion.text


def _warn_of_pictures(number: int) -> None:
    if number:
        pictures = "a picture" if number == 1 else f"{number} pictures"
        warn(
            f"The model drew {pictures} in its answer, which its text leaves out. In Python, complete() returns what "
            "it draws as parts; on the command line, --generate image draws to a file."
        )


def _require_list(prompts: object, advice: str) -> None:
    """Raise `PromptError` unless `prompts` have a length and an order."""
    if isinstance(prompts, str | bytes | Mapping | Set) or not isinstance(prompts, Collection):
        raise PromptError(f"A batch is a list of prompts, got {shown(prompts)}. {advice}")


def _picture(number: int) -> Image:
    """Return a picture that is unlike those of other numbers."""
    import PIL.Image  # imported here because it takes a while

    return Image(PIL.Image.new("RGB", (448, 448), (number % 256, number // 256, 200)))
