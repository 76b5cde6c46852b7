"""Copies from the main memory to a GPU: what arrives is what was given, whatever happens to it afterwards."""

import pytest
import torch

from vila_core.uploads import LARGE_BYTES, SMALL_BYTES, upload, upload_into


def test_on_a_cpu_values_stay_there() -> None:
    given = torch.arange(5)
    assert torch.equal(upload([3, 1, 2], torch.device("cpu")), torch.tensor([3, 1, 2]))
    assert upload([1], torch.device("cpu"), torch.int32).dtype == torch.int32
    assert upload(given, torch.device("cpu")) is given
    assert torch.equal(upload_into(torch.zeros(5, dtype=torch.int64), given), given)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_copies_in_flight_keep_their_values_on_a_gpu() -> None:
    device = torch.device("cuda")
    busy = torch.randn(4096, 4096, device=device)
    for _ in range(50):
        busy = busy @ busy * 1e-3  # the copies wait behind this
    sizes = [0, 1, 7, SMALL_BYTES // 8, SMALL_BYTES // 8 + 1, LARGE_BYTES // 8, LARGE_BYTES // 8 + 1] + [100] * 60
    given = [torch.randint(0, 1 << 60, (size,)) for size in sizes]
    copies = [values.clone() for values in given]
    arrived: list[torch.Tensor] = []
    for values in copies:
        arrived.append(upload(values, device))
        values.zero_()
    for values, wanted in zip(arrived, given, strict=True):
        assert torch.equal(values.cpu(), wanted)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_layouts_in_memory_do_not_matter_on_a_gpu() -> None:
    picture = torch.randint(0, 256, (2, 20, 30, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    target = torch.zeros(2, 3, 20, 30, dtype=torch.uint8, device="cuda")
    for values in (picture, picture.contiguous(), picture[:, :, ::2], picture[1:]):
        assert torch.equal(upload(values, torch.device("cuda")).cpu(), values)
    assert torch.equal(upload_into(target, picture).cpu(), picture)
