"""How a step is computed: recomputation, compiled layers and 8-bit linears change no values; operations are counted."""

import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from tests.interpreted_kernels import run_interpreted
from tests.train.mixed_rows import mixed_row
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vila_core as vila
from vila_core.config import DecoderConfig
from vila_core.language.decoder import MLP, Decoder
from vila_core.language.packed import PackedSequences
from vila_core.model import VilaModel
from vila_train import adapters, compute
from vila_train.compute import blocks
from vila_train.compute.fp8 import Fp8Linear, fp8_refusal, frozen_linears, quantize_frozen, quantize_rows, use_fp8
from vila_train.compute.layers import repeated_layers
from vila_train.compute.lora import add_in_place
from vila_train.compute.peak import named_peak
from vila_train.config import AdapterConfig, ComputeConfig
from vila_train.errors import TrainingError
from vila_train.packing import PackedRow, packed_loss

SMALL = {
    "architecture": "qwen2", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 8,
    "max_position_embeddings": 8, "max_length": 8,
}  # fmt: skip


def load() -> VilaModel:
    return vila.load("vila-tiny", dtype="float32", device="cpu").network


@pytest.fixture(scope="module")
def row() -> PackedRow:
    return mixed_row(vila.load("vila-tiny", dtype="float32", device="cpu"))


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


@pytest.mark.parametrize(
    ("recomputed", "adapter"),
    [
        ("full", None),
        ("linears", None),
        ("linears", AdapterConfig(rank=4, dropout=0.3)),
        ("full", AdapterConfig(method="dora", rank=4)),
    ],
)
def test_recomputation_changes_nothing(recomputed: str, adapter: AdapterConfig | None, row: PackedRow):
    results: list[tuple[float, dict[str, torch.Tensor]]] = []
    for setting in ("none", recomputed):
        network = load()
        network.requires_grad_(True)
        torch.manual_seed(0)
        if adapter is not None:
            adapters.install(network, adapter)
        compute.prepare(network, ComputeConfig(activation_checkpointing=setting))  # pyright: ignore[reportArgumentType]
        network.train()
        torch.manual_seed(0)  # of dropout
        results.append(step(network, row))
    assert results[1][0] == results[0][0]
    assert difference(results[1][1], results[0][1]) < 1e-6


def kept_bytes(network: VilaModel, row: PackedRow) -> int:
    """Return the size of what is kept for the backward pass."""
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in network.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        packed_loss(network, row)
    return sum(kept.values())


def test_recomputation_keeps_less(row: PackedRow):
    sizes: dict[str, int] = {}
    for setting in ("none", "linears", "full"):
        network = load()
        network.requires_grad_(True)
        compute.prepare(network, ComputeConfig(activation_checkpointing=setting))  # pyright: ignore[reportArgumentType]
        sizes[setting] = kept_bytes(network, row)
    assert sizes["full"] < sizes["linears"] < 0.7 * sizes["none"]


class CountAttention(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts forward passes of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "scaled_dot_product" in func.name() and "backward" not in func.name()
        return func(*args, **(kwargs or {}))


def test_attention_is_computed_once(row: PackedRow):
    counts: dict[str, int] = {}
    for setting in ("none", "linears", "full"):
        network = load()
        network.requires_grad_(False)
        network.llm.requires_grad_(True)
        compute.prepare(network, ComputeConfig(activation_checkpointing=setting))  # pyright: ignore[reportArgumentType]
        with CountAttention() as counter:
            step(network, row)
        counts[setting] = counter.count
    assert counts["linears"] == counts["none"]
    assert counts["full"] > counts["none"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recomputed", "adapter"),
    [("none", None), ("linears", None), ("linears", AdapterConfig(rank=4, dropout=0.0))],
)
def test_compiled_layers_agree(recomputed: str, adapter: AdapterConfig | None, row: PackedRow):
    results: list[tuple[float, dict[str, torch.Tensor]]] = []
    for config in (
        ComputeConfig(activation_checkpointing="none"),
        ComputeConfig(activation_checkpointing=recomputed, compile=True),  # pyright: ignore[reportArgumentType]
    ):
        network = load()
        network.requires_grad_(True)
        torch.manual_seed(0)
        if adapter is not None:
            adapters.install(network, adapter)
        compute.prepare(network, config)
        results.append(step(network, row))
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-5)
    assert difference(results[1][1], results[0][1]) < 1e-4


