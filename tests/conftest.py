"""Options and fixtures of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--recordings",
        action="append",
        metavar="DIR",
        help="recorded outputs of the reference to test against (repeatable)",
    )
