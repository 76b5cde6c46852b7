"""A loaded model: the notebook's face.

Dimensions: T' tokens with media spliced in, D language model width, V vocabulary.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from vila_core.chat import ChatTemplate, Message
from vila_core.checkpoint import Checkpoint
from vila_core.config import VilaConfig
from vila_core.engine.completion import Completion, Timings, Usage
from vila_core.engine.generate import Generated, generate, stream
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.time_tokens import TimeTokenStream
from vila_core.errors import PromptError
from vila_core.media import MediaLimits
from vila_core.model import TILES_AT_ONCE, VilaModel
from vila_core.preprocess import Tiles
from vila_core.prompt import PreparedPrompt, Prompt, prepare
from vila_core.tokenizer import Tokenizer


class GenerationSettings(TypedDict, total=False):
    """The keyword arguments of `generate` and its kin: the fields of `GenerationConfig`."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    json_mode: bool
    json_schema: str | dict[str, Any] | None


@dataclass(frozen=True)
class Inspection:
    """What the model saw of one prompt, step by step.

    Attributes:
        prompt_text: the rendered template, media as their tokens.
        input_ids: its token ids.
        pixel_values: all tiles, images first and then videos, `[N, 3, H, W]` float32; None without media.
        tiles: per image, then per video, its tiles and their grid.
        block_sizes: per image the (rows, columns) that dynamic S2 merges, or None.
        media_embeddings: per media token, in order (images first), its block `[T_i, D]`, start and end tokens included.
        inputs_embeds: the spliced sequence `[T', D]`.
        last_hidden: the language model's hidden states after the final norm `[T', D]`.
        logits: the scores of the last positions `[min(T', num_logits), V]`.
        token_counts: tokens of the sequence by part: "text", "image 1", …, "video 1", ….
    """

    prompt_text: str
    input_ids: list[int]
    pixel_values: Tensor | None
    tiles: list[Tiles]
    block_sizes: list[tuple[int, int] | None]
    media_embeddings: list[Tensor]
    inputs_embeds: Tensor
    last_hidden: Tensor
    logits: Tensor
    token_counts: dict[str, int]


@dataclass(frozen=True)
class _Embedded:
    """A prompt as the sequence that the language model reads."""

    prompt: PreparedPrompt
    blocks: list[Tensor]
    embeds: Tensor
    token_counts: dict[str, int]
    seconds: float = 0.0  # an equal share of what was encoded together

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.embeds), media_tokens=sum(len(block) for block in self.blocks), completion_tokens=0
        )


