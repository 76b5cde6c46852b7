"""Held-out prompts, on which a quantized model is compared with its original. Calibration never uses them.

P positions of a picture, D codes of a position
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count, islice
from typing import Literal

import torch
from torch import Tensor

from vila_core.chat import Message
from vila_core.generation.heads import TrainableHead
from vila_core.prompt import PreparedPrompt, prepare
from vila_core.runtime import Vila
from vila_quant.calibration.drawings import prepare_drawing, reads_what_it_draws, with_drawings
from vila_quant.calibration.pictures import draw_sample
from vila_quant.calibration.sample import Sample
from vila_quant.calibration.samples import WINDOW, read_samples, resolve_source
from vila_quant.errors import QuantizationError

SEED = 1_000_003
"""Seed for generated samples: far from the seeds of calibrations."""


PromptKind = Literal["text", "multimodal", "drawing"]


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt as ids and media, of which the last `scored` positions are compared.

    These are the answer, if there is one; otherwise all of a text except its first token, or all after the last medium;
    or those of a picture that is drawn, whose `codes` are `[scored, D]`.
    """

    prepared: PreparedPrompt
    scored: int
    kind: PromptKind
    codes: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """The tokens or codes that are compared, int64 `[scored]` or `[scored · D]`."""
        if self.codes is not None:
            return self.codes.flatten()
        return torch.tensor(self.prepared.input_ids[-self.scored :])


def read_prompts(model: Vila, source: str, number: int) -> list[HeldOutPrompt]:
    """Return up to `number` prompts, prepared for `model`.

    Args:
        model: provides tokenizer, template and preprocessing.
        source: as for calibration; "auto" and "builtin" are texts and images that no calibration contains.
        number: number of prompts; a file may have fewer.

    Raises:
        QuantizationError: unknown source, or none of its prompts has two tokens of text.
        PromptError, MediaError: a prompt cannot be prepared.
    """
    name = resolve_source(source, model.config.language_model.vocab_size)
    samples = _builtin() if name == "builtin" else read_samples(name, SEED, picture_share=0.5)
    if reads_what_it_draws(model.config):
        samples = with_drawings(samples)
    prompts = [_prepare(model, sample) for sample in islice(samples, number)]
    found = [prompt for prompt in prompts if prompt.scored > 0]
    if not found:
        raise QuantizationError(
            f"'{source}' has no prompt to compare on. Choose prompts with at least two tokens of text."
        )
    return found


def _builtin() -> Iterator[Sample]:
    """Yield texts and images alternately, and only images once the text is used up."""
    documents = (files("vila_quant") / "assets" / "held_out.txt").read_text(encoding="utf-8").split("\f")
    texts = [document[start : start + WINDOW] for document in documents for start in range(0, len(document), WINDOW)]
    random.Random(SEED).shuffle(texts)
    for number in count():
        if number < len(texts):
            yield Sample((texts[number],), is_text=True)
        yield draw_sample(number, SEED, documents[0])


def _prepare(model: Vila, sample: Sample) -> HeldOutPrompt:
    if sample.is_text:
        (text,) = sample.prompt
        assert isinstance(text, str), "running text"
        ids = model.tokenizer.encode(text)[: model.config.language_model.max_length]
        return HeldOutPrompt(PreparedPrompt(text, ids), len(ids) - 1, "text")
    if sample.drawing is not None:
        return _prepare_drawing(model, sample)
    asked = model.prepare([Message("user", sample.prompt)])
    media = list(model.tokenizer.media_token_ids.values())
    places = [place for place, token in enumerate(asked.input_ids) if token in media]
    kind = "multimodal" if places else "text"
    if not sample.answer:
        return HeldOutPrompt(asked, len(asked.input_ids) - 1 - (places[-1] if places else 0), kind)
    messages = [Message("user", sample.prompt), Message("assistant", sample.answer)]
    answered = prepare(messages, model.config, model.tokenizer, model.template, model.limits, generation_prompt=False)
    return HeldOutPrompt(answered, len(answered.input_ids) - _common(asked.input_ids, answered.input_ids), kind)


@torch.inference_mode()
def _prepare_drawing(model: Vila, sample: Sample) -> HeldOutPrompt:
    head = model.network.generation_head
    assert isinstance(head, TrainableHead), "samples with drawings are for models that draw"
    prepared = prepare_drawing(sample, head, model.config, model.tokenizer, model.template)
    pixels = prepared.media[0].tiles.pixels_on(model.device, model.dtype)
    codes = head.codes(pixels).flatten(0, 1)  # [P, D]
    return HeldOutPrompt(prepared, len(codes), "drawing", codes.cpu())


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    return next(
        (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
