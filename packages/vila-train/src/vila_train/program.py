"""The entry point of `vila-train`."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run `vila-train`. Imports come last: a Ctrl-C in the second that they take is no traceback either."""
    try:
        from vila_train.cli import main as run

        run()
    except KeyboardInterrupt:
        print("Stopped. Nothing was written.", file=sys.stderr)
        sys.exit(130)
