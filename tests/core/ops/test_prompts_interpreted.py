"""Prompts as CUDA graphs read them, in Triton's interpreter: one prompt or several, whole or continued."""

import sys

import pytest
from tests.interpreted_kernels import run_interpreted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

INTERPRETED = """
import torch
from vila_core.config import DecoderConfig
from vila_core.language.decoder import Decoder
from vila_core.language.fused_step import FusedStep
from vila_core.language.paged_cache import PagedCache
from vila_core.language.paged_prefill import GraphPrefill, NextTokens

torch.cuda.graph_pool_handle = lambda: (0, 0)  # nothing is captured here
torch.manual_seed(0)
config = DecoderConfig.model_validate({
    "architecture": "qwen2", "vocab_size": 50, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048,
    "attention_bias": True, "max_length": 2048,
})
with torch.inference_mode():
    decoder = Decoder(config)
    decoder.reset_parameters(std=0.05)
    decoder = decoder.half().requires_grad_(False)
    caches = [PagedCache.allocate(config, 30, device=torch.device("cpu"), dtype=torch.float16) for _ in range(2)]
    read = GraphPrefill(decoder, caches[0], 7, FusedStep(decoder))
    pages = torch.randperm(30).tolist()
    # tokens that are there already, and new ones, of each prompt; numbers of other prompts are left in the buffers
    for prompts in (
        [(0, 20)], [(0, 9), (0, 20), (0, 3)], [(70, 5), (0, 13), (140, 1)], [(0, 1)], [(64, 17)],
    ):
        given, expected = [], []
        for start, count in prompts:
            whole = torch.randn(start + count, 128, dtype=torch.float16)
            needed = -(-len(whole) // 64)
            held, pages = pages[:needed], pages[needed:] + pages[:needed]
            rows = [cache.rows(torch.tensor([held])) for cache in caches]
            if start:
                for row in rows:
                    decoder(whole[None, :start], cache=row.up_to(start))
            positions = torch.arange(start, len(whole))[None] if start else None
            expected.append(decoder(whole[None, start:], positions=positions, cache=rows[1].up_to(len(whole)))[0, -1])
            given.append(NextTokens(whole[start:], start, held))
        assert read.takes(given), prompts
        read._seen.clear()
        got = read(given)
        error = ((got.double() - torch.stack(expected).double()).norm() / torch.stack(expected).double().norm()).item()
        assert error < 4e-3, f"{prompts}: {error}"
    for one, other in zip((caches[0].keys, caches[0].values), (caches[1].keys, caches[1].values), strict=True):
        assert ((one.double() - other.double()).norm() / other.double().norm()).item() < 4e-3
    handle = decoder.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert not read.takes(given), "a hook must see the layers run"
    handle.remove()
    assert read.takes(given)
"""


def test_prompts_in_one_sequence_give_what_the_decoder_gives() -> None:
    run_interpreted(INTERPRETED)
