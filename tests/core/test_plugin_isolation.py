"""Whatever a plugin raises or returns, it is named and the program continues; Ctrl-C still ends it."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vila_core.chat import Turn
from vila_core.cli.commands import LazyCommand
from vila_core.errors import CheckpointError, PluginError, VilaWarning
from vila_core.plugins.guards import guarded
from vila_core.plugins.hookspecs import Command
from vila_core.plugins.isolation import PluginFailedError, run_plugin_code
from vila_core.plugins.loader import load_plugin_file
from vila_core.plugins.registration import Loader
from vila_core.plugins.registry import Owner

HEAD = "from vila_core import Command, hookimpl\n"
COMMAND = HEAD + "@hookimpl\ndef vila_commands():\n    return {items}\n"


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no description")


def raise_(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


@pytest.mark.parametrize(
    "error",
    [BaseException("b"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), RecursionError(), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_plugin_raises_is_one_error(error: BaseException) -> None:
    with pytest.raises(PluginFailedError, match=type(error).__name__) as caught:
        run_plugin_code(raise_(error))
    assert caught.value.__cause__ is error


def test_an_exception_without_a_description() -> None:
    with pytest.raises(PluginFailedError, match="SilentError"):
        run_plugin_code(raise_(SilentError()))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handle Ctrl-C as an interactive program does; a program in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_still_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_plugin_code(lambda: os.kill(os.getpid(), signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise BaseException('at import')", "fails on import: BaseException: at import"),
        ("raise KeyboardInterrupt", "fails on import: KeyboardInterrupt"),
        ("import sys\nsys.exit(3)", "fails on import: SystemExit: 3"),
        ("import a_missing_module", "fails on import: ModuleNotFoundError"),
        ("def f(): f()\nf()", "fails on import: RecursionError"),
        ("\0", "fails on import: SyntaxError"),
        (COMMAND.format(items="1 / 0"), "fails to register: ZeroDivisionError"),
        (COMMAND.format(items="exit(1)"), "fails to register: SystemExit"),
        (HEAD + "@hookimpl\ndef vila_commands():\n    raise KeyboardInterrupt", "fails to register: KeyboardInterrupt"),
        (COMMAND.format(items="(x for x in iter(int, 1))"), "must return a sequence, got generator"),
        (COMMAND.format(items="None"), "must return a sequence, got NoneType"),
        (COMMAND.format(items="[Command('c', 5, print)]"), "help must be a text, got 5"),
        (COMMAND.format(items=r"[Command('c', '\ud800', print)]"), "help must be a printable text"),
        (COMMAND.format(items=r"[Command('c', 'a\x1b[31m', print)]"), "help must be a printable text"),
        (COMMAND.format(items="[Command('c', 'x' * 20000, print)]"), "help must be a printable text"),
        (COMMAND.format(items="[Command('c' * 300, 'Help.', print)]"), "a name has at most 200 characters"),
        (COMMAND.format(items="[Command('', 'Help.', print)]"), "needs a name"),
        (COMMAND.format(items="[Command(5, 'Help.', print)]"), "needs a name"),
        (COMMAND.format(items=r"[Command('a\nb', 'Help.', print)]"), "a name is one printable line"),
        (COMMAND.format(items=r"[Command('\x1b[31m', 'Help.', print)]"), "a name is one printable line"),
        (COMMAND.format(items="[Command(' a', 'Help.', print)]"), "a name is one printable line"),
        (COMMAND.format(items="[Command('a', 'Help.', print)] * 2"), "two commands named 'a'"),
        (COMMAND.format(items="[Command(str(i), 'Help.', print) for i in range(20000)]"), "more than 10,000 items"),
        (
            "class Bad:\n    def __repr__(self): raise ValueError\n" + COMMAND.format(items="[Bad()]"),
            "expected a vila_core.Command, got Bad",
        ),
        (
            "class Bad:\n    name = property(lambda self: 1 / 0)\n" + COMMAND.format(items="[Bad()]"),
            "ZeroDivisionError",
        ),
        (
            "from collections.abc import Sequence\nclass Endless(Sequence):\n    def __len__(self): return 1\n"
            "    def __getitem__(self, i): return Command(str(i), 'Help.', print)\n"
            + COMMAND.format(items="Endless()"),
            "more than 10,000 items",
        ),
    ],
    ids=range(26),
)
def test_plugin_files_that_misbehave(tmp_path: Path, source: str, message: str) -> None:
    file = tmp_path / "misbehaving.py"
    file.write_text(source)
    with pytest.raises(PluginError, match=message) as caught:
        load_plugin_file(file)
    assert "\n" not in str(caught.value)


def test_a_failed_plugin_leaves_nothing_registered() -> None:
    module = ModuleType("failing")
    exec(COMMAND.format(items="exit(1)"), module.__dict__)
    loader = Loader()
    with pytest.raises(PluginFailedError):
        run_plugin_code(lambda: loader.add(Owner("failing", "test", "0"), lambda: module))
    assert not any(loader.found.values())


OWNER = Owner("evil", "somebody-else", "1.0")


class Evil:
    """Stands for any registered object: every method raises or returns `result`."""

    def __init__(self, result: object):
        self.name, self._result = "evil", result

    def answer(self, *_: object, **__: object) -> Any:
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result

    end_token = splits = property(answer)
    render = detect = read = write = size = sample = subsets = answer


FAULTS = [ValueError("a"), KeyboardInterrupt(), SystemExit(0), GeneratorExit(), StopIteration(), 5, None, object()]


@pytest.mark.parametrize("result", FAULTS, ids=lambda result: type(result).__name__)
def test_what_objects_of_a_plugin_do_is_named(result: object, tmp_path: Path) -> None:
    template = guarded("vila_chat_templates", Evil(result), OWNER)
    dataset = guarded("vila_datasets", Evil(result), OWNER)
    named = "'evil' of somebody-else 1.0"
    for use in (
        lambda: template.render([Turn("user", "x")], {}),
        dataset.subsets,
        lambda: dataset.sample("train", "all", 3),
        lambda: dataset.splits,
    ):
        with pytest.raises(PluginError, match=named):
            use()
    if isinstance(result, BaseException):
        form = guarded("vila_checkpoint_formats", Evil(result), OWNER)
        with pytest.raises(PluginError, match=named):
            form.read(tmp_path)
        with pytest.warns(VilaWarning, match=f"{named}.*It is left out"):
            assert form.detect(tmp_path) is False


def test_errors_that_a_format_documents_stay() -> None:
    form = guarded("vila_checkpoint_formats", Evil(CheckpointError("The file is damaged.")), OWNER)
    with pytest.raises(CheckpointError, match=r"^The file is damaged\.$"):
        form.read(Path())


def test_objects_of_our_own_distributions_are_used_as_they_are() -> None:
    form = Evil(None)
    assert guarded("vila_checkpoint_formats", form, Owner("quant", "vila-quant", "1")) is form


def test_an_endless_template_is_refused() -> None:
    template = guarded("vila_chat_templates", Evil("x" * 2_000_000), OWNER)
    with pytest.raises(PluginError, match="renders 2,000,000 characters"):
        template.render([Turn("user", "x")], {})


@pytest.mark.parametrize("loaded", [None, 5, "text"])
def test_a_command_that_loads_something_else(loaded: object) -> None:
    command = LazyCommand(Command("evil", "[/] help", lambda: loaded))  # type: ignore[arg-type, return-value]
    assert command.help == r"\[/] help"
    with pytest.raises(PluginError, match=r"The command 'evil' fails: load returned .*expected a typer app"):
        command.make_context("evil", [])
