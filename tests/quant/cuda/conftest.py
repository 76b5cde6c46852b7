"""Weights for the tests of the W4A16 kernels."""

from collections.abc import Callable

import pytest
import torch

from vila_quant.kernels.cuda.w4a16 import W4Weight

RandomWeight = Callable[..., W4Weight]


@pytest.fixture
def random_weight() -> RandomWeight:
    def make(outputs: int, inputs: int, group_size: int, device: str = "cpu") -> W4Weight:
        generator = torch.Generator().manual_seed(outputs + inputs + group_size)
        groups = inputs // group_size
        codes = torch.randint(16, (outputs, inputs), dtype=torch.uint8, generator=generator)
        scales = (0.5 + torch.rand(outputs, groups, generator=generator)) / (44 * inputs) ** 0.5
        zeros = torch.randint(16, (outputs, groups), generator=generator).float()
        return W4Weight.pack(codes, scales, zeros, torch.device(device))

    return make
