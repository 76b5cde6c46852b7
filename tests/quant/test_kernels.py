"""Every kernel against the reference and exact arithmetic, and the choice among kernels.

M rows, N outputs, K inputs, g group size, G = K / g groups
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.programs import run_program
from tests.quant.conftest import exact_product, random_weight, relative_error
from torch import Tensor
from typer.testing import CliRunner

import vila_core.plugins.loader
from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.checkpoint.tensors.memory import MemoryWeights
from vila_core.errors import ConfigError
from vila_core.plugins.loader import load_plugin_file
from vila_quant.checking.kernel_choices import choices, layers_of
from vila_quant.cli.main import app
from vila_quant.kernels import LinearShape, choose, choose_eight_bit, forced
from vila_quant.kernels.builtin import KERNELS
from vila_quant.kernels.cpu import int4pack
from vila_quant.kernels.cpu.compiled.kernel import CompiledKernel
from vila_quant.kernels.cpu.crossover import CROSSOVERS, NEVER, Plan, measured_plan, pinned
from vila_quant.kernels.cpu.int4pack import BlockLayout, CpuInt4PackKernel, block_layout
from vila_quant.kernels.cuda.tinygemm import TinygemmKernel, dequantize_words, pack_words, unpack_words
from vila_quant.kernels.cuda.w4a16.kernel import W4A16Kernel
from vila_quant.kernels.int8 import FEW_ROWS, PANEL_ELEMENTS
from vila_quant.kernels.reference import ReferenceKernel
from vila_quant.kernels.registry import all_kernels
from vila_quant.linears.eight_bit_linear import EightBitLinear
from vila_quant.linears.groupwise_linear import GroupwiseLinear
from vila_quant.packing.autoawq import pack_gemm
from vila_quant.packing.groupwise import GroupwiseWeight

CPU = torch.device("cpu")
BF16 = torch.bfloat16
ROWS = (0, 1, 2, 7, 33, 512)
SHAPES = [
    LinearShape(64, 128, 128),
    LinearShape(72, 64, 32),
    LinearShape(200, 192, 64),
    LinearShape(8, 512, 256),
    LinearShape(320, 96, 32),
]
IDS = [f"{shape.outputs}x{shape.inputs}g{shape.group_size}" for shape in SHAPES]
PANELS = {"fp32 panels": Plan(8, torch.float32), "bf16 panels": Plan(8, BF16), "no panels": Plan(1 << 20, BF16)}


def random_rows(rows: int, inputs: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows + 1)).to(dtype)


@pytest.mark.parametrize("plan", PANELS.values(), ids=PANELS.keys())
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_int4pack_is_as_exact_as_the_reference(shape: LinearShape, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        int4pack, "PANEL_ELEMENTS", 64 * shape.inputs
    )  # several panels, the last one smaller if N is ragged
    monkeypatch.setattr(torch, "empty", nan_filled(torch.empty))
    weight = random_weight(shape)
    kernel, reference = CpuInt4PackKernel(), ReferenceKernel()
    packed, whole = kernel.pack(weight, CPU, BF16), reference.pack(weight, CPU, BF16)
    for rows in ROWS:
        x = random_rows(rows, shape.inputs)
        with pinned(plan):
            y = kernel.multiply(x, packed, shape)
        assert y.shape == (rows, shape.outputs)
        assert y.dtype == BF16
        if rows:
            exact = exact_product(x, weight)
            got, want = relative_error(y, exact), relative_error(reference.multiply(x, whole, shape), exact)
            assert want < 0.004
            # bf16 scales and zeros; a bf16 panel rounds each weight once more.
            assert got < 1.5 * want + 0.0005, f"{rows} rows: {got:.5f}, the reference {want:.5f}"


def nan_filled(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `torch.empty` with NaN in what it allocates, so that unwritten elements show."""

    def fill(*args: object, **kwargs: object) -> Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    return fill


