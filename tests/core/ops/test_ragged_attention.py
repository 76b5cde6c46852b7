"""Attention of several new tokens per row to a paged cache: in the interpreter, and compiled for each GPU."""

import sys
from pathlib import Path

import pytest
from tests.interpreted_kernels import run_interpreted

from vila_core.language.paged_prefill import pack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

INTERPRETED = """
import torch
from vila_core.language.paged_prefill import pack
from vila_core.ops import ragged_attention as module, reference

def fill_new_tensors_with_nan():
    original = torch.Tensor.new_empty
    def new_empty(self, *shape, **options):
        made = original(self, *shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made
    torch.Tensor.new_empty = new_empty

fill_new_tensors_with_nan()
generator = torch.Generator().manual_seed(0)

def randn(*shape):
    return torch.randn(*shape, generator=generator).half()

# (first position, tokens) of each row
for heads, kv_heads, width, page, rows, padding, window in (
    (14, 2, 64, 64, ((0, 12),), 4, 0),
    (7, 1, 128, 64, ((0, 20),), 0, 0),
    (4, 4, 64, 128, ((130, 5),), 3, 0),
    (8, 2, 64, 64, ((0, 1), (0, 9), (70, 3), (300, 2), (63, 2)), 7, 0),
    (4, 1, 64, 64, ((200, 20), (0, 12)), 2, 50),
    (6, 2, 64, 64, ((60, 10), (0, 1)), 1, 1),
):
    for few, splits, long in ((256, 16, True), (0, 1, True), (256, 3, True), (0, 1, False)):
        module.FEW_TOKENS = module.FEW_IN_LONG = few
        module.MAX_SPLITS = splits
        count = sum(tokens for _, tokens in rows)
        size, longest = count + padding, max(start + tokens for start, tokens in rows)
        per_row = -(-longest // page) + 1
        order = torch.randperm(len(rows) * per_row + 2, generator=generator)[: len(rows) * per_row].view(len(rows), -1)
        keys, values = (torch.full((order.numel() + 2, kv_heads, page, width), torch.nan).half() for _ in range(2))
        for row, (start, _) in enumerate(rows):
            for position in range(start):
                for cache in (keys, values):
                    cache[order[row, position // page], :, position % page] = randn(kv_heads, width)
        qkv = randn(size, (heads + 2 * kv_heads) * width)
        angle = torch.rand(longest, width // 2, generator=generator) * 6
        layout = [(start, tokens, order[row].tolist()) for row, (start, tokens) in enumerate(rows)]
        expected, *caches = reference.ragged_attention(
            qkv[:count].double(), angle.cos().double(), angle.sin().double(), layout, keys.double(), values.double(),
            window or None,
        )
        packed = pack(layout, size, page=page, block=module.block_tokens(size, heads // kv_heads, long=long))
        assert [packed.positions[place] for place in packed.last] == [start + tokens - 1 for start, tokens in rows]
        blocks = torch.tensor(packed.blocks, dtype=torch.int32).view(-1, 4)
        new = module.RaggedTokens(
            torch.tensor(packed.positions), torch.tensor(packed.slots),
            torch.cat([blocks, torch.zeros(2, 4, dtype=torch.int32)]), order.int(),
        )
        written = ~keys.isnan()
        got = module.attend(qkv, angle.cos(), angle.sin(), new, keys, values, window, long=long)[:count]
        name = f"{heads} {kv_heads} {width} {rows} {window} {splits} {long}"
        error = ((got.double() - expected).norm() / expected.norm()).item()
        assert error < 2e-3, f"{name}: {error}"
        for cache, wanted in zip((keys, values), caches, strict=True):
            assert torch.equal(cache.isnan(), wanted.isnan()), name
            assert (cache.double() - wanted).nan_to_num().abs().max() < 2e-3, name

# Values that are not finite are written as 0, since later tokens multiply them by 0.
qkv = randn(2, 3 * 64)
qkv[0, 64:] = torch.inf
keys, values = torch.full((1, 1, 64, 64), torch.nan).half(), torch.full((1, 1, 64, 64), torch.nan).half()
new = module.RaggedTokens(
    torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([[0, 2, 0, 0]], dtype=torch.int32),
    torch.zeros(1, 1, dtype=torch.int32),
)
out = module.attend(qkv, angle.cos()[:, :32].contiguous(), angle.sin()[:, :32].contiguous(), new, keys, values)
assert out[1].isfinite().all()
assert keys[0, 0, :2].isfinite().all() and values[0, 0, 0].eq(0).all()
"""


