"""The chat page: its parts, and what happens when the user does something."""

# gradio is not installed where the types are checked.
# pyright: reportUnknownParameterType=false

import asyncio
import contextlib
import functools
import html
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from vila_core.engine.drawing_settings import DrawingConfig
from vila_core.errors import MediaError
from vila_core.plugins.lazy import optional_import
from vila_serve.page.history import (
    ENDINGS,
    PageMessage,
    assistant_message,
    in_turns,
    one_by_one,
    paths_of,
    text_of,
    up_to_question,
    user_message,
    with_contents,
)
from vila_serve.page.pictures import store_picture, stored_bytes
from vila_serve.page.question import ASK, DRAW, Answers, Choices, PageModel, Question, Shown
from vila_serve.page.routes import PageRoute
from vila_serve.page.texts import ENGLISH, LANGUAGES, Texts, language_of
from vila_serve.settings import ServeSettings

with optional_import("The chat page", "vila-serve[page]", "gradio"):
    import gradio as gr  # pyright: ignore[reportMissingImports] - installed with the extra only
    from gradio.themes import Base  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).parent
EXAMPLES = HERE / "examples"
QUESTIONS = (
    ("What is in the picture?", ("scene.png",)),
    ("What color is the highest bar?", ("chart.png",)),
    ("Which picture has more objects?", ("pair-1.png", "pair-2.png")),
    ("Which way does the yellow moon move?", ("motion.mp4",)),
)
"""What the page offers to try. The embedded model can answer them, and understands English only."""
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans SC", "PingFang SC", "Microsoft YaHei", "sans-serif")
MONOSPACED = ("ui-monospace", "SF Mono", "Consolas", "monospace")
KEEP_SECONDS = 24 * 60 * 60
"""Uploaded files are deleted after a day."""
MAX_STORED_BYTES = 2 << 30
MAX_ANSWER = 4096
MAX_FRAMES = 64
TOGGLE_THEME = """() => {
    const dark = document.body.classList.toggle("dark");
    localStorage.setItem("vila-theme", dark ? "dark" : "light");
}"""
ON_LOAD = """() => {
    const chosen = localStorage.getItem("vila-theme");
    if (chosen) document.body.classList.toggle("dark", chosen === "dark");
}"""
HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'

Update = dict[str, Any]
Labels = Callable[[Texts], Update]
"""The properties of a part of the page in a language."""


def add_page(app: FastAPI, answers: Answers, model: PageModel, settings: ServeSettings) -> None:
    """Serve the chat page at `/` of `app`. Call it after all other routes have been added.

    Args:
        app: gets the page's routes.
        answers: answers the questions.
        model: what the page says of the model.
        settings: of the server.

    Raises:
        MissingDependencyError: the extra `page` is not installed.
    """
    uploads = Path(tempfile.mkdtemp(prefix="vila-serve-"))  # for this user only
    # Gradio takes the folder for uploads, and whether to report usage, from the environment only.
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    max_upload = settings.max_request_bytes * 3 // 4  # as much as a request holds in base64
    holder = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    gr.mount_gradio_app(
        holder,
        build_page(answers, model, settings, uploads),
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[str(EXAMPLES)],
        max_file_size=max_upload,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        show_error=True,
        theme=_theme(),
        css_paths=HERE / "style.css",
        head=HEAD,
        js=ON_LOAD,
    )
    app.router.routes.append(
        PageRoute(
            holder,
            uploads=uploads,
            folders=[EXAMPLES],
            max_upload_bytes=max_upload,
            max_stored_bytes=max(MAX_STORED_BYTES, 4 * max_upload),
        )
    )
    outer = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def life(running: FastAPI) -> AsyncGenerator[Any]:
        try:
            async with outer(running) as state, holder.router.lifespan_context(holder):
                yield state
        finally:
            shutil.rmtree(uploads, ignore_errors=True)

    app.router.lifespan_context = life


def _theme() -> Base:
    return Base(
        primary_hue="teal", neutral_hue="zinc", radius_size="lg", spacing_size="md", font=FONTS, font_mono=MONOSPACED
    )


def build_page(answers: Answers, model: PageModel, settings: ServeSettings, uploads: Path) -> gr.Blocks:
    """Return the page.

    Args:
        answers: answers the questions.
        model: what the page says of the model.
        settings: of the server.
        uploads: where Gradio keeps what users upload.
    """
    with gr.Blocks(title=f"{model.name} · VILA Kit", fill_width=True, delete_cache=(600, KEEP_SECONDS)) as page:
        parts = _Parts.build(model, settings)
        _Events(parts, answers, uploads.resolve()).connect(page)
    most = settings.replicas * (settings.max_batch + settings.max_queue)
    page.queue(default_concurrency_limit=None, max_size=4 * most)
    return page


