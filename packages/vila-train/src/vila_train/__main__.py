"""The entry point of `vila-train`, which is also `python -m vila_train`.

torchrun starts it in each process: `torchrun --nproc-per-node 4 -m vila_train run …`.
"""

from typing import NoReturn

from vila_core.cli.entry_point import start


def main() -> NoReturn:
    """Run `vila-train`."""
    start("vila_train.cli:main")


if __name__ == "__main__":
    main()
