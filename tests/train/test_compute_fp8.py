"""Products in 8 bits."""

from collections.abc import Callable

import pytest
import torch
from tests.train.compute_steps import difference, load, step
from torch import nn

from vila_core.model import VilaModel
from vila_train import adapters, compute
from vila_train.compute.fp8 import Fp8Linear, fp8_refusal, frozen_linears, quantize_frozen, quantize_rows, use_fp8
from vila_train.compute.lora import add_in_place
from vila_train.config import AdapterConfig, ComputeConfig
from vila_train.errors import TrainingError
from vila_train.packing import PackedRow


@pytest.mark.parametrize("tokens", [1, 5, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_an_8_bit_linear_is_near_the_exact_one(tokens: int, bias: bool):
    torch.manual_seed(0)
    exact = nn.Linear(96, 64, bias=bias)
    quantized = Fp8Linear.of(exact)
    x = torch.randn(2, tokens, 96) * torch.logspace(-6, 6, tokens)[:, None]  # rows of very different sizes
    results: list[tuple[torch.Tensor, ...]] = []
    for linear in (exact, quantized):
        exact.zero_grad()
        own = x.clone().requires_grad_()
        y = linear(own)
        (y * torch.linspace(-1, 1, 64)).sum().backward()
        assert own.grad is not None
        results.append((y.detach(), own.grad, exact.weight.grad.clone()))
    for found, expected in zip(results[1], results[0], strict=True):
        by_row = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert by_row.max() < 0.08  # E4M3 rounds to 1/16, E5M2 to 1/8
    assert torch.equal(results[1][2], results[0][2])  # gradients of weights are in full precision


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_rows_keep_their_largest_value(dtype: torch.dtype):
    x = torch.tensor([[1e-30, -2e-30, 0.0], [0.0, 0.0, 0.0], [3e4, -1e5, 7.0], [1.0, 0.5, -0.25]])
    quantized, scale = quantize_rows(x, dtype)
    restored = quantized.float() * scale
    assert torch.isfinite(restored).all()
    assert torch.allclose(restored.abs().amax(1), x.abs().amax(1), rtol=1e-6)
    assert torch.equal(restored[3], x[3])


def test_training_in_8_bits_follows_training_in_full(row: PackedRow):
    losses: list[list[float]] = []
    for in_8_bits in (False, True):
        network = load()
        network.requires_grad_(True)
        if in_8_bits:
            use_fp8(network)
            assert sum(isinstance(module, Fp8Linear) for module in network.modules()) % 7 == 0
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0)
        of_run: list[float] = []
        for _ in range(3):
            loss, _ = step(network, row)
            optimizer.step()
            of_run.append(loss)
        losses.append(of_run)
    exact, found = losses
    assert exact[-1] < 0.9 * exact[0]
    assert found == pytest.approx(exact, rel=0.08)


@pytest.mark.parametrize("adapted", [True, False])
def test_frozen_weights_are_quantized_once(adapted: bool, row: PackedRow):
    results: list[tuple[float, dict[str, torch.Tensor]]] = []
    for once in (False, True):
        network = load()
        network.requires_grad_(False)
        torch.manual_seed(0)
        if adapted:
            adapters.install(network, AdapterConfig(rank=4, dropout=0.0))
        network.mm_projector.requires_grad_(True)
        use_fp8(network)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        if once:
            quantize_frozen(network)
        after = network.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        add_in_place(network)
        if once:
            for linear in frozen_linears(network):
                linear.weight.data.fill_(torch.nan)  # what is computed does not read them
        results.append(step(network, row))
    assert results[1][0] == results[0][0]
    assert difference(results[1][1], results[0][1]) == 0


def test_dora_reads_its_weights_in_full_precision():
    network = load()
    adapters.install(network, AdapterConfig(method="dora", rank=4))
    assert not frozen_linears(network)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (7, 512), (300, 3584), (33, 18944)])
def test_rows_are_quantized_on_a_gpu(rows: int, width: int, dtype: torch.dtype):
    if reason := fp8_refusal(torch.device("cuda")):
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(width, rows, generator=generator).bfloat16().t()
    x[0] = 0
    quantized, scale = quantize_rows(x.cuda(), dtype)
    expected, expected_scale = quantize_rows(x, dtype)
    assert torch.equal(scale.cpu(), expected_scale)
    assert torch.equal(quantized.cpu().float(), expected.float())


def test_adapters_stay_in_full_precision(row: PackedRow):
    network = load()
    adapters.install(network, AdapterConfig(rank=4, dropout=0.0))
    use_fp8(network)
    kinds = {name: type(m) for name, m in network.llm.named_modules() if isinstance(m, nn.Linear)}
    assert all(kind is (nn.Linear if ".lora_" in name else Fp8Linear) for name, kind in kinds.items())
    _, gradients = step(network, row)
    assert gradients
    assert all(".lora_" in name for name in gradients)


def test_fp8_is_refused_on_a_cpu():
    with pytest.raises(TrainingError, match=r"need an NVIDIA GPU.*'cpu'.*Set compute\.fp8=false"):
        compute.prepare(load(), ComputeConfig(fp8=True))


@pytest.mark.parametrize(("capability", "refused"), [((8, 0), True), ((8, 6), True), ((8, 9), False), ((9, 0), False)])
def test_fp8_needs_a_gpu_with_8_bit_products(
    capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    reason = fp8_refusal(torch.device("cuda"))
    assert (reason is not None) is refused
    if reason is not None:
        assert f"Some GPU is sm{capability[0]}{capability[1]}" in reason


def test_fp8_refuses_widths_that_do_not_fit(new_micro_network: Callable[[], VilaModel]):
    network = new_micro_network()
    network.llm.model.layers[1].mlp.up_proj = nn.Linear(32, 40)
    with pytest.raises(TrainingError, match="up_proj has 32 and 40"):
        use_fp8(network)
