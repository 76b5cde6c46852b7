"""The adapter for any causal language model of transformers: same weights, same names, same numbers."""

from collections.abc import Callable

import pytest
import torch
from tests.core.answering import generate
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from vila_core.config import TransformersConfig
from vila_core.device_memory import is_out_of_memory
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import ConfigError
from vila_core.language.decoder import Decoder
from vila_core.language.transformers import TransformersLanguageModel
from vila_core.tokenizer import Tokenizer

WIDTH = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# Each does something to its logits, its names or its cache that the others do not.
CASES: dict[str, dict[str, object]] = {
    "qwen2": {**WIDTH},
    "gemma2": {
        **WIDTH,
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "final_logit_softcapping": 2.0,
        "sliding_window": 5,
        **SPECIAL,
    },
    "cohere": {**WIDTH, "logit_scale": 0.3, **SPECIAL},
    "granite": {**WIDTH, "logits_scaling": 3.0, **SPECIAL},
    "mixtral": {**WIDTH, "num_local_experts": 4, **SPECIAL},
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 4, **SPECIAL},
    "opt": {
        "hidden_size": 48,
        "word_embed_proj_dim": 48,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **SPECIAL,
    },
}


def pair(name: str) -> tuple[TransformersLanguageModel, PreTrainedModel]:
    """Return the adapter, built on the meta device and loaded by name, and the plain model."""
    config = TransformersConfig(
        hidden_size=48, vocab_size=97, max_length=64, hf_config={"model_type": name, **CASES[name]}
    )
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, vocab_size=97, **CASES[name])).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    with torch.device("meta"):
        adapter = TransformersLanguageModel(config)
    weights = theirs.state_dict()
    missing = set(weights) - set(adapter.state_dict())
    assert missing == ({"lm_head.weight"} if theirs.config.tie_word_embeddings else set())
    adapter.load_state_dict({key: weights[key] for key in adapter.state_dict()}, assign=True)
    adapter.reset_buffers(torch.device("cpu"), torch.float32)
    assert not any(tensor.is_meta for tensor in (*adapter.parameters(), *adapter.buffers()))
    return adapter.eval(), theirs


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_and_decode(name: str) -> None:
    adapter, theirs = pair(name)
    ids = torch.randint(3, 97, (2, 13), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits
    embeds = adapter.embed(ids)
    torch.testing.assert_close(adapter.logits(adapter(embeds)), expected, atol=1e-5, rtol=0)
    cache = adapter.new_cache(2, 13)
    pieces = [adapter(embeds[:, :6], cache=cache)]
    pieces += [adapter.decode_step(embeds[:, at : at + 1], torch.tensor([[at]]), cache) for at in range(6, 13)]
    assert cache.length == 13
    torch.testing.assert_close(adapter.logits(torch.cat(pieces, dim=1)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0, "seed": 4, "repetition_penalty": 1.2}], ids=["greedy", "sampled"]
)
def test_agrees_with_the_native_decoder(
    decoder: Decoder, tokenizer: Tokenizer, end: frozenset[int], settings: dict[str, float]
) -> None:
    config = decoder.config
    hf_config = {
        "model_type": "qwen2",
        **config.model_dump(
            include={
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
            }
            | {"max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings"}
        ),
    }
    adapter = TransformersLanguageModel(
        TransformersConfig(
            hidden_size=48, vocab_size=config.vocab_size, max_length=config.max_length, hf_config=hf_config
        )
    )
    adapter.load_state_dict(decoder.state_dict())
    adapter.eval()
    generator = torch.Generator().manual_seed(8)
    prompts = [decoder.embed(torch.randint(2, 300, (n,), generator=generator)).detach() for n in (12, 3, 25)]
    generation = GenerationConfig(max_new_tokens=20, **settings)
    native, adapted = (generate(llm, prompts, generation, tokenizer, end) for llm in (decoder, adapter))
    assert [answer.token_ids for answer in adapted] == [answer.token_ids for answer in native]
    alone = [generate(adapter, [prompt], generation, tokenizer, end)[0] for prompt in prompts]
    assert [answer.token_ids for answer in alone] == [answer.token_ids for answer in adapted]


def test_trains_and_moves_as_one_module() -> None:
    adapter, _ = pair("qwen2")
    adapter.train()
    loss = adapter.logits(adapter(adapter.embed(torch.arange(3, 12)[None]))).logsumexp(-1).mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    adapter.to(torch.bfloat16)
    assert adapter.logits(adapter(adapter.embed(torch.arange(3, 12)[None]))).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "hf_config",
    [{"model_type": "no-such-model"}, {"model_type": "vit"}, {}, {"model_type": "qwen2", "hidden_size": "x"}],
)
def test_what_transformers_cannot_build(hf_config: dict[str, object]) -> None:
    config = TransformersConfig(hidden_size=48, vocab_size=97, max_length=64, hf_config=hf_config)
    with pytest.raises(ConfigError, match=r"transformers .* cannot build"):
        TransformersLanguageModel(config)


@pytest.mark.parametrize("fill", [lambda: torch.empty(2**60, dtype=torch.uint8), lambda: bytes(2**60)])
def test_full_memory_is_not_blamed_on_the_config(fill: Callable[[], object]) -> None:
    adapter, _ = pair("qwen2")
    ids = torch.arange(3, 12)[None]
    adapter.get_submodule("model").register_forward_pre_hook(lambda module, given: fill())
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        adapter(adapter.embed(ids))
    assert is_out_of_memory(raised.value)
