"""The entry points of vila-core's programs. `python -m vila_core` is `vila`."""

from typing import NoReturn

from vila_core.cli.entry_point import start


def vila() -> NoReturn:
    """Run `vila`."""
    start("vila_core.cli.main:main")


def vila_infer() -> NoReturn:
    """Run `vila-infer`."""
    start("vila_core.cli.infer:main")


def vila_run() -> NoReturn:
    """Run `vila-run`."""
    start("vila_core.cli.replaced:run")


def vila_upload() -> NoReturn:
    """Run `vila-upload`."""
    start("vila_core.cli.replaced:upload")


if __name__ == "__main__":
    vila()
