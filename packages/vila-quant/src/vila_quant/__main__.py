"""The entry point of `vila-quant`, which is also `python -m vila_quant`."""

from typing import NoReturn

from vila_core.cli.entry_point import start


def main() -> NoReturn:
    """Run `vila-quant`."""
    start("vila_quant.cli.main:main")


if __name__ == "__main__":
    main()
