"""The inputs of the page that set how to answer and how to draw: the fields of `Choices`, in their order."""

# gradio is not installed where the types are checked.
# pyright: reportUnknownParameterType=false

from collections.abc import Callable
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports] - installed with the extra only

from vila_core.engine.drawing_settings import DrawingConfig
from vila_serve.page.question import PageModel
from vila_serve.page.texts import ENGLISH, Texts
from vila_serve.settings import ServeSettings

MAX_ANSWER = 4096
MAX_FRAMES = 64
Labels = Callable[[Texts], dict[str, Any]]
"""The properties of a part of the page in a language."""
Label = Callable[[Any, Labels], Any]
"""Notes how a part is called in each language, and returns the part."""


def make_choices(model: PageModel, settings: ServeSettings, label: Label) -> list[Any]:
    """Return the inputs that set how to answer."""
    texts = ENGLISH
    longest = min(settings.max_tokens or MAX_ANSWER, MAX_ANSWER, model.context)
    return [
        label(
            gr.Textbox(
                label=texts.system_prompt,
                placeholder=texts.system_prompt_hint,
                lines=2,
                max_lines=8,
                visible=model.has_system_prompt,
            ),
            lambda texts: {"label": texts.system_prompt, "placeholder": texts.system_prompt_hint},
        ),
        label(
            gr.Slider(1, longest, min(settings.default_max_tokens, longest), step=1, label=texts.max_tokens),
            lambda texts: {"label": texts.max_tokens},
        ),
        label(
            gr.Slider(
                0, 2, settings.default_temperature, step=0.05, label=texts.temperature, info=texts.temperature_hint
            ),
            lambda texts: {"label": texts.temperature, "info": texts.temperature_hint},
        ),
        label(
            gr.Slider(0.05, 1, settings.default_top_p, step=0.05, label=texts.top_p),
            lambda texts: {"label": texts.top_p},
        ),
        label(
            gr.Textbox(label=texts.seed, info=texts.seed_hint, max_lines=1),
            lambda texts: {"label": texts.seed, "info": texts.seed_hint},
        ),
        label(
            gr.Slider(
                1,
                max(MAX_FRAMES, model.num_video_frames),
                model.num_video_frames,
                step=1,
                label=texts.frames,
                info=texts.frames_hint,
            ),
            lambda texts: {"label": texts.frames, "info": texts.frames_hint},
        ),
        label(
            gr.Textbox(
                label=texts.schema,
                info=texts.schema_hint,
                placeholder='{"type": "object", "properties": {…}}',
                lines=4,
                max_lines=12,
                elem_id="schema",
            ),
            lambda texts: {"label": texts.schema, "info": texts.schema_hint},
        ),
    ]


def make_drawing_choices(model: PageModel, label: Label) -> list[Any]:
    """Return the inputs that set how to draw."""
    texts, defaults = ENGLISH, DrawingConfig()
    return [
        label(
            gr.Slider(1, model.max_pictures, 1, step=1, label=texts.pictures),
            lambda texts: {"label": texts.pictures},
        ),
        label(
            gr.Slider(0, 10, defaults.guidance, step=0.5, label=texts.guidance, info=texts.guidance_hint),
            lambda texts: {"label": texts.guidance, "info": texts.guidance_hint},
        ),
        label(
            gr.Textbox(label=texts.negative_prompt, info=texts.negative_prompt_hint, max_lines=4),
            lambda texts: {"label": texts.negative_prompt, "info": texts.negative_prompt_hint},
        ),
    ]