def test_int4pack_gives_hand_computed_numbers() -> None:
    # One group of 32 inputs: q = 0 … 15 twice, scale 1/2, zero 3. The weights are (q - 3) / 2; their sum is 72.
    q = torch.arange(32, dtype=torch.uint8).remainder(16).expand(16, 32).contiguous()
    weight = GroupwiseWeight(q, torch.full((16, 1), 0.5), torch.full((16, 1), 3.0), 4)
    shape = LinearShape(16, 32, 32)
    packed = CpuInt4PackKernel().pack(weight, CPU, BF16)
    for rows in (1, 16):
        with pinned(PANELS["fp32 panels"]):
            y = CpuInt4PackKernel().multiply(torch.ones(rows, 32, dtype=BF16), packed, shape)
        assert y.tolist() == [[72.0] * 16] * rows


def test_int4pack_stores_half_a_byte_per_weight() -> None:
    shape = LinearShape(256, 512, 128)
    packed = CpuInt4PackKernel().pack(random_weight(shape), CPU, BF16)
    assert (
        sum(tensor.nbytes for tensor in packed) == 256 * 512 // 2 + 4 * 256 * 4
    )  # nibbles, and scale and zero of each group


def test_packing_in_slices_equals_packing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = LinearShape(200, 64, 32)
    once = CpuInt4PackKernel().pack(random_weight(shape), CPU, BF16)
    monkeypatch.setattr(int4pack, "PACKED_AT_ONCE", 64)
    for whole, sliced in zip(once, CpuInt4PackKernel().pack(random_weight(shape), CPU, BF16), strict=True):
        assert torch.equal(whole, sliced)


def test_the_packed_layout_is_one_of_those_known() -> None:
    layout = block_layout()
    assert layout is not None
    assert layout.outputs in (16, 32, 64)


