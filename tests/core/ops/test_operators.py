"""What operators tell `torch.compile` of themselves."""

import sys

import pytest
from tests.interpreted_kernels import run_interpreted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

OPERATORS = """
import importlib, pkgutil
import torch
import vila_core.ops
from torch.library import opcheck

for module in pkgutil.iter_modules(vila_core.ops.__path__):
    importlib.import_module(f"vila_core.ops.{module.name}")

def randn(*shape, dtype=torch.float16):
    return torch.randn(*shape).to(dtype)

def zeros(*shape, dtype=torch.int64):
    return torch.zeros(*shape, dtype=dtype)

heads, kv, width, slots = 4, 2, 64, 64
qkv, positions = randn(2, (heads + 2 * kv) * width), torch.tensor([3, 0])
angles = randn(slots, width // 2, dtype=torch.float32), randn(slots, width // 2, dtype=torch.float32)
caches = randn(2, kv, slots, width), randn(2, kv, slots, width)
codes = zeros(2, kv, slots, width, dtype=torch.uint8), zeros(2, kv, slots, width, dtype=torch.uint8)
scales = torch.ones(2, kv, slots).bfloat16(), torch.ones(2, kv, slots).bfloat16()
counters, table = zeros(2 * kv, dtype=torch.int32), torch.tensor([[1], [0]], dtype=torch.int32)
x, wide, w, b = randn(3, 40), randn(3, 80), [randn(32, 40), randn(16, 40)], [randn(32), randn(16)]
vocabulary = 50

def sampling(dtype):
    floats, integers = torch.ones(2), zeros(2, dtype=torch.int32)
    given = {
        "logits": randn(2, vocabulary, dtype=dtype), "ids": zeros(2), "positions": zeros(2), "seeds": zeros(2),
        "top_k": integers + 3, "allowed": zeros(2, 2, dtype=torch.int32) - 1, "ahead": 1,
    }
    made = []
    for argument in torch.ops.vila.choose_tokens.default._schema.arguments:
        if argument.name in given:
            made.append(given[argument.name])
        elif str(argument.type) == "bool":
            made.append(True)
        elif argument.name in EXTRA:
            made.append(EXTRA[argument.name])
        else:
            assert str(argument.type) == "Tensor", argument
            made.append(floats.clone())
    return tuple(made)

EXTRA = {
    "seen": zeros(2, vocabulary, dtype=torch.bool), "counts": zeros(2, vocabulary, dtype=torch.int32),
    "bias": randn(2, vocabulary, dtype=torch.float32),
}
CALLS = {
    "add_rms_norm": [(x, None, randn(40), 1e-6), (x, randn(3, 40), randn(40), 1e-6)],
    "swiglu": [(wide,)],
    "rows": [
        (x, None, None, None, None, 0.0, "gelu", None, 1.0, 0.0),
        (x, randn(3, 40), randn(40), randn(40), randn(40), 1e-6, "", torch.int8, 127.0, 1e-5),
    ],
    "small_linear": [(x, w, b, False), (x[:1], w, [], False), (x[:1], [w[0]] * 2, [], True), (x, w, b, False, "gelu"),
                     (x, [w[0]] * 2, [], True)],
    "depth_attention": [(randn(3, 72), randn(3, 2, 4, 12), randn(3, 2, 4, 12), 1)],
    "choose_codes": [
        (x, *torch.arange(3).expand(2, 3), torch.ones(3), torch.ones(3), zeros(3, dtype=torch.int32), torch.ones(3),
         zeros(3), zeros(3), 1, True, True, True),
    ],
    "decode_attention": [
        (qkv, *angles, positions, *caches, None, None, counters, None, 0),
        (qkv, *angles, positions, *codes, *scales, counters, table, 0),
    ],
    "rotate_and_write": [(qkv, *angles, positions, *caches)],
    "rotate_heads": [(randn(1, 3, heads, width), randn(1, 3, kv, width), randn(1, 1, 3, width), randn(1, 1, 3, width))],
    "silu_multiply": [(x, randn(3, 40))],
    "quantize_heads": [(randn(1, kv, 3, width),), (randn(2, 3, kv, width).transpose(1, 2),)],
    "choose_tokens": [sampling(torch.float16), sampling(torch.float32)],
}
known = {name.partition("::")[2].partition(".")[0] for name in torch._C._dispatch_get_all_op_names()
         if name.startswith("vila::")}
assert known == set(CALLS), known ^ set(CALLS)
for name, calls in CALLS.items():
    for call in calls:
        opcheck(getattr(torch.ops.vila, name).default, call, test_utils=("test_schema", "test_faketensor"))
"""


def test_operators_say_what_they_return_and_change() -> None:
    """Shapes without running a kernel, and which arguments are written."""
    run_interpreted(OPERATORS)
