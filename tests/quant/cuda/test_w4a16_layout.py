"""The packed layout of four-bit weights for NVIDIA GPUs."""

import pytest
import torch

from vila_core.errors import ConfigError
from vila_quant.kernels.cuda.w4a16 import W4Weight, reference


@pytest.mark.parametrize(
    ("outputs", "inputs", "group_size"), [(32, 128, 128), (40, 384, 128), (33, 320, 64), (7, 96, 32)]
)
def test_unpacking_gives_back_what_was_packed(outputs: int, inputs: int, group_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = inputs // group_size
    codes = torch.randint(16, (outputs, inputs), dtype=torch.uint8, generator=generator)
    scales = torch.rand(outputs, groups, generator=generator).half()
    zeros = torch.randint(16, (outputs, groups), generator=generator).half()
    weight = W4Weight.pack(codes, scales, zeros)
    got_codes, got_scales, got_zeros = weight.unpack()
    assert torch.equal(got_codes, codes)
    assert torch.equal(got_scales, scales.float())
    assert torch.equal(got_zeros, zeros.float())
    assert weight.packed.shape[:2] == (-(-outputs // 32), -(-inputs // 128))


def test_a_word_holds_four_inputs_of_two_outputs() -> None:
    codes = torch.zeros(32, 128, dtype=torch.uint8)
    codes[16 + 3, 64 + 32 + 8 + 4 + 1] = 5
    codes[16 + 3 + 8, 64 + 32 + 8 + 4 + 2] = 9
    words = W4Weight.pack(codes, torch.ones(32, 1), torch.zeros(32, 1)).packed[0, 0, :512].view(2, 2, 8, 4, 4)
    assert words[1, 1, 3, 1, 3] == 5 << 16 | 9 << 12
    assert words.count_nonzero() == 1


def test_the_oracle_is_the_definition() -> None:
    codes = torch.tensor([[3, 15] * 64], dtype=torch.uint8)
    weight = W4Weight.pack(codes, torch.tensor([[0.5]]), torch.tensor([[8.0]]))
    assert torch.equal(
        reference.dequantize(weight, torch.float64)[0, :2], torch.tensor([-2.5, 3.5], dtype=torch.float64)
    )
    y = reference.matmul(torch.ones(1, 128), weight, torch.tensor([1.0]))
    assert y.item() == 64 * (-2.5 + 3.5) + 1


@pytest.mark.parametrize(
    ("codes", "scales", "zeros", "message"),
    [
        (torch.zeros(8, 128, dtype=torch.int32), torch.ones(8, 1), torch.ones(8, 1), "in uint8"),
        (torch.zeros(8, 128, dtype=torch.uint8), torch.ones(8, 8), torch.ones(8, 8), "groups of 32, 64 or 128"),
        (torch.zeros(8, 128, dtype=torch.uint8), torch.ones(8, 1), torch.ones(8, 2), "Expected both"),
        (torch.full((8, 128), 16, dtype=torch.uint8), torch.ones(8, 1), torch.ones(8, 1), "code of 16"),
        (torch.zeros(8, 128, dtype=torch.uint8), torch.ones(8, 1), torch.full((8, 1), 7.5), "zero point"),
        (torch.zeros(8, 128, dtype=torch.uint8), torch.full((8, 1), 1e6), torch.ones(8, 1), "up to 65504"),
    ],
    ids=["dtype", "group size", "shapes", "code", "zero", "scale"],
)
def test_what_cannot_be_packed_is_refused(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        W4Weight.pack(codes, scales, zeros)