@dataclass(frozen=True)
class _Parts:
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
    def build(cls, model: PageModel, settings: ServeSettings) -> "_Parts":
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
                    seen = gr.HTML(_note(texts.seen_empty), elem_id="seen", container=False)
                drawing = []
                if mode is not None:
                    accordion = gr.Accordion(texts.drawing_settings, open=False, elem_id="drawing")
                    with label(accordion, lambda texts: {"label": texts.drawing_settings}):
                        drawing = [mode, *_drawing_choices(model, label)]
                with label(gr.Accordion(texts.settings, open=False), lambda texts: {"label": texts.settings}):
                    choices = [*_choices(model, settings, label), *drawing]
        return cls(language, theme, new_chat, chat, box, status, seen, choices, mode, labeled)


def _modes(texts: Texts) -> list[tuple[str, str]]:
    return [(texts.mode_ask, ASK), (texts.mode_draw, DRAW)]


def _drawing_choices(model: PageModel, label: Callable[[Any, Labels], Any]) -> list[Any]:
    """Make the inputs of `Choices` that say how to draw."""
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


def _choices(model: PageModel, settings: ServeSettings, label: Callable[[Any, Labels], Any]) -> list[Any]:
    """Make the inputs of `Choices`."""
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


class _Events:
    """What happens when the user does something."""

    def __init__(self, parts: _Parts, answers: Answers, uploads: Path):
        self._parts = parts
        self._answers = answers
        self._uploads = uploads
        self._folders = [uploads, EXAMPLES.resolve()]  # where files of conversations may lie

    def connect(self, page: gr.Blocks) -> None:
        """Connect the parts of the page."""
        parts, private = self._parts, {"api_visibility": "private", "show_progress": "hidden"}
        answer_inputs = [parts.chat, parts.language, *parts.choices]
        answer_outputs = [parts.chat, parts.box, parts.status, parts.seen]
        begin_outputs = [parts.chat, parts.box, parts.status]
        begun = [
            parts.box.submit(self.ask, [parts.box, parts.chat, parts.language], begin_outputs, **private),
            parts.chat.example_select(self.try_example, parts.chat, begin_outputs, **private),
            parts.chat.retry(self.retry, parts.chat, begin_outputs, **private),
        ]
        answers = [
            one.success(self.answer, answer_inputs, answer_outputs, concurrency_id="answer", **private) for one in begun
        ]
        # A function of an event that cancels others would not be called, so that it is another event.
        for event in (parts.box.stop, parts.new_chat.click, parts.chat.undo):
            event(None, None, None, cancels=answers, **private)
        # Gradio's own `edit` fails for questions with files, and after the first answer.
        parts.chat.undo(self.edit, parts.chat, begin_outputs, **private)
        parts.box.stop(self.stop, [parts.language], [parts.box, parts.status], **private)
        new = parts.new_chat.click(self.start_over, [parts.language], answer_outputs, **private)
        new.then(fn=None, js="() => document.querySelector('#box textarea')?.focus()", **private)
        labeled = [part for part, _ in parts.labeled]
        translated = parts.language.change(
            self.translate, [parts.language, parts.chat], [*labeled, parts.seen], **private
        )
        if parts.mode is not None:
            for event in (parts.mode.change, translated.then):
                event(self.ask_or_draw, [parts.mode, parts.language], parts.box, **private)
        parts.theme.click(fn=None, js=TOGGLE_THEME, **private)
        page.load(self.greet, None, parts.language, **private)

    # -------------------------------------------------------------------------------------------- questions

    async def ask(self, message: Update, history: list[PageMessage], language: str) -> tuple[Any, Any, str]:
        """Put what the box holds into the conversation."""
        texts = LANGUAGES[language]
        text, files = str(message.get("text") or ""), list(message.get("files") or [])
        if not text.strip():
            raise gr.Error(texts.empty, title="", print_exception=False)
        return one_by_one([*in_turns(history), user_message(text, files)]), self._busy_box(), ""

    async def try_example(self, history: list[PageMessage], selected: gr.SelectData) -> tuple[Any, Any, str]:
        """Ask one of the questions that the empty page offers."""
        text, files = QUESTIONS[int(selected.index) % len(QUESTIONS)]
        message = user_message(text, [str(EXAMPLES / name) for name in files])
        return one_by_one([*in_turns(history), message]), self._busy_box(), ""

    async def retry(self, history: list[PageMessage], retried: gr.RetryData) -> tuple[Any, Any, str]:
        """Take the answer back, to ask for another one."""
        return one_by_one(up_to_question(history, _index(retried.index))), self._busy_box(), ""

    async def edit(self, history: list[PageMessage], undone: gr.UndoData) -> tuple[Any, Any, str]:
        """Take the last question back into the box, with its files, to change it."""
        turns = in_turns(up_to_question(history, _index(undone.index)))
        return one_by_one(turns[:-1]), _box_with(turns[-1]), ""

    async def answer(self, history: list[PageMessage], language: str, *choices: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Stream the answer to the last question. If there is none, the question goes back into the box."""
        turns = in_turns(history)
        if not turns or turns[-1]["role"] != "user":
            return
        store = functools.cache(functools.partial(store_picture, self._uploads))
        async with contextlib.aclosing(self._answer(turns, Choices(*choices), language)) as news:
            async for shown in news:
                if shown.error is not None:
                    yield one_by_one(turns[:-1]), _box_with(turns[-1]), _note(shown.error, "error"), gr.skip()
                    return
                conversation = gr.skip()
                if shown.answer is not None:
                    conversation = one_by_one([*turns, assistant_message(shown.answer, store)])
                yield (
                    conversation,
                    gr.skip(),
                    gr.skip() if shown.status is None else _note(shown.status) + _previews(shown.previews),
                    gr.skip() if shown.seen is None else shown.seen,
                )
        yield gr.skip(), gr.update(submit_btn=True, stop_btn=False), gr.skip(), gr.skip()

    async def _answer(self, turns: list[PageMessage], choices: Choices, language: str) -> AsyncGenerator[Shown]:
        if self._parts.mode is not None and await asyncio.to_thread(stored_bytes, self._uploads) > MAX_STORED_BYTES:
            yield Shown(error=LANGUAGES[language].too_many_files)
            return
        try:
            question = Question(await with_contents(turns, self._folders), choices, language)
        except MediaError as error:
            yield Shown(error=str(error))
            return
        async with contextlib.aclosing(self._answers.answer(question)) as news:
            async for shown in news:
                yield shown

    async def stop(self, language: str) -> tuple[Any, str]:
        """Show that the answer was stopped; the event that calls this has cancelled it."""
        return gr.update(submit_btn=True, stop_btn=False), _note(LANGUAGES[language].stopped)

    async def start_over(self, language: str) -> tuple[Any, ...]:
        """Empty the page."""
        return [], gr.update(value=None, submit_btn=True, stop_btn=False), "", _note(LANGUAGES[language].seen_empty)

    def _busy_box(self) -> Any:
        return gr.update(value=None, submit_btn=False, stop_btn=True)

    # -------------------------------------------------------------------------------------------- language

    async def greet(self, request: gr.Request) -> str:
        """Choose the language that the browser prefers."""
        return language_of(request.headers.get("accept-language"))

    async def ask_or_draw(self, mode: str, language: str) -> Any:
        """Let the box say what it takes."""
        texts = LANGUAGES[language]
        return gr.update(placeholder=texts.draw if mode == DRAW else texts.ask)

    async def translate(self, language: str, history: list[PageMessage]) -> list[Any]:
        """Show the page in another language."""
        texts = LANGUAGES[language]
        updates = [gr.update(**labels(texts)) for _, labels in self._parts.labeled]
        return [*updates, gr.skip() if history else _note(texts.seen_empty)]


def _box_with(question: PageMessage) -> Any:
    """Return the box with a question in it, to be sent again."""
    value = {"text": text_of(question), "files": paths_of(question)}
    return gr.update(value=value, submit_btn=True, stop_btn=False)


def _index(index: int | tuple[int, int] | list[int]) -> int:
    return index if isinstance(index, int) else int(index[0])


def _previews(uris: Sequence[str]) -> str:
    """Return pictures that are being drawn as HTML."""
    pictures = "".join(f'<img src="{html.escape(uri)}" alt="">' for uri in uris)
    return f'<div class="previews">{pictures}</div>' if pictures else ""


def _note(text: str, kind: str = "quiet") -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>'
