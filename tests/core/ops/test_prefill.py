"""Operators of a forward pass over many tokens: in the interpreter, compiled for each GPU, and in a decoder on a GPU.

B rows, T tokens, H query heads, H_kv key/value heads, D_h head width
"""

import sys
from pathlib import Path

import pytest
import torch
from tests.interpreted_kernels import run_interpreted

from vila_core.config import DecoderConfig
from vila_core.language import fused_prefill
from vila_core.language.decoder import Decoder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

SETTINGS: dict[str, object] = {
    "architecture": "qwen2", "vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1536,
    "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": 8192, "attention_bias": True, "max_length": 8192,
}  # fmt: skip

INTERPRETED = """
import torch
from vila_core.ops import reference
from vila_core.ops.prefill import rotate_heads, silu_multiply

torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 1e-3)):
    for shape in ((1, 24), (3, 5, 700), (2, 2049)):
        gate, up = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
        expected = reference.swiglu(torch.cat([gate, up], -1).double())
        torch.testing.assert_close(silu_multiply(gate, up).double(), expected, rtol=tolerance, atol=tolerance)
    for rows, angle_rows, tokens, heads, kv_heads, width in (
        (1, 1, 5, 3, 1, 64), (2, 1, 3, 28, 4, 128), (2, 2, 4, 2, 2, 64)
    ):
        q = torch.randn(rows, tokens, heads, width).to(dtype)
        k = torch.randn(rows, tokens, kv_heads, width).to(dtype)
        angle = 6 * torch.rand(angle_rows, 1, tokens, width // 2)
        cos, sin = (torch.cat([part, part], -1).to(dtype) for part in (angle.cos(), angle.sin()))
        halves = [part[..., : width // 2].double().transpose(1, 2) for part in (cos, sin)]
        expected = [reference.rotate(x.double(), *halves) for x in (q, k)]
        rotate_heads(q, k, cos, sin)
        for x, wanted in zip((q, k), expected):
            torch.testing.assert_close(x.double(), wanted, rtol=tolerance, atol=tolerance)
rotate_heads(q[:0], k[:0], cos, sin)
assert silu_multiply(gate[:0], up[:0]).shape == (0, 2049)
"""


def test_operators_match_the_oracles() -> None:
    run_interpreted(INTERPRETED)


def test_operators_fit_every_gpu(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    from tests.compiled_kernels import SHARED_MEMORY, stack_bytes
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vila_core.ops.prefill import BLOCK, rotate_heads_kernel, silu_multiply_kernel

    for capability, shared in SHARED_MEMORY.items():
        for kernel, constants, warps in (
            (rotate_heads_kernel, {"WIDTH": 128, "HEADS": 32}, 4),
            (silu_multiply_kernel, {"BLOCK": BLOCK}, 8),
        ):
            types = {
                name: "constexpr" if name in constants else "*bf16" if name.endswith("_pointer") else "i32"
                for name in kernel.arg_names
            }
            made = triton.compile(
                ASTSource(kernel, types, constants),
                target=GPUTarget("cuda", capability, 32),
                options={"num_warps": warps},
            )
            assert stack_bytes(made, tmp_path) == 0, f"sm{capability}: registers spilled"
            assert made.metadata.shared <= shared * 1024


def test_a_cpu_takes_the_decoder_s_own_operators() -> None:
    decoder = Decoder(DecoderConfig.model_validate(SETTINGS))
    with torch.no_grad():
        assert not fused_prefill.takes(decoder.model, torch.zeros(1, 2, 512, dtype=torch.bfloat16))


def test_hooks_of_a_block_are_noticed() -> None:
    model = Decoder(DecoderConfig.model_validate(SETTINGS)).model
    assert not fused_prefill.is_watched(model)
    for name in ("", "self_attn", "mlp", "input_layernorm", "post_attention_layernorm"):
        part = model.layers[1].get_submodule(name)
        for register in (part.register_forward_hook, part.register_forward_pre_hook):
            handle = register(lambda *_: None)
            assert fused_prefill.is_watched(model), name
            handle.remove()
    assert not fused_prefill.is_watched(model)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"sliding_window": 40}], ids=str)
@torch.inference_mode()
def test_a_prompt_is_read_whole_or_in_chunks(changes: dict[str, object]) -> None:
    config = DecoderConfig.model_validate(SETTINGS | changes)
    torch.manual_seed(0)
    decoder = Decoder(config).to("cuda")
    decoder.reset_parameters(std=0.05)
    decoder = decoder.to(torch.bfloat16)
    exact = Decoder(config).to("cuda")
    exact.load_state_dict(decoder.state_dict())
    exact = exact.double()
    calls: list[object] = []
    for rows, tokens in ((1, 1100), (3, 400), (1, 4096)):
        x = torch.randn(rows, tokens, 512, device="cuda", dtype=torch.bfloat16)
        assert fused_prefill.takes(decoder.model, x)
        expected = exact(x.double())
        whole = decoder(x)
        error = ((whole.double() - expected).norm() / expected.norm()).item()
        assert error < 0.02, f"{rows} x {tokens}: {error:.1e}"
        cache = decoder.new_cache(rows, tokens + 8)
        read, plain = decoder.new_cache(rows, tokens), decoder.new_cache(rows, tokens)
        decoder(x, cache=read.up_to(tokens))
        handle = decoder.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
        decoder(x, cache=plain.up_to(tokens))
        handle.remove()
        assert calls, "a hook of a block was not called"
        for ours, theirs in ((read.keys, plain.keys), (read.values, plain.values)):
            assert ((ours - theirs).float().norm() / theirs.float().norm()).item() < 0.02, f"cache, {tokens}"
        first = decoder(x[:, :64], cache=cache.up_to(64))
        positions = torch.arange(64, tokens, device="cuda")[None]
        rest = decoder(x[:, 64:], positions=positions, cache=cache.up_to(tokens))
        error = ((torch.cat([first, rest], 1).double() - expected).norm() / expected.norm()).item()
        assert error < 0.02, f"{rows} x {tokens} in chunks: {error:.1e}"
