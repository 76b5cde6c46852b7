"""A loaded model, as users see it in a notebook.

Dimensions: T' tokens with media spliced in, D language model width, V vocabulary.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from vila_core.chat import ChatTemplate, Message
from vila_core.checkpoint import Checkpoint
from vila_core.config import VilaConfig
from vila_core.encoders import ExpandedPrompt
from vila_core.engine.completion import Completion, Timings, Usage
from vila_core.engine.generate import Generated, generate_each, stream
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.time_tokens import TimeTokenStream
from vila_core.errors import BatchGenerationError, GenerationError, PromptError
from vila_core.media import MediaLimits
from vila_core.model import PromptBatch, VilaModel
from vila_core.prompt import PreparedMedium, PreparedPrompt, Prompt, prepare
from vila_core.tokenizer import Tokenizer


class GenerationSettings(TypedDict, total=False):
    """The keyword arguments of `generate` and related methods: the fields of `GenerationConfig`."""

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
        prompt_text: the rendered template, with media tokens in place of media.
        input_ids: its token ids.
        media: the images and videos in prompt order, with their tiles.
        pixel_values: the tiles of all media, `[N, 3, H, W]` float32; None without media.
        media_embeddings: one block `[T_i, D]` per media token, in order, with the texts around it.
        inputs_embeds: the sequence that the language model reads, `[T', D]`.
        last_hidden: the language model's hidden states after the final norm, `[T', D]`.
        logits: the scores of the last positions, `[min(T', num_logits), V]`.
        token_counts: tokens of the sequence by part, in prompt order: "text", "image 1", …, "video 1", ….
    """

    prompt_text: str
    input_ids: list[int]
    media: list[PreparedMedium]
    pixel_values: Tensor | None
    media_embeddings: list[Tensor]
    inputs_embeds: Tensor
    last_hidden: Tensor
    logits: Tensor
    token_counts: dict[str, int]


@dataclass(frozen=True)
class _Embedded:
    """A prompt as the sequence `[T', D]` that the language model reads."""

    prompt: PreparedPrompt
    expanded: ExpandedPrompt
    embeds: Tensor
    seconds: float  # an equal share of what was encoded together

    @property
    def usage(self) -> Usage:
        media_tokens = sum(self.expanded.media_lengths)
        return Usage(prompt_tokens=len(self.embeds), media_tokens=media_tokens, completion_tokens=0)