def test_names_and_values_stay(row: PackedRow):
    network = load()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    compute.prepare(network, ComputeConfig(activation_checkpointing="linears"))
    use_fp8(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name for name, _ in network.named_parameters()} == {name for name, _ in load().named_parameters()}


def test_layers_are_those_of_tower_and_language_model(new_micro_network: Callable[[], VilaModel]):
    network = new_micro_network()
    layers = repeated_layers(network)
    assert [type(layer).__name__ for layer in layers] == ["EncoderLayer"] * 2 + ["Block"] * 2
    adapters.install(network, AdapterConfig(rank=2))
    assert repeated_layers(network) == layers


@pytest.mark.parametrize(("dropout", "projector"), [(0.0, False), (0.0, True), (0.3, True)])
def test_sums_in_place_equal_those_of_peft(dropout: float, projector: bool, row: PackedRow):
    results: list[tuple[float, dict[str, torch.Tensor]]] = []
    for in_place in (False, True):
        network = load()
        network.requires_grad_(False)
        network.mm_projector.requires_grad_(projector)
        torch.manual_seed(0)
        adapters.install(network, AdapterConfig(rank=4, dropout=dropout, parts=("language_model", "vision_tower")))
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.05)
        if in_place:
            add_in_place(network)
        network.train()
        torch.manual_seed(0)  # of dropout
        results.append(step(network, row))
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-5)
    assert difference(results[1][1], results[0][1]) < 1e-5


@pytest.mark.parametrize("in_8_bits", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linears_of_one_input_equal_those_one_by_one(bias: bool, in_8_bits: bool):
    """In fp64 the sums in place differ from autograd's by rounding only; in 8 bits, a column has one scale for both."""
    torch.manual_seed(0)
    mlp = MLP(DecoderConfig(**SMALL, mlp_bias=bias)).double().requires_grad_(False)
    for name in ("gate_proj", "up_proj"):
        base = Fp8Linear.of(getattr(mlp, name)) if in_8_bits else getattr(mlp, name)
        adapted = LoraLinear(base, "default", LoraConfig(), r=3 if name == "up_proj" else 5, lora_alpha=4)
        for factors in (adapted.lora_A, adapted.lora_B):
            factors.requires_grad_(True).double()
            nn.init.normal_(factors["default"].weight)
        setattr(mlp, name, adapted)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    results: list[list[torch.Tensor]] = []
    for together in (False, True):
        if together:
            add_in_place(mlp)
            assert "gate_and_up" in vars(mlp)
        own = x.clone().requires_grad_()
        mlp.zero_grad()
        gate, up = mlp.gate_and_up(own)
        ((gate * 3).sin() + up * up).sum().backward()
        trained = [parameter for parameter in mlp.parameters() if parameter.requires_grad]
        assert own.grad is not None
        results.append([gate, up, own.grad, *(parameter.grad.clone() for parameter in trained)])
    assert len(results[0]) == 7
    for found, expected in zip(results[1], results[0], strict=True):
        assert (found - expected).norm() < (1e-2 if in_8_bits else 1e-12) * expected.norm()


@pytest.mark.parametrize("recomputed", ["none", "linears", "full"])
@pytest.mark.parametrize(("in_8_bits", "bias"), [(False, True), (True, False)])
def test_blocks_by_hand_equal_those_of_autograd(recomputed: str, in_8_bits: bool, bias: bool):
    """In fp64 the gradients of a stack of blocks differ by rounding only."""
    torch.manual_seed(0)
    config = DecoderConfig(**{**SMALL, "num_hidden_layers": 2}, attention_bias=bias)
    model = Decoder(config).double().requires_grad_(False)
    adapt_all(model, in_8_bits)
    packed = PackedSequences.of([3, 1, 5], torch.device("cpu"))
    x, target = torch.randn(2, 1, 9, 16, dtype=torch.float64)
    results: list[list[torch.Tensor]] = []
    for by_hand in (False, True):
        if by_hand:
            groups = add_in_place(model)
            blocks.prepare_layers(model, recomputed, compiled=True, groups=groups)  # pyright: ignore[reportArgumentType]
        for learns in (True, False):
            own = x.clone().requires_grad_(learns)
            model.zero_grad()
            y = model(own, packed=packed)
            (y * target).sum().backward()
            grad_factors = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
            results.append([y.detach(), *([own.grad] if own.grad is not None else []), *grad_factors])
    assert len(results[0]) == 2 + 2 * 2 * 7
    for before, after in zip(results[:2], results[2:], strict=True):
        for found, expected in zip(after, before, strict=True):
            assert (found - expected).norm() < (0.1 if in_8_bits else 1e-9) * expected.norm()


def adapt_all(model: nn.Module, in_8_bits: bool) -> None:
    """Put LoRA of random factors on all linears of the layers of `model`."""
    for name, linear in [*model.named_modules()]:
        if type(linear) is nn.Linear and "layers" in name:
            base = Fp8Linear.of(linear) if in_8_bits else linear
            adapted = LoraLinear(base, "default", LoraConfig(), r=3 if "up" in name else 5, lora_alpha=4)
            for factors in (adapted.lora_A, adapted.lora_B):
                factors.requires_grad_(True).double()
                nn.init.normal_(factors["default"].weight, std=0.1)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, adapted)


