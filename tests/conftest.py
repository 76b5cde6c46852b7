"""Options and fixtures of the whole suite."""

import signal
from pathlib import Path

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


@pytest.fixture(scope="session")
def tiny_u(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VILA-U checkpoint of random weights, which draws 64 x 64 pixels. Tests only read it."""
    from tests.vila_u_checkpoint import RECORDED, complete_checkpoint

    return complete_checkpoint(RECORDED / "checkpoint", tmp_path_factory.mktemp("model") / "tiny-u")
