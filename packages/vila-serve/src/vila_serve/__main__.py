"""The entry point of `vila-serve`, which is also `python -m vila_serve`."""

from typing import NoReturn

from vila_core.cli.entry_point import start


def main() -> NoReturn:
    """Run `vila-serve`."""
    start("vila_serve.cli:main")


if __name__ == "__main__":
    main()