@pytest.mark.parametrize(
    "layout", [BlockLayout(64, True), BlockLayout(64, False), BlockLayout(32, True), BlockLayout(16, False)], ids=str
)
def test_panels_of_every_layout(layout: BlockLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's packing with AVX512, on Windows, with AVX2 and on ARM, redone here: two outputs per byte.
    q = torch.randint(16, (128, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    half = layout.outputs // 2
    packed = torch.empty(128 // layout.outputs, 32, half, dtype=torch.uint8)
    for block, rows in enumerate(q.split(layout.outputs)):
        for j in range(half):
            low, high = (j, j + half) if layout.halves else (2 * j, 2 * j + 1)
            packed[block, :, j] = rows[low] | rows[high] << 4
    scales = torch.arange(1, 129)[None, :, None].bfloat16()
    scales_and_zeros = torch.cat([scales, -scales], dim=-1)  # w = (q - 9) · scale, another scale for each output
    monkeypatch.setattr(int4pack, "block_layout", lambda: layout)
    y = int4pack._panels(torch.ones(1, 32, dtype=BF16), (packed.view(128, 16), scales_and_zeros), torch.float32)
    expected = ((q.float() - 9) * torch.arange(1, 129)[:, None]).sum(dim=1)
    assert torch.equal(y[0], expected.bfloat16())


@pytest.mark.skipif(sys.platform == "darwin", reason="PyTorch has one layout on ARM")
def test_the_layout_of_a_cpu_without_vectors_is_found_and_right() -> None:
    script = """
import torch
from vila_quant.kernels.cpu.crossover import Plan, pinned
from vila_quant.kernels.cpu.int4pack import CpuInt4PackKernel, block_layout
from vila_quant.packing.groupwise import GroupwiseWeight
from vila_quant.kernels import LinearShape
assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
assert not block_layout().halves
generator = torch.Generator().manual_seed(0)
q = torch.randint(16, (80, 64), dtype=torch.uint8, generator=generator)
weight = GroupwiseWeight(q, torch.ones(80, 2), torch.full((80, 2), 8.0), 4)
x = torch.randn(9, 64, generator=generator).bfloat16()
packed = CpuInt4PackKernel().pack(weight, torch.device("cpu"), torch.bfloat16)
with pinned(Plan(8, torch.float32)):
    y = CpuInt4PackKernel().multiply(x, packed, LinearShape(80, 64, 32))
assert torch.equal(y, (x.float() @ (q.float() - 8).T).bfloat16())
"""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    done = run_program([sys.executable, "-c", script], env=environment)
    assert done.returncode == 0, done.stderr


def test_a_cpu_with_an_unknown_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4pack, "block_layout", lambda: None)
    assert "unknown way" in str(CpuInt4PackKernel().refusal(LinearShape(64, 128, 128), CPU, BF16))
    assert choose(LinearShape(64, 128, 128), CPU, BF16).name == "cpu-numba"


def test_the_measured_plan_is_measured_once() -> None:
    first = measured_plan(CpuInt4PackKernel(), 64, 32, BF16, torch.get_num_threads())
    assert first.panels_from in (*CROSSOVERS, NEVER)
    assert measured_plan(CpuInt4PackKernel(), 64, 32, BF16, torch.get_num_threads()) is first


def test_panels_of_the_compiled_kernel_are_for_matrix_units_only(monkeypatch: pytest.MonkeyPatch) -> None:
    of_kernel = "vila_quant.kernels.cpu.compiled.kernel.HAS_BFLOAT16_MATRICES"
    monkeypatch.setattr(of_kernel, True)
    assert list(CompiledKernel().panel_dtypes(BF16)) == [BF16]
    assert not CompiledKernel().panel_dtypes(torch.float32)  # bfloat16 would lose digits
    monkeypatch.setattr(of_kernel, False)
    with monkeypatch.context() as patch:
        patch.setattr(CompiledKernel, "pack", None)  # nothing is packed to be timed
        plan = measured_plan(CompiledKernel(), 96, 32, BF16, torch.get_num_threads())
    assert plan.panels_from == NEVER


def convert_as_cuda_does(pairs: Tensor, inner_tiles: int) -> Tensor:
    """PyTorch's `matrix_to_m16n8k16_Bint4_layout` (int4mm.cu): `pairs [N, K/2]` -> `[N/8, K/16I, 32, I/2]`."""
    outputs, half = pairs.shape
    words = torch.zeros(outputs // 8, 2 * half // (16 * inner_tiles), 32, inner_tiles // 2, dtype=torch.int64)
    for tile, outer, lane, word in torch.cartesian_prod(*map(torch.arange, words.shape)).tolist():
        start = (outer * inner_tiles + 2 * word) * 16 // 2
        values = [int(pairs[8 * tile + lane // 4, start + lane % 4 + 4 * i]) for i in range(4)]
        low, high = ([value & 15 for value in values], [value >> 4 for value in values])
        words[tile, outer, lane, word] = sum(nibble << (4 * place) for place, nibble in enumerate([*high, *low]))
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("inputs", [32, 64, 96, 128, 384])
def test_tinygemm_words_unpack_to_the_packed_numbers(inputs: int) -> None:
    q = torch.randint(16, (24, inputs), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    words = pack_words(q, convert_as_cuda_does)
    assert words.shape[2] == 32
    assert words.numel() * 8 == q.numel()
    assert torch.equal(unpack_words(words), q)


def test_tinygemm_panels_equal_the_weight() -> None:
    shape = LinearShape(16, 128, 32)
    weight = random_weight(shape)
    scales = weight.scales.T.float()
    scales_and_zeros = torch.stack([scales, (8 - weight.zeros.T.float()) * scales], dim=-1)
    panel = dequantize_words(pack_words(weight.q, convert_as_cuda_does), scales_and_zeros)
    exact = GroupwiseWeight(weight.q, weight.scales.float(), weight.zeros.float(), 4).dequantize()
    torch.testing.assert_close(panel, exact, rtol=1e-6, atol=1e-7)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("shape", [*SHAPES[:4], LinearShape(1024, 3584, 128)], ids=[*IDS[:4], "1024x3584g128"])
def test_tinygemm_is_as_exact_as_the_reference(shape: LinearShape) -> None:
    device = torch.device("cuda")
    kernel, reference, weight = TinygemmKernel(), ReferenceKernel(), random_weight(shape)
    assert kernel.refusal(shape, device, BF16) is None
    packed, whole = kernel.pack(weight, device, BF16), reference.pack(weight, device, BF16)
    for rows in ROWS:
        x = random_rows(rows, shape.inputs)
        y = kernel.multiply(x.to(device), packed, shape)
        assert y.shape == (rows, shape.outputs)
        assert y.dtype == BF16
        if rows:
            exact = exact_product(x, weight)
            got = relative_error(y.cpu(), exact)
            want = relative_error(reference.multiply(x.to(device), whole, shape).cpu(), exact)
            assert got < 1.5 * want + 0.0005, f"{rows} rows: {got:.5f}, the reference {want:.5f}"


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_a_layer_repacks_and_releases_the_tensors_of_a_file(dtype: torch.dtype, bias: bool) -> None:
    shape = LinearShape(40, 64, 32)
    weight = random_weight(shape)
    stored = pack_gemm(weight)
    layer = GroupwiseLinear(shape, bias=bias)
    layer.load_state_dict(
        {"qweight": stored.qweight, "qzeros": stored.qzeros, "scales": stored.scales}
        | ({"bias": torch.arange(40.0)} if bias else {})
    )
    if layer.bias is not None:
        layer.bias.data = layer.bias.data.to(dtype)
    layer.reset_buffers(CPU, dtype)
    assert layer.kernel is not None
    assert layer.kernel.name == "cpu-numba"
    assert layer.qweight.numel() == layer.qzeros.numel() == layer.scales.numel() == 0
    x = random_rows(6, 64, dtype)
    y = layer(x.view(2, 3, 64))
    exact = exact_product(x, weight) + (torch.arange(40.0) if bias else 0)
    assert y.shape == (2, 3, 40)
    assert y.dtype == dtype
    # A reference in fp32 still has the file's fp16 weights.
    assert relative_error(y.view(6, 40), exact) < 0.005


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", [(40, 48), (200, 33), (8, 256), (41, 64)], ids=["40x48", "200x33", "8x256", "41x64"])
def test_weight_only_int8(shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vila_quant.kernels.int8.PANEL_ELEMENTS", 16 * shape[1])
    generator = torch.Generator().manual_seed(0)
    layer = EightBitLinear("int8", *shape, bias=True)
    layer.weight.random_(-127, 128, generator=generator)
    layer.weight_scale.uniform_(0.001, 0.01, generator=generator)
    assert layer.bias is not None
    layer.bias.data = torch.randn(shape[0], generator=generator).to(dtype)
    layer.reset_buffers(CPU, dtype)
    exact_weight = layer.weight.double() * layer.weight_scale.double()
    for rows in (0, 1, FEW_ROWS, FEW_ROWS + 1, 33):
        x = random_rows(rows, shape[1], dtype)
        y = layer(x)
        assert y.shape == (rows, shape[0])
        assert y.dtype == dtype
        if rows:
            exact = x.double() @ exact_weight.T + layer.bias.double()
            # Activations of few rows have 15 bits.
            assert relative_error(y, exact) < (2e-4 if dtype == torch.float32 else 0.006)


def test_int8_scales_survive_a_model_in_bf16() -> None:
    # The loader casts what is declared as float32 to the model's dtype; the scales must keep all their digits.
    layer = EightBitLinear("int8", 8, 16, bias=False)
    assert layer.weight_scale.dtype != torch.float32
    layer.weight_scale.fill_(0.1)
    layer.reset_buffers(CPU, BF16)
    assert layer.weight_scale.dtype == torch.float32
    assert layer.weight_scale.flatten().tolist() == torch.full((8,), 0.1).tolist()
    assert PANEL_ELEMENTS * 2 <= 64 * 2**20


def test_kernels_are_listed_by_priority() -> None:
    names = [kernel.name for kernel in all_kernels()]
    assert (
        names.index("cpu-numba") < names.index("cpu-int4pack") < names.index("cuda-tinygemm") < names.index("reference")
    )
    assert names[-1] == "reference"


def test_listed_kernels_match_their_modules() -> None:
    kernels = (CompiledKernel(), CpuInt4PackKernel(), W4A16Kernel(), TinygemmKernel(), ReferenceKernel())
    for listed, own in zip(KERNELS, kernels, strict=True):
        assert (listed.name, listed.target, listed.priority) == (own.name, own.target, own.priority)


@pytest.mark.parametrize(
    ("shape", "device", "dtype", "reason"),
    [
        (LinearShape(64, 128, 128), "cuda", BF16, "not on cuda"),
        (LinearShape(64, 128, 128), "cpu", torch.float32, "float32"),
        (LinearShape(64, 128, 128), "cpu", torch.float16, "float16"),
        (LinearShape(64, 96, 48), "cpu", BF16, "groups of 32, 64, 128, 256, not 48"),
        (LinearShape(64, 128, 128, bits=3), "cpu", BF16, "4 bits, not 3"),
        (LinearShape(2**18, 2**13, 128), "cpu", BF16, "32 bits"),
    ],
)
def test_int4pack_gives_a_reason_to_refuse(shape: LinearShape, device: str, dtype: torch.dtype, reason: str) -> None:
    assert reason in str(CpuInt4PackKernel().refusal(shape, torch.device(device), dtype))


@pytest.mark.parametrize(
    ("shape", "device", "dtype", "reason"),
    [
        (LinearShape(64, 128, 128), "cpu", BF16, "not on cpu"),
        (LinearShape(64, 128, 128), "cuda", torch.float16, "not float16"),
        (LinearShape(64, 96, 48), "cuda", BF16, "not 48"),
        (LinearShape(60, 128, 128), "cuda", BF16, "multiple of 8 outputs, not 60"),
    ],
)
def test_tinygemm_gives_a_reason_to_refuse(shape: LinearShape, device: str, dtype: torch.dtype, reason: str) -> None:
    assert reason in str(TinygemmKernel().refusal(shape, torch.device(device), dtype))


def test_a_forced_kernel_runs_or_fails() -> None:
    shape = LinearShape(64, 128, 128)
    assert choose(shape, CPU, BF16).name == "cpu-numba"
    with forced("reference"):
        assert choose(shape, CPU, BF16).name == "reference"
    with (
        forced("cpu-int4pack"),
        pytest.raises(ConfigError, match=r"'cpu-int4pack' was requested, but refuses .* float32"),
    ):
        choose(shape, CPU, torch.float32)
    with forced("cpu-int4pak"), pytest.raises(ConfigError, match=r"cpu-int4pak.*Did you mean 'cpu-int4pack'"):
        choose(shape, CPU, BF16)
    assert choose(shape, CPU, BF16).name == "cpu-numba"


def test_the_scheme_of_a_layer_decides_which_kernels_it_takes() -> None:
    names = {
        scheme: choose_eight_bit(LinearShape.eight_bit(scheme, 64, 128), CPU, BF16).name
        for scheme in ("int8", "w8a8", "fp8")
    }
    assert names == {"int8": "int8-numba", "w8a8": "w8a8-torch", "fp8": "fp8-dequantize"}


def test_a_forced_eight_bit_kernel_runs_its_own_scheme_only() -> None:
    with forced("int8-panels"):
        assert choose_eight_bit(LinearShape.eight_bit("int8", 64, 128), CPU, BF16).name == "int8-panels"
        assert choose_eight_bit(LinearShape.eight_bit("w8a8", 64, 128), CPU, BF16).name == "w8a8-torch"
        assert choose(LinearShape(64, 128, 128), CPU, BF16).name == "cpu-numba"
    with forced("w8a8-triton"), pytest.raises(ConfigError, match=r"'w8a8-triton' was requested, but refuses .*w8a8"):
        choose_eight_bit(LinearShape.eight_bit("w8a8", 64, 128), CPU, BF16)


def test_the_slow_reference_is_reported_unless_requested() -> None:
    shape = LinearShape(64, 176, 11)
    with pytest.warns(UserWarning, match=r"slow kernel 'reference' runs .* groups of 11.*cpu-numba: it takes groups"):
        assert choose(shape, CPU, BF16).name == "reference"
    with warnings.catch_warnings(), forced("reference"):
        warnings.simplefilter("error")
        assert choose(shape, CPU, BF16).name == "reference"


THIRD_PARTY = """
from vila_core import hookimpl

class Doubling:
    name, target, priority = "doubling", "any", 1000

    def refusal(self, shape, device, dtype):
        return "it takes 64 outputs" if shape.outputs != 64 else None

    def pack(self, weight, device, dtype):
        return (2 * weight.dequantize().to(device, dtype),)

    def multiply(self, x, packed, shape):
        return x @ packed[0].T

@hookimpl
def vila_kernels():
    return (Doubling(),)
"""


def test_a_kernel_of_a_plugin_file_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vila_core.plugins.loader, "_plugin_files", {})
    file = tmp_path / "kernel_plugin.py"
    file.write_text(THIRD_PARTY)
    load_plugin_file(file)
    shape = LinearShape(64, 128, 128)
    assert choose(shape, CPU, BF16).name == "doubling"
    assert choose(LinearShape(72, 128, 128), CPU, BF16).name == "cpu-numba"
    weight, layer = random_weight(shape), GroupwiseLinear(shape, bias=False)
    layer.use_weight(weight, CPU, torch.float32)
    x = random_rows(3, 128, torch.float32)
    torch.testing.assert_close(layer(x), 2 * exact_product(x, weight).float(), rtol=2e-3, atol=2e-3)


def test_the_command_lists_kernels_and_reasons() -> None:
    result = CliRunner().invoke(app, ["kernels", "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert (report["device"], report["dtype"]) == ("cpu", "bfloat16")
    sizes = {(layer["outputs"], layer["inputs"], layer["group_size"]) for layer in report["layers"]}
    assert sizes == {(3584, 3584, 128), (512, 3584, 128), (18944, 3584, 128), (3584, 18944, 128)}
    assert {layer["kernel"] for layer in report["layers"]} == {"cpu-numba"}
    assert "not on cpu" in report["layers"][0]["refusals"]["cuda-tinygemm"]


def test_the_command_reads_a_model_and_its_dtype() -> None:
    result = CliRunner().invoke(app, ["kernels", str(embedded_model()), "--device", "cpu", "--json"])
    report = json.loads(result.output)
    # A small model is loaded in fp32 on a CPU.
    assert report["dtype"] == "float32"
    assert {layer["kernel"] for layer in report["layers"]} == {"cpu-numba"}
    names = [name for layer in report["layers"] for name in layer["layers"]]
    assert sorted(name.rpartition(".")[2] for name in names) == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


def test_the_layers_of_a_quantized_model_come_from_its_file() -> None:
    tensors = {
        f"llm.model.layers.{layer}.mlp.up_proj.{name}": tensor
        for layer in range(2)
        for name, tensor in vars(pack_gemm(random_weight(LinearShape(72, 64, 32)))).items()
    }
    checkpoint = replace(open_checkpoint(embedded_model()), weights=MemoryWeights(tensors))
    assert layers_of(checkpoint) == {LinearShape(72, 64, 32): ("llm.model.layers.*.mlp.up_proj",)}


def test_eight_bit_layers_are_listed_with_their_scheme() -> None:
    name = "vision_tower.encoder.layers.{}.mlp.fc1"
    tensors = {
        f"{name.format(layer)}.{kind}": tensor
        for layer in range(2)
        for kind, tensor in (("weight", torch.ones(32, 64, dtype=torch.int8)), ("weight_scale", torch.ones(32, 1)))
    }
    checkpoint = replace(open_checkpoint(embedded_model()), weights=MemoryWeights(tensors))
    shape = LinearShape.eight_bit("w8a8", 32, 64)
    assert layers_of(checkpoint) == {shape: (name.format("*"),)}
    (choice,) = choices(layers_of(checkpoint), CPU, BF16)
    assert choice.kernel == "w8a8-torch"
    assert "not on cpu" in choice.refusals["w8a8-triton"]


def test_the_command_forces_a_kernel() -> None:
    result = CliRunner().invoke(app, ["kernels", "--device", "cpu", "--kernel", "reference", "--json"])
    assert {(layer["kernel"], layer["reason"]) for layer in json.loads(result.output)["layers"]} == {
        ("reference", "requested; the default is cpu-numba")
    }
    failed = CliRunner().invoke(app, ["kernels", "--device", "cpu", "--kernel", "cuda-tinygemm"])
    assert isinstance(failed.exception, ConfigError)
    assert "runs on an NVIDIA GPU" in str(failed.exception)