class Vila:
    """A VILA-family model, ready to answer. Made by `vila_core.load`.

    A prompt is a text, a list of strings and media in order, or a list of `Message`s (a conversation).
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
        try:
            return self.complete_batch([prompt], **settings)[0]
        except BatchGenerationError as error:
            raise error.errors[0] from None

    @torch.inference_mode()
    def complete_batch(
        self, prompts: Sequence[Prompt | PreparedPrompt], **settings: Unpack[GenerationSettings]
    ) -> list[Completion]:
        """Return a completion for each of several prompts, computed together.

        Raises:
            BatchGenerationError: some prompts failed while they were answered; it holds the other completions.
        """
        generation = GenerationConfig.model_validate(settings)
        embedded = self._embed([self.prepare(prompt) for prompt in prompts])
        if not embedded:
            return []
        sequences = [one.embeds for one in embedded]
        answers = generate_each(self.network.llm, sequences, generation, self.tokenizer, self.stop_token_ids)
        outcomes = [
            answer if isinstance(answer, GenerationError) else self._completion(one, answer)
            for one, answer in zip(embedded, answers, strict=True)
        ]
        completions = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
        if len(completions) < len(outcomes):
            raise BatchGenerationError(outcomes)
        return completions

    def stream(self, prompt: Prompt | PreparedPrompt, **settings: Unpack[GenerationSettings]) -> Iterator[str]:
        """Yield the answer piece by piece.

        Errors are raised before the first piece, except for a `GenerationError` when the model's values stop being
        finite in the middle of the answer.
        """
        generation = GenerationConfig.model_validate(settings)
        with torch.inference_mode():
            (embedded,) = self._embed([self.prepare(prompt)])
        return self._pieces(embedded, generation)

    def _pieces(self, embedded: _Embedded, generation: GenerationConfig) -> Iterator[str]:
        times = self._time_token_stream(embedded.prompt)
        pieces = stream(self.network.llm, embedded.embeds, generation, self.tokenizer, self.stop_token_ids)
        while True:
            with torch.inference_mode():  # not held while the caller runs
                piece = next(pieces, None)
            text = times.finish() if piece is None else times.push(piece.text)
            if text:
                yield text
            if piece is None:
                return

    def _time_token_stream(self, prompt: PreparedPrompt) -> TimeTokenStream:
        """Return what turns the time tokens of an answer into seconds of the prompt's last video."""
        times, seconds = self.config.time_tokens, prompt.video_duration
        if times is None or seconds is None:
            return TimeTokenStream(duration=0.0, num_time_tokens=0, time_token_format="")
        return TimeTokenStream(duration=seconds, num_time_tokens=times.count, time_token_format=times.format)

    @torch.inference_mode()
    def inspect(self, prompt: Prompt | PreparedPrompt, *, num_logits: int = 16) -> Inspection:
        """Return what the model sees of `prompt`, step by step, without generating.

        Args:
            prompt: as for `generate`.
            num_logits: for how many of the last positions to compute scores.
        """
        (embedded,) = self._embed([self.prepare(prompt)])
        hidden = self.network.llm(embedded.embeds[None])[0]
        prepared, expanded = embedded.prompt, embedded.expanded
        return Inspection(
            prompt_text=prepared.text,
            input_ids=prepared.input_ids,
            media=prepared.media,
            pixel_values=torch.cat([medium.tiles.pixels for medium in prepared.media]) if prepared.media else None,
            media_embeddings=[embedded.embeds[block.start : block.stop] for one in expanded.blocks for block in one],
            inputs_embeds=embedded.embeds,
            last_hidden=hidden,
            logits=self.network.llm.logits(hidden[-num_logits:]),
            token_counts=_token_counts(prepared, expanded),
        )

    def prepare(self, prompt: Prompt | PreparedPrompt) -> PreparedPrompt:
        """Load and tile the media of `prompt`, render its template and tokenize. It uses no GPU; a thread can do it.

        Every method that takes a prompt also takes a prepared one.
        """
        if isinstance(prompt, PreparedPrompt):
            return prompt
        return prepare(prompt, self.config, self.tokenizer, self.template, self.limits)

    def count_tokens(self, prompt: PreparedPrompt) -> dict[str, int]:
        """Count the tokens of a prompt by part, without encoding anything. Raises `PromptError` as `complete` does."""
        return _token_counts(prompt, self._expand(prompt))

    def _embed(self, prompts: Sequence[PreparedPrompt]) -> list[_Embedded]:
        """Embed prompts together."""
        started = time.perf_counter()
        expanded = [self._expand(prompt) for prompt in prompts]
        if not prompts:
            return []
        batch = PromptBatch.of(prompts, expanded, self.device)
        embeds = self.network.embed(batch).split(list(batch.lengths))
        seconds = (time.perf_counter() - started) / len(prompts)
        return [_Embedded(*one, seconds) for one in zip(prompts, expanded, embeds, strict=True)]

    def _expand(self, prompt: PreparedPrompt) -> ExpandedPrompt:
        """Make room for the media. Raises `PromptError` if no room is left in the context."""
        expanded = self.network.expand(prompt)
        context, needed = self.config.language_model.max_length, len(expanded.ids)
        if needed < context:
            return expanded
        counts = _token_counts(prompt, expanded)
        parts = ", ".join(f"{part}: {count}" for part, count in counts.items())
        kinds = {medium.kind for medium in prompt.media}
        reduce = "num_video_frames" if "video" in kinds else "max_tiles" if kinds else "the text"
        raise PromptError(
            f"The prompt has {needed} tokens ({parts}), but the context is {context}, and the answer needs room. "
            f"Reduce {reduce}."
        )

    def _completion(self, embedded: _Embedded, answer: Generated) -> Completion:
        times = self._time_token_stream(embedded.prompt)
        text = times.push(answer.text) + times.finish()
        return Completion(
            parts=(text.strip(),),
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason,
            usage=replace(embedded.usage, completion_tokens=len(answer.token_ids)),
            timings=Timings(embedded.prompt.seconds, embedded.seconds, answer.prefill_seconds, answer.decode_seconds),
        )


def _token_counts(prompt: PreparedPrompt, expanded: ExpandedPrompt) -> dict[str, int]:
    """Return the tokens of each part, media numbered by kind."""
    lengths = expanded.media_lengths
    counts = {"text": len(expanded.ids) - sum(lengths)}
    numbers = Counter[str]()
    for medium, length in zip(prompt.media, lengths, strict=True):
        numbers[medium.kind] += 1
        counts[f"{medium.kind} {numbers[medium.kind]}"] = length
    return counts