@pytest.mark.parametrize(("dropout", "by_hand"), [(0.0, True), (0.1, False)])
def test_blocks_are_computed_by_hand_where_they_fit(dropout: float, by_hand: bool):
    network = load()
    network.requires_grad_(False)
    adapters.install(network, AdapterConfig(rank=2, dropout=dropout))
    compute.prepare(network, ComputeConfig(activation_checkpointing="none", compile=True, precision="fp32"))
    forwards = [layer.forward for layer in repeated_layers(network.llm)]
    assert [forward.lora is not None for forward in forwards] == [by_hand] * len(forwards)


@pytest.mark.parametrize("change", ["a fused step", "a loaded state"])
def test_factors_in_16_bits_follow_those_in_fp32(change: str, row: PackedRow):
    """AdamW's fused step does not count its writes, so nothing but the next forward pass sees them."""
    network = load()
    network.requires_grad_(False).to(torch.bfloat16)
    torch.manual_seed(0)
    adapters.install(network, AdapterConfig(rank=4, dropout=0.0))
    untouched = copy.deepcopy(network)
    compute.prepare(network, ComputeConfig(activation_checkpointing="none"))
    step(network, row)
    if change == "a fused step":
        torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1, fused=True).step()
    else:
        state = network.state_dict()
        network.load_state_dict({n: t + 0.1 if ".lora_" in n else t for n, t in state.items()})
    untouched.load_state_dict(network.state_dict())
    compute.prepare(untouched, ComputeConfig(activation_checkpointing="none"))
    found, expected = step(network, row), step(untouched, row)
    assert found[0] == expected[0]
    assert difference(found[1], expected[1]) == 0


def test_adapters_in_fp32_work_on_weights_in_16_bits(row: PackedRow):
    network = load()
    network.requires_grad_(False).to(torch.bfloat16)
    adapters.install(network, AdapterConfig(rank=4, dropout=0.0))
    compute.prepare(network, ComputeConfig(activation_checkpointing="none"))
    _, gradients = step(network, row)
    assert gradients
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())


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


def test_a_gpu_quantizes_rows_as_the_reference_does():
    run_interpreted(
        """
import torch
from vila_train.compute.fp8 import quantize_rows_reference
from vila_train.compute.kernels import launch_quantize

generator = torch.Generator().manual_seed(0)
for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
    for width in (48, 300, 3584):
        x = torch.randn(3, width, generator=generator).bfloat16()
        x[0] = 0
        x[1] *= 1e-12
        q, scale = launch_quantize(x, dtype)
        expected, expected_scale = quantize_rows_reference(x, dtype)
        assert torch.equal(scale, expected_scale), (scale, expected_scale)
        assert q.dtype == dtype
        # The interpreter's rounding loses the carry to the next power of two, and is coarse below normal numbers.
        info, t = torch.finfo(dtype), x.float() / scale
        carries = (expected.float().abs().frexp().mantissa == 0.5) & (expected.float().abs() > t.abs())
        compared = (t.abs() >= info.smallest_normal) & ~carries
        assert compared.float().mean() > 0.5
        assert ((q.float() - t).abs() <= 0.501 * info.eps * t.abs())[compared].all(), (dtype, width)
"""
    )


