"""The operators, and the captured decode step, on an NVIDIA GPU against fp64."""

import pytest
import torch

from vila_core.config import DecoderConfig
from vila_core.language.decoder import Decoder
from vila_core.ops import reference

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]

TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
GPU = torch.device("cuda")


def randn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, device=GPU).to(dtype)


def assert_close(y: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str) -> None:
    error = ((y.double() - expected).norm() / expected.norm()).item()
    largest = ((y.double() - expected).abs().max() / expected.abs().max()).item()
    assert error < tolerance, f"{name}: relative error {error:.2e}"
    assert largest < 8 * tolerance, f"{name}: largest error {largest:.2e} of the largest result"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_norms_and_products(dtype: torch.dtype) -> None:
    from vila_core.ops.linear import linear, swiglu_linear
    from vila_core.ops.norm import add_rms_norm
    from vila_core.ops.swiglu import swiglu

    tolerance = TOLERANCE[dtype]
    for rows, width in ((1, 3584), (5, 2048), (64, 4096), (3, 1000)):
        x, residual, weight = (
            randn(rows, width, dtype=dtype),
            randn(rows, width, dtype=dtype),
            randn(width, dtype=dtype),
        )
        y, h = add_rms_norm(x, residual, weight, 1e-6)
        expected = reference.add_rms_norm(x.double(), residual.double(), weight.double(), 1e-6)
        assert_close(y, expected[0], tolerance, f"norm {rows} x {width}")
        assert_close(h, expected[1], tolerance, f"sum {rows} x {width}")
        wide = randn(rows, 2 * width, dtype=dtype)
        assert_close(swiglu(wide), reference.swiglu(wide.double()), tolerance, f"swiglu {rows} x {width}")
    for tokens in (1, 2, 7, 16, 17, 64):
        for sizes, inputs in (((3584, 512, 512), 3584), ((2048,), 11008), ((3000,), 18944), ((96, 31), 264)):
            x, weights = randn(tokens, inputs, dtype=dtype), [randn(n, inputs, dtype=dtype) for n in sizes]
            biases = [randn(n, dtype=dtype) for n in sizes]
            expected = reference.linear(x.double(), [w.double() for w in weights], [b.double() for b in biases])
            assert_close(linear(x, weights, biases), expected, tolerance, f"{tokens} x {inputs} -> {sizes}")
        x, gate, up = (randn(n, 3584, dtype=dtype) for n in (tokens, 1024, 1024))
        expected = reference.swiglu(reference.linear(x.double() / 60, (gate.double(), up.double()), (None, None)))
        assert_close(swiglu_linear((x / 60).contiguous(), gate, up), expected, 3 * tolerance, f"swiglu of {tokens}")


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "dtype"),
    [
        (28, 4, 128, torch.float16), (28, 4, 128, torch.bfloat16), (16, 2, 128, torch.bfloat16),
        (14, 2, 64, torch.float16), (8, 8, 128, torch.float16),
    ],
    ids=str,
)  # fmt: skip
def test_attention(heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> None:
    from vila_core.ops.attention import decode_attention
    from vila_core.ops.rotary import rotate_and_write

    slots = 5000
    angle = torch.rand(slots, width // 2, device=GPU) * 6
    cos, sin = angle.cos(), angle.sin()
    for positions, window in (((0,), 0), ((300,), 0), ((4999, 63, 64, -1, 2000), 0), ((4000, 100), 1000)):
        rows, places = len(positions), torch.tensor(positions, device=GPU)
        qkv = randn(rows, (heads + 2 * kv_heads) * width, dtype=dtype)
        keys, values = (torch.full((rows, kv_heads, slots, width), torch.nan, device=GPU, dtype=dtype) for _ in "kv")
        for row, position in enumerate(positions):
            if position > 0:
                keys[row, :, :position] = randn(kv_heads, position, width, dtype=dtype)
                values[row, :, :position] = randn(kv_heads, position, width, dtype=dtype)
        counters = torch.zeros(rows * kv_heads, dtype=torch.int32, device=GPU)
        given = [t.double() for t in (qkv, cos, sin)]
        expected, _, _ = reference.decode_attention(*given, places, keys.double(), values.double(), window or None)
        copies = keys.clone(), values.clone()
        q = rotate_and_write(qkv, cos, sin, places, *copies)
        rotated, _, _ = reference.rotate_and_write(*given, places, keys.double(), values.double())
        assert_close(q, rotated, TOLERANCE[dtype], "rotated queries")
        for _ in range(3):
            out = decode_attention(qkv, cos, sin, places, keys, values, counters, None, window)
            assert_close(out, expected, 2 * TOLERANCE[dtype], f"attention at {positions}, window {window}")
            assert not counters.any()
        assert torch.equal(keys.nan_to_num(), copies[0].nan_to_num())


def test_sampling_keeps_the_right_tokens() -> None:
    from vila_core.ops.sampling import choose_tokens

    rows, vocabulary = 6, 151_936
    for dtype in (torch.float32, *TOLERANCE):
        logits = (3 * torch.randn(rows, vocabulary, device=GPU)).to(dtype)
        temperature = torch.tensor([0.0, 0.7, 1.0, 1.5, 1.0, 0.5], device=GPU)
        top_k = torch.tensor([0, 5, 0, 50, 0, 3000], dtype=torch.int32, device=GPU)
        top_p = torch.tensor([1.0, 1.0, 0.3, 0.9, 1.0, 0.99], device=GPU)
        penalty, none = torch.ones(rows, device=GPU), torch.zeros(rows, device=GPU)
        counts = torch.zeros(rows, vocabulary, dtype=torch.int32, device=GPU)
        penalties = penalty, none, none, counts, torch.zeros(rows, vocabulary, device=GPU)
        allowed = torch.full((rows, -(-vocabulary // 32)), -1, dtype=torch.int32, device=GPU)
        seeds, positions = torch.arange(rows, device=GPU), torch.zeros(rows, dtype=torch.int64, device=GPU)
        ids = torch.zeros_like(positions)
        settings = temperature, top_k, top_p, seeds, *penalties, allowed, 1
        kept = [
            reference.kept_tokens(row.double() / (heat or 1.0), int(k), float(p))
            for row, heat, k, p in zip(logits, temperature.tolist(), top_k, top_p, strict=True)
        ]
        for step in range(20):
            chosen = choose_tokens(logits, ids, positions, *settings, True, True, True, False, False)
            assert torch.equal(chosen, ids)
            assert int(positions[0]) == step + 1
            assert all(bool(kept[row][token]) for row, token in enumerate(chosen.tolist())), (dtype, chosen)
            assert chosen[0] == logits[0].argmax()
        greedy = choose_tokens(logits, ids, positions, *settings, False, False, False, False, False)
        assert torch.equal(greedy, logits.argmax(-1))


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(28, 4, 128), (14, 2, 64)])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attention_in_8_bits(heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> None:
    from vila_core.ops import eight_bits
    from vila_core.ops.attention import decode_attention

    pages = 40
    cos, sin = torch.ones(pages * 64, width // 2, device=GPU), torch.zeros(pages * 64, width // 2, device=GPU)
    for positions, magnitude in (((0,), 1.0), ((2500,), 0.01), ((2500, 63, 64, -1, 2000), 30.0)):
        rows, places = len(positions), torch.tensor(positions, device=GPU)
        table = torch.randperm(rows * pages, device=GPU).view(rows, pages).int()
        qkv = randn(rows, (heads + 2 * kv_heads) * width, dtype=dtype)
        given = [randn(rows * pages, kv_heads, 64, width, dtype=dtype) * size for size in (1.0, magnitude)]
        codes, scales, numbers = zip(*(eight_bits.quantize(one) for one in given), strict=True)
        for one, of_one, scale in zip(given, codes, scales, strict=True):  # the kernel and PyTorch agree
            on_host = eight_bits.quantize(one.cpu())
            assert torch.equal(of_one.cpu(), on_host[0])
            assert torch.equal(scale.cpu(), on_host[1])
        rows_of = [one[table.long()].transpose(1, 2).flatten(2, 3).double() for one in numbers]
        doubles = [t.double() for t in (qkv, cos, sin)]
        expected, *_ = reference.decode_attention(
            *doubles, places, *rows_of, rounded=lambda x: eight_bits.quantize(x)[2]
        )
        counters = torch.zeros(rows * kv_heads, dtype=torch.int32, device=GPU)
        for _ in range(3):
            out = decode_attention(qkv, cos, sin, places, *codes, counters, table, 0, scales)
            assert_close(out, expected, 2 * TOLERANCE[dtype], f"attention at {positions}")
            assert not counters.any()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("dtype", "in_8_bits", "window"),
    [
        (torch.float16, False, None),
        (torch.bfloat16, False, 40),
        (torch.float16, True, None),
        (torch.bfloat16, True, 40),
    ],
)
def test_a_paged_step_follows_the_decoder(dtype: torch.dtype, *, in_8_bits: bool, window: int | None) -> None:
    from vila_core.language.paged_cache import PagedCache
    from vila_core.language.paged_graphs import GraphPagedStep
    from vila_core.language.paged_rows import RowSampling, StepKind
    from vila_core.language.paged_step import TorchPagedStep, paged_step

    torch.manual_seed(0)
    decoder = Decoder(small_config(sliding_window=window)).to(GPU)
    decoder.reset_parameters(std=0.05)
    decoder = decoder.to(dtype).requires_grad_(False)
    lengths, sampling = (5, 90, 64, 700, 3), RowSampling(seed=3)
    prompts = [randn(length, 512, dtype=dtype) for length in lengths]
    for count in (len(prompts), 1):
        free = torch.randperm(32).tolist()
        pages = [[free.pop() for _ in range(-(-(length + 30) // 64))] for length in lengths[-count:]]
        steps = []
        for _ in range(2):
            cache = PagedCache.allocate(decoder.config, 32, device=GPU, dtype=dtype, in_8_bits=in_8_bits)
            step = paged_step(decoder, cache, 6, 16)
            assert isinstance(step, GraphPagedStep)
            steps.append(TorchPagedStep(decoder, cache, step.rows) if steps else step)
            for row, (prompt, of_row) in enumerate(zip(prompts[-count:], pages, strict=True)):
                view = cache.rows(torch.tensor([of_row], device=GPU)).up_to(len(prompt))
                decoder(prompt[None], positions=torch.arange(len(prompt), device=GPU)[None], cache=view)
                step.rows.start(row, len(prompt), of_row, sampling)
        for number in range(6):
            ids = torch.randint(1000, (count,), device=GPU)
            for step in steps:
                step.rows.ids[:count] = ids
            ours, plain = (step.launch(count, StepKind()) for step in steps)
            # Numbers that differ in their last digit may get different codes.
            tolerance = max(4 * TOLERANCE[dtype], 2e-2 if in_8_bits else 0)
            assert_close(ours.logits, plain.logits.double(), tolerance, f"{count} rows, step {number}")
            assert ours.tokens() == ours.logits.argmax(-1).tolist()
        assert torch.equal(steps[0].rows.positions, steps[1].rows.positions)


def small_config(**changes: object) -> DecoderConfig:
    settings: dict[str, object] = {
        "architecture": "qwen2", "vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1536,
        "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 4096, "attention_bias": True, "max_length": 4096,
    }  # fmt: skip
    return DecoderConfig.model_validate(settings | changes)


@torch.inference_mode()
def test_prompts_read_in_graphs_give_what_the_decoder_gives() -> None:
    from vila_core.language.paged_cache import PagedCache
    from vila_core.language.paged_prefill import NextTokens, prefill_graphs
    from vila_core.language.paged_step import paged_step

    torch.manual_seed(0)
    for changes in ({}, {"sliding_window": 100}):
        decoder = Decoder(small_config(**changes)).to(GPU)
        decoder.reset_parameters(std=0.05)
        decoder = decoder.to(torch.float16).requires_grad_(False)
        caches = [PagedCache.allocate(decoder.config, 80, device=GPU, dtype=torch.float16) for _ in range(2)]
        read = prefill_graphs(decoder, caches[0], 40, paged_step(decoder, caches[0], 4, 40))
        assert read is not None
        pages = torch.randperm(80).tolist()
        # (tokens that are there already, new ones) of each prompt; what comes again is captured
        for prompts in (
            [(0, 1)], [(0, 31)], [(0, 700)], [(0, 64)], [(64, 65)], [(0, 20)], [(0, 700)], [(0, 64)], [(100, 30)],
            [(1500, 20)], [(1999, 40)], [(0, 9), (0, 40), (0, 3)], [(0, 60), (0, 1)], [(70, 20), (0, 33), (640, 1)],
            [(0, 40)] * 20, [(0, 30)] * 32, [(0, 1)], [(1000, 1000)],
        ):  # fmt: skip
            given: list[NextTokens] = []
            expected: list[torch.Tensor] = []
            for start, count in prompts:
                whole = randn(start + count, 512, dtype=torch.float16)
                held, pages = (
                    pages[: -(-len(whole) // 64)],
                    pages[-(-len(whole) // 64) :] + pages[: -(-len(whole) // 64)],
                )
                rows = [cache.rows(torch.tensor([held], device=GPU)) for cache in caches]
                if start:
                    for row in rows:
                        decoder(whole[None, :start], cache=row.up_to(start))
                positions = torch.arange(start, len(whole), device=GPU)[None] if start else None
                hidden = decoder(whole[None, start:], positions=positions, cache=rows[1].up_to(len(whole)))
                given.append(NextTokens(whole[start:], start, held))
                expected.append(hidden[0, -1])
            assert read.takes(given), prompts
            assert_close(read(given), torch.stack(expected).double(), 3e-3, f"{prompts} {changes}")
        assert_close(caches[0].keys, caches[1].keys.double(), 3e-3, "keys")
        assert_close(caches[0].values, caches[1].values.double(), 3e-3, "values")
        assert not read.takes([NextTokens(randn(2049, 512, dtype=torch.float16), 0, pages)])
