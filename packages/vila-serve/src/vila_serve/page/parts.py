"""The parts of the chat page, and where they are."""

# gradio is not installed where the types are checked.
# pyright: reportUnknownParameterType=false

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports] - installed with the extra only

from vila_serve.page.choices import Labels, make_choices, make_drawing_choices
from vila_serve.page.history import ENDINGS
from vila_serve.page.question import ASK, DRAW, PageModel
from vila_serve.page.texts import ENGLISH, LANGUAGES, Texts
from vila_serve.settings import ServeSettings

EXAMPLES = Path(__file__).parent / "examples"
QUESTIONS = (
    ("What is in the picture?", ("scene.png",)),
    ("What color is the highest bar?", ("chart.png",)),
    ("Which picture has more objects?", ("pair-1.png", "pair-2.png")),
    ("Which way does the yellow moon move?", ("motion.mp4",)),
)
"""What the page offers to try. The embedded model can answer them, and understands English only."""


@dataclass(frozen=True)
class Parts:
    """The parts of the page.

    Attributes:
        labeled: parts with texts, and their properties in a language.
        choices: the inputs of `Choices`, in the order of its fields.
        mode: whether to ask or to draw; None for a model that does not draw.
    """

    language: gr.Radio
    theme: gr.Button
    new_chat: gr.Button
    chat: gr.Chatbot
    box: gr.MultimodalTextbox
    status: gr.HTML
    seen: gr.HTML
    choices: Sequence[Any]
    mode: gr.Radio | None
    labeled: Sequence[tuple[Any, Labels]]

    @classmethod
    def build(cls, model: PageModel, settings: ServeSettings) -> "Parts":
        texts, labeled = ENGLISH, list[tuple[Any, Labels]]()

        def label(part: Any, labels: Labels) -> Any:
            labeled.append((part, labels))
            return part

        with gr.Row(elem_id="top"):
            name = html.escape(model.name)
            gr.HTML(f"<h1>VILA Kit</h1><p>{name}</p>", elem_id="name", container=False)
            new_chat = label(
                gr.Button(texts.new_chat, size="sm", elem_id="new-chat"), lambda texts: {"value": texts.new_chat}
            )
            language = gr.Radio(
                [(one.name, code) for code, one in LANGUAGES.items()],
                value=texts.code,
                show_label=False,
                container=False,
                elem_id="language",
            )
            theme = gr.Button("◐", size="sm", elem_id="theme")
        with gr.Row(elem_id="main"):
            with gr.Column(elem_id="conversation", scale=5, min_width=320):
                chat = label(
                    gr.Chatbot(
                        show_label=False,
                        container=False,
                        height=None,
                        placeholder=texts.welcome,
                        examples=[
                            {"text": text, "files": [str(EXAMPLES / name) for name in files]}
                            for text, files in QUESTIONS
                        ],
                        buttons=["copy"],
                        feedback_options=None,
                        elem_id="chat",
                    ),
                    lambda texts: {"placeholder": texts.welcome},
                )
                status = gr.HTML("", elem_id="status", container=False)
                mode = None
                if model.max_pictures:
                    mode = label(
                        gr.Radio(_modes(texts), value=ASK, show_label=False, container=False, elem_id="mode"),
                        lambda texts: {"choices": _modes(texts)},
                    )
                box = label(
                    gr.MultimodalTextbox(
                        placeholder=texts.ask,
                        show_label=False,
                        container=False,
                        sources="upload",
                        file_count="multiple",
                        file_types=list(ENDINGS),
                        max_lines=8,
                        autofocus=True,
                        stop_btn=False,
                        elem_id="box",
                    ),
                    lambda texts: {"placeholder": texts.ask},
                )
            with gr.Column(elem_id="side", scale=2, min_width=300):
                with label(gr.Accordion(texts.seen, open=True), lambda texts: {"label": texts.seen}):
                    seen = gr.HTML(note(texts.seen_empty), elem_id="seen", container=False)
                drawing = []
                if mode is not None:
                    accordion = gr.Accordion(texts.drawing_settings, open=False, elem_id="drawing")
                    with label(accordion, lambda texts: {"label": texts.drawing_settings}):
                        drawing = [mode, *make_drawing_choices(model, label)]
                with label(gr.Accordion(texts.settings, open=False), lambda texts: {"label": texts.settings}):
                    choices = [*make_choices(model, settings, label), *drawing]
        return cls(language, theme, new_chat, chat, box, status, seen, choices, mode, labeled)


def _modes(texts: Texts) -> list[tuple[str, str]]:
    return [(texts.mode_ask, ASK), (texts.mode_draw, DRAW)]


def note(text: str, kind: str = "quiet") -> str:
    """Return a line of text as HTML."""
    return f'<p class="{kind}">{html.escape(text)}</p>'
