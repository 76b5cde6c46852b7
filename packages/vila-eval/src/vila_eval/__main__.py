"""The entry point of `vila-eval`, which is also `python -m vila_eval`."""

from typing import NoReturn

from vila_core.cli.entry_point import start


def main() -> NoReturn:
    """Run `vila-eval`."""
    start("vila_eval.cli.main:main")


if __name__ == "__main__":
    main()
