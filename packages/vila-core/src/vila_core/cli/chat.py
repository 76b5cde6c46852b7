"""`vila chat`: a conversation with a model in the terminal."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.cli.arguments import open_medium
from vila_core.cli.infer import print_stream
from vila_core.cli.infer_options import AnswerOptions, MediaOptions, ModelOptions
from vila_core.cli.option_groups import with_option_groups
from vila_core.cli.options import Debug, Plugin, load_plugin_files
from vila_core.cli.progress import show_phases
from vila_core.cli.terminal import visible
from vila_core.cli.words import is_medium
from vila_core.errors import VilaError

if TYPE_CHECKING:
    from vila_core.chat import Message
    from vila_core.conversation import Part
    from vila_core.runtime import GenerationSettings, Vila

COMMANDS = """Type a question. To show a picture or a video, put its path or https URL in the line:
  cat.png What is this?
/new starts a new conversation, /help shows this, /exit (or Ctrl-D) ends. Ctrl-C stops an answer."""
WORD = re.compile(r"'[^']+'|\"[^\"]+\"|(?:\\.|\S)+")
"""A word of a line: quoted, or without spaces other than escaped ones (as terminals write dropped files)."""


@dataclass
class Conversation:
    """A model, and what was said so far."""

    model: "Vila"
    settings: "GenerationSettings"
    messages: "list[Message]" = field(default_factory=list)

    def ask(self, line: str) -> None:
        """Print the answer to a line, and keep both. What failed or was stopped is not kept."""
        from vila_core.chat import Message

        question = Message("user", read_line(line))
        answer = print_stream(self.model, [*self.messages, question], self.settings)
        self.messages += [question, Message("assistant", answer)]


@with_option_groups
def chat(
    model: ModelOptions,
    media: MediaOptions,
    answer: AnswerOptions,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="MEDIA… TEXT", help="The first question.", show_default=False)
    ] = None,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Talk with a model in the terminal. Show it pictures and videos by writing their paths.

    [bold]Example:[/bold] vila chat -m Efficient-Large-Model/NVILA-8B
    """
    load_plugin_files(plugin)
    overrides, settings = media.overrides(), answer.settings()
    with show_phases(f"Loading {model.label}") as show:
        loaded = model.load(overrides, show)
    typer.echo(COMMANDS, err=True)
    talk(Conversation(loaded, settings), [" ".join(words)] if words else ())


def talk(conversation: Conversation, first: Sequence[str] = ()) -> None:
    """Answer lines until /exit or the end of standard input."""
    for line in _lines(first):
        if line in ("/exit", "/quit", "/bye"):
            return
        if line in ("/new", "/reset", "/clear"):
            conversation.messages.clear()
            typer.echo("A new conversation.", err=True)
        elif line.startswith("/") and not is_medium(WORD.findall(line)[0]):
            typer.echo(COMMANDS, err=True)
        else:
            _answer(conversation, line)


def _answer(conversation: Conversation, line: str) -> None:
    try:
        conversation.ask(line)
    except VilaError as error:
        typer.echo(f"Error: {visible(str(error))}", err=True)
    except KeyboardInterrupt:
        typer.echo("\nStopped. The conversation before this question is kept.", err=True)


def _lines(first: Sequence[str]) -> Iterator[str]:
    """Yield the lines to answer: `first`, then those that the user types, without empty ones."""
    yield from first
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):
            import_module("readline")  # gives `input` a history and editing keys
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
        except EOFError:
            return
        if line:
            yield line


def read_line(line: str) -> "list[Part]":
    """Return the media that a line names, then its other words as text.

    Raises:
        MediaError: a file does not exist.
    """
    media: list[Part] = []
    rest = line
    for match in WORD.finditer(line):
        word = match[0][1:-1] if match[0][0] in "'\"" else re.sub(r"\\(.)", r"\1", match[0])
        if is_medium(word):
            media.append(open_medium(word))
            rest = rest.replace(match[0], "", 1)
    text = " ".join(rest.split())
    return [*media, text] if text else media
