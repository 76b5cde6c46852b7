"""How the programs of all distributions start and end.

Entry points import this module and nothing that is slow to import, so that a Ctrl-C during the slow imports, which take
seconds, prints one line and no traceback.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from vila_core.plugins.lazy import import_object


def start(target: str) -> NoReturn:
    """Import the function named by `target`, written "package.module:function", call it, and exit the process.

    Exit codes: 130 after a Ctrl-C that the function does not handle, 1 if nobody reads standard output any more, as in
    `vila plugins | head -1`, 2 if it cannot be written for another reason, such as a full disk.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if the shell has it ignored
        signal.signal(signal.SIGINT, _interrupt)
    try:
        try:
            import_object(target)()
        finally:
            _flush_output()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # pressed again, it ends what Python does before it exits
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    finally:
        # Python would end by SIGINT, whatever the exit code, if Ctrl-C was pressed in an `exec` of a text, such as
        # those of dataclasses. Another `exec` makes it forget that.
        exec("")  # noqa: S102 - runs nothing
    sys.exit(0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`, as Python does, but during an import end the process.

    The C++ code of libraries such as torch does not expect an exception while it is imported: it aborts, or drops the
    exception and goes on, or raises another one.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            tidy = b"\r\x1b[2K\x1b[?25h" if os.isatty(2) else b""  # clear the line of a spinner, which hides the cursor
            os.write(2, tidy + b"Stopped.\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def _flush_output() -> None:
    """Write what is left for standard output. If that is impossible, drop it: Python would try again when it exits."""
    try:
        print(end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        print(f"Error: Standard output cannot be written: {error.strerror}.", file=sys.stderr)
        sys.exit(2)
