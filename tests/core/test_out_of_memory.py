"""What a user sees of a request that fills the memory of a GPU or of the machine."""

from collections.abc import Callable

import pytest
import torch

from vila_core.engine.failures import as_error
from vila_core.errors import GenerationError


def caught(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the question is what it is
        return error
    raise AssertionError("expected an error")


def fill_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("fill", [fill_the_gpu, lambda: torch.empty(2**60, dtype=torch.uint8), lambda: bytes(2**60)])
def test_full_memory_is_explained(fill: Callable[[], object]):
    error = caught(fill)
    assert isinstance(as_error(error), GenerationError)
    assert "too little memory for this request" in str(as_error(error))


def test_other_errors_stay_as_they_are():
    error = caught(lambda: torch.ones(2) @ torch.ones(3))
    assert isinstance(error, RuntimeError)
    assert as_error(error) is error
