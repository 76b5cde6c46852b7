"""Runs a plugin's code so that nothing it raises ends the program, while Ctrl-C still does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from vila_core.errors import PluginError, printable

Result = TypeVar("Result")


class PluginFailedError(Exception):
    """A plugin raised something. The message names it; `__cause__` is what was raised."""


def run_plugin_code(function: Callable[[], Result]) -> Result:
    """Call `function`, code of a plugin.

    Raises:
        PluginFailedError: it raised anything at all, also SystemExit, or a KeyboardInterrupt of its own.
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    with _watch_ctrl_c() as pressed:
        try:
            return function()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and pressed.is_set():
                raise
            raise PluginFailedError(_describe(error)) from error


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception of a plugin may fail to describe itself
        text = ""
    kind = "" if isinstance(error, PluginError) else type(error).__name__
    return printable(": ".join(part for part in (kind, text) if part))


@contextmanager
def _watch_ctrl_c() -> Generator[threading.Event]:
    """Yield an event that tells whether Ctrl-C was pressed. It interrupts as usual."""
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield pressed  # Ctrl-C interrupts the main thread, or is handled elsewhere
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.set()
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        if signal.getsignal(signal.SIGINT) is note:  # unless the plugin has set a handler
            signal.signal(signal.SIGINT, before)