def test_the_kernels_match_the_oracle() -> None:
    run_interpreted(INTERPRETED)


def test_the_kernels_fit_every_gpu(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    from tests.compiled_kernels import SHARED_MEMORY, stack_bytes
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vila_core.ops.ragged_attention import BLOCK, merge_kernel, place_kernel, ragged_attention_kernel

    kinds = {"cos_pointer": "*fp32", "sin_pointer": "*fp32", "parts_pointer": "*fp32", "sums_pointer": "*fp32",
             "positions_pointer": "*i64", "slots_pointer": "*i64", "blocks_pointer": "*i32", "table_pointer": "*i32",
             "scale": "fp32"}  # fmt: skip
    attention = {"GROUP": 7, "WIDTH": 128, "BLOCK": BLOCK, "PDL": False}
    for capability, shared in SHARED_MEMORY.items():
        for kernel, constants, warps in (
            (place_kernel, {"WIDTH": 128, "HEADS": 32, "KV_HEADS": 4, "PDL": False}, 4),
            (ragged_attention_kernel, {**attention, "ROWS": 64, "IN_PARTS": True}, 4),
            (ragged_attention_kernel, {**attention, "ROWS": 128, "IN_PARTS": False}, 8),
            (merge_kernel, {**attention, "ROWS": 64}, 4),
        ):
            names = list(kernel.arg_names)
            types = {name: "*bf16" if name.endswith("_pointer") else "i32" for name in names} | kinds
            types = {name: "constexpr" if name in constants else types[name] for name in names}
            aligned = {
                (names.index(name),): [["tt.divisibility", 16]]
                for name in names
                if name.endswith(("_pointer", "_stride")) or name == "page"
            }
            made = triton.compile(
                ASTSource(kernel, types, {(names.index(name),): value for name, value in constants.items()}, aligned),
                target=GPUTarget("cuda", capability, 32),
                options={"num_warps": warps, "num_stages": 2},
            )
            spilled = stack_bytes(made, tmp_path)
            assert spilled <= (0 if capability == 90 else 64), f"sm{capability}: {spilled} bytes of registers spilled"
            assert made.metadata.shared <= shared * 1024


@pytest.mark.parametrize(
    ("prompts", "size", "positions", "slots", "blocks", "last"),
    [
        ([(0, 3, [5])], 4, [0, 1, 2, -1], [20, 21, 22, -1], [0, 2, 0, 0, 2, 1, 2, 0], [2]),
        ([(3, 2, [5, 1])], 2, [3, 4], [23, 4], [0, 2, 3, 0], [1]),
        (
            [(0, 1, [2]), (6, 3, [0, 3, 1])],
            4,
            [0, 6, 7, 8],
            [8, 14, 15, 4],
            [0, 1, 0, 0, 1, 2, 6, 1, 3, 1, 8, 1],
            [0, 3],
        ),
    ],
)
def test_prompts_are_laid_out_one_after_the_other(
    prompts: list[tuple[int, int, list[int]]],
    size: int,
    positions: list[int],
    slots: list[int],
    blocks: list[int],
    last: list[int],
) -> None:
    packed = pack(prompts, size, page=4, block=2)
    assert (packed.positions, packed.slots, packed.blocks, packed.last) == (positions, slots, blocks, last)