def test_a_gpu_computes_between_products_as_the_reference_does():
    run_interpreted(KERNELS_AGAINST_REFERENCES.replace("DEVICE", "cpu"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_kernels_between_products_on_a_gpu():
    exec(KERNELS_AGAINST_REFERENCES.replace("DEVICE", "cuda"), {})


KERNELS_AGAINST_REFERENCES = """
import torch
from vila_train.compute import block_ops, kernels

def near(found, expected, tolerance=0.01):
    assert torch.isfinite(found.float()).all()
    assert (found.float() - expected.float()).norm() < tolerance * expected.float().norm()

def random(*shape):
    return torch.randn(shape, generator=generator).bfloat16().to("DEVICE")

generator = torch.Generator().manual_seed(0)
tokens, inner, width, heads, head_dim = 5, 2100, 300, 3, 64
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
gate, up = random(tokens, 2 * inner).split(inner, 1)
grad_inner, x, change, added, grad_y = random(tokens, inner), *random(4, tokens, width)
weight = random(width)
wide = lambda *tensors: [None if one is None else one.float() for one in tensors]

for quantized in (False, True):
    y, codes = kernels.launch_swiglu(gate, up, E4M3 if quantized else None)
    near(y, block_ops.swiglu(*wide(gate, up), None)[0])
    joint, grad_codes = kernels.launch_swiglu_backward(grad_inner, gate, up, E5M2 if quantized else None)
    near(joint, block_ops.swiglu_backward(*wide(grad_inner, gate, up), None)[0])
    pairs = [(y, codes), (joint, grad_codes)]
    for term in (None, change):
        total, y, codes = kernels.launch_norm(x, term, weight, 1e-6, E4M3 if quantized else None)
        expected = block_ops.add_norm(*wide(x, term, weight), 1e-6, None)
        near(total, expected[0])
        near(y, expected[1])
        pairs.append((y, codes))
    for y, codes in pairs if quantized else []:  # the interpreter's rounding loses the carry to the next power of two
        near(codes[0].float() * codes[1], y, 0.15)
        largest = torch.finfo(codes[0].dtype).max
        scales = y.abs().amax(1, keepdim=True).float() / largest
        torch.testing.assert_close(codes[1], scales, rtol=1e-6, atol=0)  # a GPU's division is not exactly rounded
found = kernels.launch_norm_backward(grad_y, x, weight, 1e-6, added)
near(found, block_ops.norm_backward(*wide(grad_y, x, weight), 1e-6, added.float()))

angles = random(tokens, head_dim // 2).repeat(1, 2)
vectors = random(tokens, heads, head_dim)
for direction in (1, -1, 0):
    expected = torch.empty(tokens, heads * head_dim, device="DEVICE")
    block_ops.rotate_rows(*wide(vectors, angles.cos(), angles.sin()), expected, direction)
    out = torch.full((tokens, 300), torch.nan, device="DEVICE").bfloat16()
    kernels.launch_rotate(vectors, angles.cos(), angles.sin(), out[:, 20 : 20 + expected.shape[1]], direction)
    near(out[:, 20 : 20 + expected.shape[1]], expected)
    assert out[:, :20].isnan().all() and out[:, 20 + expected.shape[1] :].isnan().all()
    in_place = vectors.clone()
    kernels.launch_rotate(in_place, angles.cos(), angles.sin(), in_place.flatten(1), direction)
    near(in_place.flatten(1), expected)

x[1, 7], x[2] = torch.nan, 0
codes, scales = kernels.launch_quantize(x, E4M3)
assert scales.isnan().flatten().tolist() == [False, True, False, False, False]
assert (codes[2].float() == 0).all()
"""


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


@pytest.mark.parametrize("trained", [False, True])
def test_only_a_frozen_tower_computes_without_gradients(trained: bool, row: PackedRow):
    results: list[tuple[float, dict[str, torch.Tensor]]] = []
    for prepared in (False, True):
        network = load()
        network.requires_grad_(False)
        network.mm_projector.requires_grad_(True)
        network.vision_tower.requires_grad_(trained)
        if prepared:
            compute.prepare(network, ComputeConfig(activation_checkpointing="none", precision="fp32"))
        results.append(step(network, row))
        features = network.features(torch.zeros(1, 3, network.config.pixels.size, network.config.pixels.size))
        assert features.requires_grad is trained
    assert results[1][0] == results[0][0]
    assert difference(results[1][1], results[0][1]) == 0


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
