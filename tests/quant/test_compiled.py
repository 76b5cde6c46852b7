"""What numba compiles for a CPU, against exact arithmetic and against the decoder in PyTorch.

M rows, N outputs, K inputs, g group size, L layers, B batch
"""

import itertools
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.programs import run_program
from tests.quant.conftest import exact_product, random_weight, relative_error
from torch import Tensor, nn

from vila_core.config import DecoderConfig
from vila_core.language.decoder import Decoder
from vila_core.language.paged_cache import PagedCache
from vila_quant.kernels import LinearShape, choose, forced
from vila_quant.kernels.cpu.compiled.attention import attend, write
from vila_quant.kernels.cpu.compiled.kernel import CompiledKernel, nibbles
from vila_quant.kernels.cpu.compiled.numbers import exp
from vila_quant.kernels.cpu.compiled.products import fill_panel, whole_numbers
from vila_quant.kernels.cpu.compiled.tiles import TILE, WORTH_A_TILE
from vila_quant.kernels.cpu.crossover import NEVER, Plan, pinned
from vila_quant.kernels.cpu.pages import LARGE_PAGE, large_pages
from vila_quant.linears.decoding import CompiledDecodeStep
from vila_quant.linears.eight_bit_linear import EightBitLinear
from vila_quant.linears.groupwise_linear import GroupwiseLinear
from vila_quant.packing.groupwise import GroupwiseWeight, quantize

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    LinearShape(64, 128, 128),
    LinearShape(72, 64, 32),
    LinearShape(200, 192, 64),
    LinearShape(16, 1152, 128),
    LinearShape(8, 32, 32),
]


