"""Samples in which a model draws: the answer about a picture becomes the prompt for that picture.

The language model reads a picture that it draws as it reads one that it is shown: as embeddings of the same codes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from vila_core.chat import ChatTemplate, Message
from vila_core.config import RQSiglipConfig, VilaConfig
from vila_core.generation.heads import GenerationHead
from vila_core.generation.prompts import PicturePrompts
from vila_core.media import Image, MediaLimits
from vila_core.prompt import PreparedPrompt, prepare
from vila_core.tokenizer import Tokenizer
from vila_quant.calibration.sample import Sample


def reads_what_it_draws(config: VilaConfig) -> bool:
    """Return whether a model draws images, and reads them back as the same codes."""
    return config.generation_head is not None and isinstance(config.vision_tower, RQSiglipConfig)


def with_drawings(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield each sample and, after one that shows a single image and has an answer, the drawing of that image."""
    for sample in samples:
        yield sample
        media = [part for part in sample.prompt if not isinstance(part, str)]
        if len(media) == 1 and isinstance(media[0], Image) and sample.answer:
            yield Sample((sample.answer,), drawing=media[0])


def prepare_drawing(
    sample: Sample, head: GenerationHead, config: VilaConfig, tokenizer: Tokenizer, template: ChatTemplate
) -> PreparedPrompt:
    """Return the prompt for a picture, followed by the picture's positions.

    Raises:
        MediaError: the picture cannot be read.
        PromptError: the prompt is longer than the context.
    """
    (text,) = sample.prompt
    assert isinstance(text, str), "a prompt for a picture"
    assert sample.drawing is not None
    seen = prepare([Message("user", (sample.drawing, text))], config, tokenizer, template, MediaLimits())
    prompts = PicturePrompts(head, template, tokenizer, config.language_model.max_length)
    return replace(seen, input_ids=[*prompts.ids("image", text), tokenizer.media_token_ids["image"]])
