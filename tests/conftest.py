"""Options and fixtures of the whole suite."""

import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job, and its programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--recordings",
        action="append",
        metavar="DIR",
        help="recorded outputs of the reference to test against (repeatable)",
    )
