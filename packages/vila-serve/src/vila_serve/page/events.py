"""Event handlers of the chat page."""

# gradio is not installed where the types are checked.
# pyright: reportUnknownParameterType=false

import asyncio
import contextlib
import functools
import html
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports] - installed with the extra only

from vila_core.errors import MediaError
from vila_serve.page.history import (
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
from vila_serve.page.parts import EXAMPLES, QUESTIONS, Parts, note
from vila_serve.page.pictures import MAX_STORED_BYTES, store_picture, stored_bytes
from vila_serve.page.question import DRAW, Answers, Choices, Question, Shown
from vila_serve.page.texts import LANGUAGES, language_of

TOGGLE_THEME = """() => {
    const dark = document.body.classList.toggle("dark");
    localStorage.setItem("vila-theme", dark ? "dark" : "light");
}"""


class Events:
    """The event handlers of the page.

    Args:
        parts: of the page.
        answers: answers the questions.
        uploads: where Gradio keeps what users upload, without links.
    """

    def __init__(self, parts: Parts, answers: Answers, uploads: Path):
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

    async def ask(self, message: dict[str, Any], history: list[PageMessage], language: str) -> tuple[Any, Any, str]:
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
        """Stream the answer to the last question. If it fails, the question goes back into the box."""
        turns = in_turns(history)
        if not turns or turns[-1]["role"] != "user":
            return
        store = functools.cache(functools.partial(store_picture, self._uploads))
        async with contextlib.aclosing(self._answer(turns, Choices(*choices), language)) as news:
            async for shown in news:
                if shown.error is not None:
                    yield one_by_one(turns[:-1]), _box_with(turns[-1]), note(shown.error, "error"), gr.skip()
                    return
                conversation = gr.skip()
                if shown.answer is not None:
                    conversation = one_by_one([*turns, assistant_message(shown.answer, store)])
                yield (
                    conversation,
                    gr.skip(),
                    gr.skip() if shown.status is None else note(shown.status) + _previews(shown.previews),
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
        return gr.update(submit_btn=True, stop_btn=False), note(LANGUAGES[language].stopped)

    async def start_over(self, language: str) -> tuple[Any, ...]:
        """Empty the page."""
        return [], gr.update(value=None, submit_btn=True, stop_btn=False), "", note(LANGUAGES[language].seen_empty)

    def _busy_box(self) -> Any:
        return gr.update(value=None, submit_btn=False, stop_btn=True)

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
        return [*updates, gr.skip() if history else note(texts.seen_empty)]


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