class Vila:
    """A VILA-family model, ready to answer. Made by `vila_core.load`.

    A prompt is a text, a list of strings and media in order, or a list of `Message`s (a conversation, its history kept).
    Settings are those of `GenerationConfig`; the default is greedy.
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
    ):
        self.network = network
        self.tokenizer = tokenizer
        self.template = template
        self.config = config
        self.limits = limits
        self.checkpoint = checkpoint
        self.stop_token_ids = tokenizer.stop_token_ids(template)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def generate(self, prompt: Prompt | PreparedPrompt, **settings: Unpack[GenerationSettings]) -> str:
        """Return the answer's text."""
        return self.complete(prompt, **settings).text

    def chat(self, messages: Sequence[Message], **settings: Unpack[GenerationSettings]) -> str:
        """Return the next answer of a conversation."""
        return self.complete(messages, **settings).text

    def generate_batch(
        self, prompts: Sequence[Prompt | PreparedPrompt], **settings: Unpack[GenerationSettings]
    ) -> list[str]:
        """Return the answers to several prompts, computed together; each is what `generate` would give."""
        return [completion.text for completion in self.complete_batch(prompts, **settings)]

    def complete(self, prompt: Prompt | PreparedPrompt, **settings: Unpack[GenerationSettings]) -> Completion:
        """Return the answer with its token ids, why it ended, token counts and timings.

        Raises:
            PromptError: the prompt is empty, does not fit the template, or is longer than the context.
            MediaError: a medium cannot be read or exceeds the limits.
            GenerationError: a setting is out of range, or a JSON schema cannot be followed.
        """
        return self.complete_batch([prompt], **settings)[0]

    @torch.inference_mode()
    def complete_batch(
        self, prompts: Sequence[Prompt | PreparedPrompt], **settings: Unpack[GenerationSettings]
    ) -> list[Completion]:
        """Return a completion for each of several prompts, computed together."""
        generation = GenerationConfig.model_validate(settings)
        embedded = self._embed([self.prepare(prompt) for prompt in prompts])
        if not embedded:
            return []
        sequences = [one.embeds for one in embedded]
        answers = generate(self.network.llm, sequences, generation, self.tokenizer, self.stop_token_ids)
        return [self._completion(one, answer) for one, answer in zip(embedded, answers, strict=True)]

    def stream(self, prompt: Prompt | PreparedPrompt, **settings: Unpack[GenerationSettings]) -> Iterator[str]:
        """Yield the answer piece by piece. Errors are raised before the first piece."""
        generation = GenerationConfig.model_validate(settings)
        with torch.inference_mode():
            (embedded,) = self._embed([self.prepare(prompt)])
        return self._pieces(embedded, generation)

    def _pieces(self, embedded: _Embedded, generation: GenerationConfig) -> Iterator[str]:
        times = self._time_token_stream(embedded.prompt)
        pieces = stream(self.network.llm, embedded.embeds, generation, self.tokenizer, self.stop_token_ids)
        while True:
            with torch.inference_mode():  # not held while the caller has the word
                piece = next(pieces, None)
            text = times.finish() if piece is None else times.push(piece.text)
            if text:
                yield text
            if piece is None:
                return

    def _time_token_stream(self, prompt: PreparedPrompt) -> TimeTokenStream:
        """Return what turns the time tokens of an answer into seconds of the prompt's last video."""
        times, seconds = self.config.time_tokens, prompt.durations[-1] if prompt.durations else None
        if times is None or seconds is None:
            return TimeTokenStream(duration=0.0, num_time_tokens=0, time_token_format="")
        return TimeTokenStream(duration=seconds, num_time_tokens=times.count, time_token_format=times.format)

    @torch.inference_mode()
    def inspect(self, prompt: Prompt | PreparedPrompt, *, num_logits: int = 16) -> Inspection:
        """Return what the model sees of `prompt`, step by step, without generating.

        Args:
            prompt: as for `generate`.
            num_logits: of how many last positions to compute the scores.
        """
        (embedded,) = self._embed([self.prepare(prompt)])
        hidden = self.network.llm(embedded.embeds[None])[0]
        prepared = embedded.prompt
        tiles = [*prepared.images, *prepared.videos]
        return Inspection(
            prompt_text=prepared.text,
            input_ids=prepared.input_ids,
            pixel_values=torch.cat([medium.pixels for medium in tiles]) if tiles else None,
            tiles=tiles,
            block_sizes=[image.block_size for image in prepared.images],
            media_embeddings=embedded.blocks,
            inputs_embeds=embedded.embeds,
            last_hidden=hidden,
            logits=self.network.llm.logits(hidden[-num_logits:]),
            token_counts=embedded.token_counts,
        )

    def prepare(self, prompt: Prompt | PreparedPrompt) -> PreparedPrompt:
        """Load and tile the media of `prompt`, render its template and tokenize. Needs no GPU; another thread may do it ahead.

        Every method that takes a prompt takes a prepared one too.
        """
        if isinstance(prompt, PreparedPrompt):
            return prompt
        return prepare(prompt, self.config, self.tokenizer, self.template, self.limits)

    def _embed(self, prompts: Sequence[PreparedPrompt]) -> list[_Embedded]:
        """Embed prompts; the media of neighbours pass the tower together, as far as its memory is bounded."""
        together: list[list[PreparedPrompt]] = []
        tiles = 0
        for prompt in prompts:
            own = sum(len(medium.pixels) for medium in (*prompt.images, *prompt.videos))
            if not together or tiles + own > TILES_AT_ONCE:
                together.append([])
                tiles = 0
            together[-1].append(prompt)
            tiles += own
        return [embedded for neighbours in together for embedded in self._embed_together(neighbours)]

    def _embed_together(self, prompts: Sequence[PreparedPrompt]) -> list[_Embedded]:
        started = time.perf_counter()
        network = self.network
        counts = [self.count_tokens(prompt) for prompt in prompts]
        images = iter(network.image_blocks([image for prompt in prompts for image in prompt.images]))
        videos = iter(network.video_blocks([video for prompt in prompts for video in prompt.videos]))
        embedded: list[_Embedded] = []
        for prompt, of_prompt in zip(prompts, counts, strict=True):
            of_images = list(
                islice(images, sum(len(image.pixels) if image.is_separate else 1 for image in prompt.images))
            )
            of_videos = list(islice(videos, len(prompt.videos)))
            input_ids = torch.tensor(prompt.input_ids, device=self.device)
            text = network.llm.embed(input_ids[None])[0]
            embeds = network.splice(input_ids, text, {"image": of_images, "video": of_videos})
            embedded.append(_Embedded(prompt, [*of_images, *of_videos], embeds, of_prompt))
        seconds = (time.perf_counter() - started) / len(prompts)
        return [replace(one, seconds=seconds) for one in embedded]

    def count_tokens(self, prompt: PreparedPrompt) -> dict[str, int]:
        """Count the tokens of a prompt by part; nothing is encoded. Raises `PromptError` where they leave no room in the context."""
        of_images, of_videos = self.network.block_lengths(prompt.images, prompt.videos)
        counts = {"text": sum(token not in self.network.media_token_ids.values() for token in prompt.input_ids)}
        counts |= {f"image {number}": sum(lengths) for number, lengths in enumerate(of_images, 1)}
        counts |= {f"video {number}": length for number, length in enumerate(of_videos, 1)}
        context, needed = self.config.language_model.max_length, sum(counts.values())
        if needed < context:
            return counts
        parts = ", ".join(f"{part}: {count}" for part, count in counts.items())
        reduce = (
            "num_video_frames"
            if any(part.startswith("video") for part in counts)
            else "max_tiles"
            if len(counts) > 1
            else "the text"
        )
        raise PromptError(
            f"The prompt has {needed} tokens ({parts}), but the context is {context}, and the answer needs room. Reduce {reduce}."
        )

    def _completion(self, embedded: _Embedded, answer: Generated) -> Completion:
        times = self._time_token_stream(embedded.prompt)
        text = times.push(answer.text) + times.finish()
        return Completion(
            text=text.strip(),
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason,
            usage=replace(embedded.usage, completion_tokens=len(answer.token_ids)),
            timings=Timings(embedded.prompt.seconds, embedded.seconds, answer.prefill_seconds, answer.decode_seconds),
        )