def random_rows(rows: int, inputs: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_few_rows_and_panels_are_the_product(
    shape: LinearShape, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vila_quant.kernels.cpu.compiled.kernel.PANEL_ELEMENTS", 32 * shape.inputs)  # several panels
    kernel, weight = CompiledKernel(), random_weight(shape)
    packed = kernel.pack(weight, CPU, dtype)
    allowed = {torch.float32: 2e-4, torch.bfloat16: 3e-3, torch.float16: 5e-4}[
        dtype
    ]  # 15 bits of activations; the result is rounded
    for rows in (0, 1, 2, 7, 33):
        x = random_rows(rows, shape.inputs, dtype)
        exact = exact_product(x, weight)
        for panel_dtype, panel_error in ((torch.float32, allowed), (torch.bfloat16, 6e-3)):
            with pinned(Plan(8, panel_dtype)):
                y = kernel.multiply(x, packed, shape)
            assert y.shape == (rows, shape.outputs)
            assert y.dtype == dtype
            if rows:
                assert relative_error(y, exact) < (allowed if rows < 8 else panel_error)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_in_tiles_are_the_rows_one_by_one(shape: LinearShape) -> None:
    kernel, weight = CompiledKernel(), random_weight(shape)
    packed = kernel.pack(weight, CPU, torch.float32)
    rows = {1, WORTH_A_TILE - 1, WORTH_A_TILE, TILE - 1, TILE, TILE + 1, 2 * TILE + WORTH_A_TILE, 3 * TILE + 1, 100}
    for count in sorted(rows):
        x = random_rows(count, shape.inputs, torch.float32)
        x[:: count // 3 + 1] *= 1e-3  # rows have their own scales
        with pinned(Plan(NEVER, torch.float32)):
            together = kernel.multiply(x, packed, shape)
            alone = torch.cat([kernel.multiply(x[i : i + 1], packed, shape) for i in range(count)])
        assert torch.equal(together, alone), f"{count} rows"
        assert relative_error(together, exact_product(x, weight)) < 2e-4


def test_a_row_that_is_not_finite_in_a_tile_harms_no_other() -> None:
    shape = LinearShape(64, 128, 128)
    kernel = CompiledKernel()
    packed = kernel.pack(random_weight(shape), CPU, torch.float32)
    x = random_rows(TILE, 128, torch.float32)
    with pinned(Plan(NEVER, torch.float32)):
        expected = kernel.multiply(x, packed, shape)
        x[3, 5], x[4, 6] = torch.nan, torch.inf
        y = kernel.multiply(x, packed, shape)
    assert y[3:5].isnan().all()
    others = [row for row in range(TILE) if row not in (3, 4)]
    assert torch.equal(y[others], expected[others])


def test_hand_computed_numbers() -> None:
    # One group of 32 inputs: q = 0 … 15 twice, scale 1/2, zero 3. With x = 0 … 31 the product is Σ (q - 3) / 2 · x.
    q = torch.arange(32, dtype=torch.uint8).remainder(16).expand(16, 32).contiguous()
    weight = GroupwiseWeight(q, torch.full((16, 1), 0.5), torch.full((16, 1), 3.0), 4)
    x = torch.arange(32.0)
    expected = float((((q[0].double() - 3) / 2) * x.double()).sum())
    kernel, shape = CompiledKernel(), LinearShape(16, 32, 32)
    y = kernel.multiply(x[None], kernel.pack(weight, CPU, torch.float32), shape)
    torch.testing.assert_close(y, torch.full((1, 16), expected), rtol=1e-4, atol=0)


def test_the_largest_sums_fit() -> None:
    # Every product of the group at its largest: 15 · 16383, and the zero as far away as it can be.
    shape = LinearShape(16, 128, 128)
    kernel = CompiledKernel()
    for q, zero in ((15, 0), (0, 15)):
        weight = GroupwiseWeight(
            torch.full((16, 128), q, dtype=torch.uint8), torch.ones(16, 1), torch.full((16, 1), float(zero)), 4
        )
        for sign, rows in itertools.product((1.0, -1.0), (1, TILE)):
            with pinned(Plan(NEVER, torch.float32)):
                y = kernel.multiply(torch.full((rows, 128), sign), kernel.pack(weight, CPU, torch.float32), shape)
            torch.testing.assert_close(y, torch.full((rows, 16), sign * 128 * (q - zero)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_panel_is_the_weight(dtype: torch.dtype) -> None:
    shape = LinearShape(48, 192, 64)
    weight = random_weight(shape)
    panel = torch.full((32, 192), torch.nan, dtype=dtype)
    numbers = panel.numpy() if dtype == torch.float32 else panel.view(torch.uint16).numpy()
    fill_panel(nibbles(CompiledKernel().pack(weight, CPU, dtype)), 1, numbers)
    exact = GroupwiseWeight(weight.q, weight.scales.float(), weight.zeros.float(), 4).dequantize()[16:]
    assert torch.equal(panel, exact.to(dtype))


def test_activations_are_cut_to_fifteen_bits() -> None:
    x = random_rows(3, 256, torch.float32).numpy()
    x[1, :128] = 0
    x[2, 5] = 1e-38
    a = whole_numbers(x, 128)
    assert np.abs(a.values).max(axis=1).tolist() == [16383] * 3
    assert (a.values[1, :128] == 0).all()
    assert a.scales[1, 0] == 0
    assert (a.sums == a.values.reshape(3, 2, 128).sum(axis=2)).all()
    whole = a.values.reshape(3, 2, 128) * a.scales[..., None]
    assert (np.abs(whole - x.reshape(3, 2, 128)) <= a.scales[..., None] * 0.5001 + 1e-37).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_seen_in_the_result(bad: float) -> None:
    shape = LinearShape(32, 256, 128)
    kernel = CompiledKernel()
    packed = kernel.pack(random_weight(shape), CPU, torch.float32)
    x = random_rows(2, 256, torch.float32)
    x[1, 200] = bad
    y = kernel.multiply(x, packed, shape)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


def test_a_gradient_is_refused_and_not_lost() -> None:
    shape = LinearShape(32, 64, 64)
    kernel = CompiledKernel()
    x = random_rows(1, 64, torch.float32).requires_grad_()
    with pytest.raises(RuntimeError, match="requires grad"):
        kernel.multiply(x, kernel.pack(random_weight(shape), CPU, torch.float32), shape)


def test_a_weight_takes_half_a_byte_and_packs_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = LinearShape(256, 512, 128)
    once = CompiledKernel().pack(random_weight(shape), CPU, torch.bfloat16)
    assert sum(tensor.nbytes for tensor in once) == 256 * 512 // 2 + 3 * 256 * 4
    monkeypatch.setattr("vila_quant.kernels.cpu.compiled.kernel.PACKED_AT_ONCE", 48 * 512)
    for whole, pieces in zip(once, CompiledKernel().pack(random_weight(shape), CPU, torch.bfloat16), strict=True):
        assert torch.equal(whole, pieces)


@pytest.mark.parametrize("inputs", [64, 192, 1536])
def test_an_int8_head_is_exact_to_fifteen_bits(inputs: int) -> None:
    head = EightBitLinear("int8", 70, inputs, bias=False)
    head.weight.random_(-127, 128, generator=torch.Generator().manual_seed(0))
    head.weight_scale.uniform_(0.001, 0.01, generator=torch.Generator().manual_seed(1))
    head.reset_buffers(CPU, torch.float32)
    x = random_rows(3, inputs, torch.float32)
    assert relative_error(head(x), x.double() @ (head.weight.double() * head.weight_scale.double()).T) < 1e-4


@pytest.mark.parametrize(
    ("shape", "device", "reason"),
    [
        (LinearShape(64, 128, 128), "cuda", "not on cuda"),
        (LinearShape(64, 256, 256), "cpu", "groups of 32, 64, 128, not 256"),
        (LinearShape(64, 128, 128, bits=3), "cpu", "4 bits, not 3"),
    ],
)
def test_the_kernel_gives_a_reason_to_refuse(shape: LinearShape, device: str, reason: str) -> None:
    assert reason in str(CompiledKernel().refusal(shape, torch.device(device), torch.bfloat16))


def test_without_numba_other_kernels_run_with_a_warning() -> None:
    script = """
import sys
import warnings
sys.modules["numba"] = None  # as if it were not installed
import torch
from vila_core.config import DecoderConfig
from vila_quant.linears.eight_bit_linear import EightBitLinear
from vila_quant.kernels import LinearShape, choose
from vila_quant.kernels.builtin import KERNELS
cpu, shape = torch.device("cpu"), LinearShape(64, 128, 128)
reason = KERNELS[0].refusal(shape, cpu, torch.bfloat16)
assert "vila-quant[cpu]" in reason, reason
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        assert choose(shape, cpu, torch.bfloat16).name == "cpu-int4pack"
(warning,) = caught
assert "'cpu-int4pack' runs instead of the faster 'cpu-numba'" in str(warning.message), warning
assert "vila-quant[cpu]" in str(warning.message), warning
head = EightBitLinear("int8", 16, 64, bias=False)
head.reset_buffers(cpu, torch.bfloat16)
assert head(torch.ones(1, 64, dtype=torch.bfloat16)).shape == (1, 16)
assert head.kernel.name == "int8-pack"
"""
    done = run_program([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


def test_without_a_writable_cache_each_process_compiles_again() -> None:
    script = """
from numba.core.caching import CompileResultCacheImpl
CompileResultCacheImpl._locator_classes = []  # no folder will do
import numpy as np
from vila_quant.kernels.cpu.compiled.products import whole_numbers
assert type(whole_numbers._cache).__name__ == "NullCache"
assert whole_numbers(np.ones((1, 32), np.float32), 32).values.tolist() == [[16383] * 32]
"""
    done = run_program([sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr


def test_compiling_is_announced_once_and_loading_from_the_cache_is_silent(tmp_path: Path) -> None:
    script = """
import numpy as np
from vila_quant.kernels.cpu.compiled.products import whole_numbers
whole_numbers(np.ones((1, 32), np.float32), 32)
whole_numbers(np.ones((1, 32), np.float32).T.copy().T, 32)  # another memory layout, compiled by itself
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    said = [run_program([sys.executable, "-c", script], env=environment, check=True).stderr for _ in range(2)]
    assert said[0].count("Compiling the CPU kernels") == 1
    assert said[1] == ""


@pytest.mark.parametrize(
    ("settings", "numba_threads"), [({"OMP_PROC_BIND": "close"}, 2), ({"NUMBA_NUM_THREADS": "1"}, 1)]
)
def test_pytorch_keeps_its_threads_and_numba_uses_as_many_by_default(
    settings: dict[str, str], numba_threads: int
) -> None:
    script = f"""
import torch
from vila_quant.kernels.cpu.compiled.compiler import numba, share_threads
share_threads()
assert (torch.get_num_threads(), numba.get_num_threads()) == (2, {numba_threads})
"""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "OMP_"))}
    done = run_program([sys.executable, "-c", script], env=others | {"OMP_NUM_THREADS": "2"} | settings)
    assert done.returncode == 0, done.stderr


def test_memory_in_large_pages_is_memory() -> None:
    for shape in ((3, 5), (LARGE_PAGE // 2 + 3, 9)):
        tensor = large_pages(shape, torch.int32)
        assert tensor.shape == shape
        assert tensor.dtype == torch.int32
        tensor.fill_(7)
        assert bool((tensor == 7).all())


def test_exponentials_are_those_of_float32() -> None:
    for x in (-86.0, -3.3, -1e-6, 0.0, 0.5, 20.0, 87.0):
        assert exp(np.float32(x)) == pytest.approx(float(torch.tensor(x).exp()), rel=1e-6)
    assert np.isnan(exp(np.float32(np.nan)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [16, 64, 256])
@pytest.mark.parametrize(("heads", "key_heads", "width", "length"), [(12, 2, 128, 200), (4, 4, 40, 65), (3, 1, 64, 1)])
def test_attention_is_that_of_pytorch(
    dtype: torch.dtype, heads: int, key_heads: int, width: int, length: int, size: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, held = torch.tensor([length, max(1, length // 3)]), -(-length // size)
    q = torch.randn(2, heads, 1, width, generator=generator)
    pages = [torch.randn(2 * held + 1, key_heads, size, width, generator=generator).to(dtype) for _ in range(2)]
    table = torch.randperm(2 * held + 1, generator=generator)[: 2 * held].view(2, held)
    as_numbers = [cache.numpy() if dtype == torch.float32 else cache.view(torch.uint16).numpy() for cache in pages]
    y = torch.from_numpy(attend(q[:, :, 0].numpy(), *as_numbers, table.numpy(), lengths.numpy()))
    for row in range(2):
        k, v = (cache[table[row]].transpose(0, 1).flatten(1, 2)[:, : lengths[row]].float() for cache in pages)
        expected = nn.functional.scaled_dot_product_attention(q[row], k, v, enable_gqa=True)
        torch.testing.assert_close(y[row], expected[:, 0], rtol=1e-4, atol=1e-5)


def test_values_that_are_not_finite_are_cached_as_zeros() -> None:
    cache = np.ones((2, 1, 16, 8), np.float32)
    heads = np.full((1, 1, 8), 3, np.float32)
    heads[0, 0, :3] = np.nan, np.inf, -np.inf
    write(cache, np.array([[0, 1]]), np.array([20]), heads)
    assert cache[1, 0, 3].tolist() == [0, 0, 0, 3, 3, 3, 3, 3]
    assert cache.sum() == 2 * 16 * 8 - 8 + 15


def decoder(*, dtype: torch.dtype = torch.float32, group_size: int = 32, **changes: object) -> Decoder:
    """Return a random decoder of four bits, whose biases are not zero."""
    sizes = {
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    fixed = {"head_dim": 32, "vocab_size": 96, "max_length": 128, "max_position_embeddings": 128, "rope_theta": 1e4}
    config = DecoderConfig.model_validate(
        {"architecture": "qwen2", "attention_bias": True, "tie_word_embeddings": True} | sizes | fixed | changes
    )
    generator = torch.Generator().manual_seed(0)
    llm = Decoder(config)
    llm.reset_parameters(std=0.2, generator=generator)
    for name, parameter in llm.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    llm.to(torch.bfloat16).to(dtype)  # the same weights in every dtype
    for parent in list(llm.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                linear = GroupwiseLinear(
                    LinearShape(child.out_features, child.in_features, group_size), bias=child.bias is not None
                )  # pyright: ignore[reportUnnecessaryComparison]
                linear.bias = child.bias
                linear.use_weight(quantize(child.weight.detach().float(), 4, group_size), CPU, dtype)
                setattr(parent, name, linear)
    llm.use_step(CompiledDecodeStep(llm))
    return llm.eval().requires_grad_(False)


def decode(llm: Decoder, batch: int, *, compiled: bool, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states of five tokens after prompts of seven (or `lengths`), and the cache."""
    step = step_of(llm)
    step.__dict__.pop("compiled", None)
    if not compiled:
        step.__dict__["compiled"] = None
    embeds = torch.randn(batch, 12, llm.config.hidden_size, generator=torch.Generator().manual_seed(1)).to(
        llm.model.norm.weight.dtype
    )
    cache = llm.new_cache(batch, 16)
    positions = torch.tensor([[7]]) if lengths is None else lengths[:, None]
    with torch.inference_mode(), pinned(Plan(8, torch.float32)):
        llm(embeds[:, :7], cache=cache, lengths=lengths)
        steps = [llm.decode_step(embeds[:, i : i + 1], positions + i - 7, cache.up_to(i + 1)) for i in range(7, 12)]
    return torch.cat(steps, dim=1), cache.keys.clone(), cache.values.clone()


def step_of(llm: Decoder) -> CompiledDecodeStep:
    step = llm._step
    assert isinstance(step, CompiledDecodeStep)
    return step


VARIANTS = {
    "qwen2": {},
    "qwen3": {"architecture": "qwen3", "qk_norm": True, "attention_bias": False},
    "llama": {"architecture": "llama", "attention_bias": False, "num_key_value_heads": 4},
    "biases everywhere": {"architecture": "llama", "attention_out_bias": True, "mlp_bias": True},
    "a window that sees all": {"sliding_window": 64},
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_compiled_decoder_is_the_decoder(changes: dict[str, object], batch: int) -> None:
    llm = decoder(**changes)
    for got, expected in zip(decode(llm, batch, compiled=True), decode(llm, batch, compiled=False), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)
    assert step_of(llm).compiled is None  # the second run's
    decode(llm, batch, compiled=True)
    assert step_of(llm).compiled is not None


def test_in_bf16_it_is_nearer_to_fp32_than_the_decoder_in_pytorch() -> None:
    exact = decode(decoder(), 2, compiled=False)[0]
    small = decoder(dtype=torch.bfloat16)
    compiled, eager = (relative_error(decode(small, 2, compiled=flag)[0], exact) for flag in (True, False))
    assert compiled < 1.2 * eager
    assert compiled < 0.05


def test_rows_of_other_lengths() -> None:
    llm = decoder()
    lengths = torch.tensor([7, 4])
    ours, eager = (decode(llm, 2, compiled=compiled, lengths=lengths)[0] for compiled in (True, False))
    torch.testing.assert_close(ours, eager, rtol=2e-3, atol=2e-3)


def test_rows_of_a_paged_cache() -> None:
    llm = decoder()
    cache = PagedCache.allocate(llm.config, 5, page_size=64, device=CPU, dtype=torch.float32)
    rows, contiguous = cache.rows(torch.tensor([[3, 0], [1, 4]])), llm.new_cache(2, 128)
    embeds = torch.randn(2, 70, llm.config.hidden_size, generator=torch.Generator().manual_seed(1))
    step_of(llm).__dict__.pop("compiled", None)
    with torch.inference_mode(), pinned(Plan(8, torch.float32)):
        for one in (rows, contiguous):
            llm(embeds[:, :62], cache=one)
        for at in range(62, 70):
            x, positions = embeds[:, at : at + 1], torch.tensor([[at], [at]])
            ours, expected = (llm.decode_step(x, positions, one.up_to(at + 1)) for one in (rows, contiguous))
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert step_of(llm).compiled is not None


def test_a_cache_in_8_bits_goes_the_decoders_own_way_and_says_so() -> None:
    llm = decoder()
    caches = [
        PagedCache.allocate(llm.config, 3, page_size=64, device=CPU, dtype=torch.float32, in_8_bits=in_8_bits)
        for in_8_bits in (False, True)
    ]
    embeds = torch.randn(1, 10, llm.config.hidden_size, generator=torch.Generator().manual_seed(1))
    steps: list[Tensor] = []
    with torch.inference_mode(), pinned(Plan(8, torch.float32)):
        for cache in caches:
            rows = cache.rows(torch.tensor([[2, 0]]))
            llm(embeds[:, :9], cache=rows)
            if cache.scales is None:
                steps.append(llm.decode_step(embeds[:, 9:], torch.tensor([[9]]), rows.up_to(10)))
            else:
                with pytest.warns(UserWarning, match="does not read a KV cache in 8 bits"):
                    steps.append(llm.decode_step(embeds[:, 9:], torch.tensor([[9]]), rows.up_to(10)))
    assert 0 < relative_error(steps[1], steps[0]) < 0.1


def test_a_full_window_goes_the_decoders_own_way() -> None:
    narrow = decoder(sliding_window=4)
    assert torch.equal(decode(narrow, 1, compiled=True)[0], decode(narrow, 1, compiled=False)[0])


def test_linears_of_other_kernels_or_shapes_are_not_compiled() -> None:
    with forced("reference"):
        assert step_of(decoder()).compiled is None
    mixed = decoder()
    layer = mixed.model.layers[1]
    layer.mlp.gate_proj = GroupwiseLinear(LinearShape(160, 64, 64), bias=False)
    layer.mlp.gate_proj.use_weight(random_weight(LinearShape(160, 64, 64)), CPU, torch.float32)
    assert step_of(mixed).compiled is None
    y, _, _ = decode(decoder(), 1, compiled=True)
    assert y.isfinite().all()


def test_a_compiled_decoder_keeps_one_copy_of_its_weights() -> None:
    llm = decoder()
    before = [
        [part.clone() for part in module.packed] for module in llm.modules() if isinstance(module, GroupwiseLinear)
    ]
    assert step_of(llm).compiled is not None
    linears = [module for module in llm.modules() if isinstance(module, GroupwiseLinear)]
    for parts, module in zip(before, linears, strict=True):
        assert all(torch.equal(old, new) for old, new in zip(parts, module.packed, strict=True))
    first, second = (llm.model.layers[i].mlp.up_proj.packed[0] for i in (0, 1))
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def test_names_in_a_state_dict_stay() -> None:
    whole = Decoder(decoder().config)
    names = set(whole.state_dict())
    whole.use_step(CompiledDecodeStep(whole))
    assert set(whole.state_dict()) == names


def test_the_choice_on_a_cpu() -> None:
    for dtype in DTYPES:
        assert choose(LinearShape(64, 128, 128), CPU, dtype).name == "cpu-numba"
