"""Training steps of vila-tiny, for the tests of what makes them fast."""

import torch

import vila_core as vila
from vila_core.model import VilaModel
from vila_train.packing import PackedRow, packed_loss


def load() -> VilaModel:
    return vila.load("vila-tiny", dtype="float32", device="cpu").network


def step(network: VilaModel, row: PackedRow) -> tuple[float, dict[str, torch.Tensor]]:
    network.zero_grad()
    loss = packed_loss(network, row) / row.num_labels
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the relative error of all gradients together."""
    assert found.keys() == expected.keys()
    total = sum(float((found[name] - tensor).square().sum()) for name, tensor in expected.items())
    return (total / sum(float(tensor.square().sum()) for tensor in expected.values())) ** 0.5
