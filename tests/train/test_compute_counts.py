"""Counted operations of a step, and what GPUs can do at most."""

import pytest
import torch
from tests.train.compute_steps import load
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vila_core.model import VilaModel
from vila_train import adapters, compute
from vila_train.compute.fp8 import use_fp8
from vila_train.compute.peak import named_peak
from vila_train.config import AdapterConfig, ComputeConfig
from vila_train.packing import PackedRow, packed_loss


def counted(network: VilaModel, row: PackedRow) -> tuple[float, float]:
    """Return torch's count of operations of products with weights, and of attention, in a training step."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        packed_loss(network, row).backward()
    counts = counter.get_flop_counts()["Global"]
    attention = sum(count for operator, count in counts.items() if "bmm" in str(operator))
    return counter.get_total_flops() - attention, attention


TUNED = {
    "all": ("vision_tower", "mm_projector", "llm"),
    "projector": ("mm_projector",),
    "tower and projector": ("vision_tower", "mm_projector"),
    "projector and language model": ("mm_projector", "llm"),
}


@pytest.mark.parametrize("tuned", TUNED)
def test_products_are_those_that_torch_counts(tuned: str, row: PackedRow):
    network = load()
    network.requires_grad_(False)
    for part in TUNED[tuned]:
        getattr(network, part).requires_grad_(True)
    products, attention = counted(network, row)
    flops = compute.ModelFlops.of(network)
    own = flops.of_row(row)
    tiles = sum(len(medium.tiles) for medium in row.batch.media)
    of_tower = flops.tower.attention * tiles * (3 if "vision_tower" in TUNED[tuned] else 1)
    of_layers = 3 * flops.pair * sum(length * (length + 1) / 2 for length in row.batch.lengths)
    assert own - of_tower - of_layers == pytest.approx(products, rel=0.03)
    # Torch counts the masked half too.
    assert of_tower + 3 * flops.pair * sum(length**2 for length in row.batch.lengths) == pytest.approx(attention)


def test_frozen_weights_cost_less(row: PackedRow):
    full = load()
    full.requires_grad_(True)
    adapted = load()
    adapted.requires_grad_(False)
    adapters.install(adapted, AdapterConfig(rank=4, dropout=0.0))
    products, _ = counted(adapted, row)
    of_all, of_adapters = compute.row_flops(full, row), compute.row_flops(adapted, row)
    assert of_adapters < 0.72 * of_all
    flops = compute.ModelFlops.of(adapted)
    assert flops.layers.step(sum(row.batch.lengths)) < products < of_adapters * 1.1


def test_recomputation_is_not_counted(row: PackedRow):
    network = load()
    before = compute.row_flops(network, row)
    compute.prepare(network, ComputeConfig(activation_checkpointing="full"))
    use_fp8(network)
    assert compute.row_flops(network, row) == before


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H200", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA H20", 148.0),
        ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA A10G", None), ("NVIDIA A10", 125.0), ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0), ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Some GPU", None),
    ],
)  # fmt: skip
def test_peaks_are_found_by_name(name: str, teraflops: float | None):
    assert named_peak(name) == (None if teraflops is None else teraflops * 1e12)


def test_a_cpu_has_no_peak():
    assert compute.peak_flops(torch.device("cpu")) is None
