"""The native decoder against transformers, on tiny random weights of every architecture it covers."""

import copy

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from vila_core.config import DecoderConfig, RopeScaling
from vila_core.language.attention import sdpa
from vila_core.language.decoder import Decoder

WIDTH = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def heads(query: int, key_value: int, head_dim: int) -> dict[str, int]:
    return {"num_attention_heads": query, "num_key_value_heads": key_value, "head_dim": head_dim}


def rope(theta: float, **scaling: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_theta": theta, "rope_type": "default", **scaling}}


CASES: dict[str, PretrainedConfig] = {
    "qwen2": Qwen2Config(**WIDTH, **heads(6, 2, 8), **rope(1e6), tie_word_embeddings=False),
    "qwen2-tied": Qwen2Config(**WIDTH, **heads(6, 2, 8), **rope(1e6), tie_word_embeddings=True),
    "qwen3": Qwen3Config(**WIDTH, **heads(4, 2, 16), **rope(1e6), tie_word_embeddings=True),
    "llama-1": LlamaConfig(**WIDTH, **heads(4, 4, 12), **rope(1e4)),
    "llama-3": LlamaConfig(**WIDTH, **heads(4, 2, 12), **rope(5e5, **LLAMA3), rms_norm_eps=1e-5),
    "llama-bias": LlamaConfig(**WIDTH, **heads(4, 2, 12), **rope(1e4), attention_bias=True, mlp_bias=True),
    "yi": LlamaConfig(**WIDTH, **heads(8, 2, 6), **rope(5e6), rms_norm_eps=1e-5),
    "mistral": MistralConfig(**WIDTH, **heads(4, 2, 12), **rope(1e4), sliding_window=None),
    "mistral-window": MistralConfig(**WIDTH, **heads(4, 2, 12), **rope(1e4), sliding_window=7),
    "rope-linear": LlamaConfig(**WIDTH, **heads(4, 2, 12), **rope(1e4, rope_type="linear", factor=4.0)),
    "rope-dynamic": LlamaConfig(
        **{**WIDTH, "max_position_embeddings": 12}, **heads(4, 2, 12), **rope(1e4, rope_type="dynamic", factor=2.0)
    ),
    "rope-yarn": Qwen2Config(**WIDTH, **heads(4, 2, 12), **rope(1e6, **YARN), tie_word_embeddings=False),
}


def ours(theirs: PretrainedConfig) -> DecoderConfig:
    """Translate a transformers config."""
    parameters = dict(theirs.rope_parameters)
    theta = parameters.pop("rope_theta")
    known = {name: parameters[name] for name in RopeScaling.model_fields if parameters.get(name) is not None}
    return DecoderConfig(
        architecture=theirs.model_type,
        hidden_size=theirs.hidden_size,
        vocab_size=theirs.vocab_size,
        max_length=128,
        intermediate_size=theirs.intermediate_size,
        num_hidden_layers=theirs.num_hidden_layers,
        num_attention_heads=theirs.num_attention_heads,
        num_key_value_heads=theirs.num_key_value_heads,
        head_dim=theirs.head_dim,
        rms_norm_eps=theirs.rms_norm_eps,
        rope_theta=theta,
        rope_scaling=None if known["rope_type"] == "default" else RopeScaling(**known),
        max_position_embeddings=theirs.max_position_embeddings,
        sliding_window=theirs.sliding_window if theirs.model_type == "mistral" else None,
        attention_bias=theirs.model_type == "qwen2" or bool(getattr(theirs, "attention_bias", False)),
        attention_out_bias=theirs.model_type != "qwen2" and bool(getattr(theirs, "attention_bias", False)),
        mlp_bias=bool(getattr(theirs, "mlp_bias", False)),
        qk_norm=theirs.model_type == "qwen3",
        tie_word_embeddings=theirs.tie_word_embeddings,
    )


def pair(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> tuple[Decoder, PreTrainedModel]:
    """Return our decoder, built on the meta device, and transformers' model with the same random weights."""
    theirs = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)
    theirs = theirs.to(dtype).eval()
    with torch.device("meta"):
        decoder = Decoder(ours(config))
    weights = theirs.state_dict()
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    decoder.load_state_dict(weights, assign=True)
    return decoder.eval(), theirs


@pytest.fixture(params=CASES)
def models(request: pytest.FixtureRequest) -> tuple[Decoder, PreTrainedModel]:
    return pair(CASES[request.param])


def some_ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(batch * 100 + length))


@torch.no_grad()
def test_logits_without_cache(models: tuple[Decoder, PreTrainedModel]) -> None:
    decoder, theirs = models
    ids = some_ids(2, 33)
    logits = decoder.logits(decoder(decoder.embed(ids)))
    torch.testing.assert_close(logits, theirs(ids).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_prefill_then_one_token_at_a_time(models: tuple[Decoder, PreTrainedModel]) -> None:
    decoder, theirs = models
    ids = some_ids(1, 29)
    cache, past = decoder.new_cache(1, 29), None
    for start, end in [(0, 10), (10, 11), *((i, i + 1) for i in range(11, 29))]:
        piece = ids[:, start:end]
        expected = theirs(piece, past_key_values=past, use_cache=True)
        past = expected.past_key_values
        positions = torch.arange(start, end)[None] if start else None
        logits = decoder.logits(decoder(decoder.embed(piece), positions=positions, cache=cache.up_to(end)))
        torch.testing.assert_close(
            logits, expected.logits, atol=1e-4, rtol=0, msg=lambda text, end=end: f"at {end}: {text}"
        )


@torch.no_grad()
def test_prefill_in_chunks_equals_prefill_at_once(models: tuple[Decoder, PreTrainedModel]) -> None:
    decoder, _ = models
    if decoder.config.rope_scaling is not None and decoder.config.rope_scaling.rope_type == "dynamic":
        pytest.skip(
            "dynamic scaling rotates earlier chunks with the frequencies of their own length, as in transformers"
        )
    embeds = decoder.embed(some_ids(2, 31))
    cache = decoder.new_cache(2, 40)
    positions = torch.arange(31)[None].split([9, 1, 16, 5], dim=1)
    pieces = [
        decoder(piece, positions=at if at[0, 0] else None, cache=cache)
        for piece, at in zip(embeds.split([9, 1, 16, 5], dim=1), positions, strict=True)
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), decoder(embeds), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_padded_batch(models: tuple[Decoder, PreTrainedModel]) -> None:
    decoder, theirs = models
    lengths, longest = [21, 13, 1], 21
    ids = some_ids(3, longest)
    mask = torch.stack([torch.arange(longest) < n for n in lengths])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = decoder.logits(decoder(decoder.embed(ids), lengths=torch.tensor(lengths)))
    assert logits.isfinite().all()
    for row, length in enumerate(lengths):
        # A copy: under dynamic scaling transformers' model remembers the longest prompt so far.
        alone = copy.deepcopy(theirs)(ids[row, :length][None]).logits[0]
        torch.testing.assert_close(
            logits[row, :length], alone, atol=1e-4, rtol=0, msg=lambda text, n=length: f"length {n}: {text}"
        )
    if decoder.config.rope_scaling is None:  # transformers lets the rows of a batch share one dynamic length
        expected = theirs(ids, attention_mask=mask.long(), position_ids=positions).logits
        torch.testing.assert_close(logits[mask], expected[mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize("narrow", [True, False], ids=["narrow", "all slots"])
@torch.no_grad()
def test_decode_of_a_ragged_batch(models: tuple[Decoder, PreTrainedModel], narrow: bool) -> None:
    decoder, theirs = models
    lengths, longest, new = torch.tensor([17, 9, 2]), 17, 6
    ids = some_ids(3, longest + new)
    cache = decoder.new_cache(3, longest + new)
    cache.keys.fill_(1e4)  # a slot that is read too early shows
    cache.values.fill_(1e4)
    prompt = decoder(decoder.embed(ids[:, :longest]), cache=cache, lengths=lengths)
    steps = [prompt[torch.arange(3), lengths - 1][:, None]]
    for step in range(new):
        positions = lengths[:, None] + step
        embeds = decoder.embed(ids[:, longest + step : longest + step + 1])
        steps.append(decoder(embeds, positions=positions, cache=cache.up_to(longest + step + 1) if narrow else cache))
    logits = decoder.logits(torch.cat(steps, dim=1))
    for row, length in enumerate(lengths.tolist()):
        tokens, past, fresh = torch.cat((ids[row, :length], ids[row, longest:])), None, copy.deepcopy(theirs)
        start = 0
        for step, end in enumerate(range(length, length + new + 1)):
            alone = fresh(tokens[None, start:end], past_key_values=past, use_cache=True)
            past, start = alone.past_key_values, end
            torch.testing.assert_close(logits[row, step], alone.logits[0, -1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_another_attention_function_takes_the_place_of_the_first() -> None:
    decoder, _ = pair(CASES["qwen2"])
    embeds, layers = decoder.embed(some_ids(1, 9)), []
    expected = decoder(embeds)

    def watched(q, k, v, inputs, layer):
        layers.append(layer)
        return sdpa(q, k, v, inputs, layer)

    decoder.model.attention = watched
    torch.testing.assert_close(decoder(embeds), expected)
    assert layers == [0, 1, 2]


@torch.no_grad()
def test_a_step_object_reads_the_new_tokens() -> None:
    decoder, _ = pair(CASES["qwen2"])
    cache, seen = decoder.new_cache(1, 4), []

    def step(embeds, positions, cache):
        seen.append(positions.tolist())
        return embeds

    decoder.use_step(step)
    embeds = decoder.embed(some_ids(1, 1))
    assert decoder.decode_step(embeds, torch.tensor([[3]]), cache.up_to(4)) is embeds
    assert seen == [[[3]]]


@pytest.mark.parametrize("name", ["qwen2-tied", "qwen3", "llama-3", "mistral-window", "rope-yarn"])
def test_gradients(name: str) -> None:
    decoder, theirs = pair(CASES[name])
    ids = some_ids(2, 19)
    decoder.train()
    theirs.train()
    logits = decoder.logits(decoder(decoder.embed(ids)))
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    theirs(ids, labels=ids).loss.backward()
    ours_by_name = dict(decoder.named_parameters())
    for parameter_name, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            ours_by_name[parameter_name].grad,
            parameter.grad,
            atol=1e-5,
            rtol=1e-3,
            msg=lambda t, n=parameter_name: f"{n}: {t}",
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@torch.no_grad()
def test_half_precision_rounds_where_transformers_rounds(dtype: torch.dtype) -> None:
    decoder, theirs = pair(CASES["qwen3"], dtype)
    ids = some_ids(1, 25)
    logits = decoder.logits(decoder(decoder.embed(ids)))
    assert logits.dtype == dtype
    # The same operations in the same order: what is left is one rounding of the attention kernel here and there.
    torch.testing.assert_close(logits, theirs(ids).logits, atol=0.02 if dtype == torch.float16 else 0.15, rtol=0)


def test_rotary_survives_meta_and_half() -> None:
    config = ours(CASES["llama-3"])
    with torch.device("meta"):
        decoder = Decoder(config)
    assert all(parameter.is_meta for parameter in decoder.parameters())
    assert not list(decoder.buffers())
    decoder = decoder.to_empty(device="cpu").half()
    cos, _ = decoder.model.rotary(torch.arange(50)[None], torch.float32)
    reference, _ = Decoder(config).model.rotary(torch.arange(50)[None], torch.float32)
    torch.testing.assert_close(cos, reference, atol=0, rtol=0)


def test_state_dict_names() -> None:
    names = set(Decoder(ours(CASES["qwen3"])).state_dict())
    assert "lm_head.weight" not in names
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.2.self_attn.k_norm.weight"} <= names
    assert "lm_head.weight" in Decoder(ours(CASES["qwen2"])).state_dict()


def test_reset_parameters_is_reproducible_and_scaled() -> None:
    decoder = Decoder(ours(CASES["qwen2"]))
    decoder.reset_parameters(generator=torch.Generator().manual_seed(3))
    first = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    decoder.reset_parameters(generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(first[name], tensor) for name, tensor in decoder.state_dict().items())
    assert first["model.layers.0.mlp.up_proj.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert first["model.layers.0.mlp.down_proj.weight"].std().item() == pytest.approx(0.02 / 6**0.5, rel=0.1)
    assert first["model.layers.0.self_attn.q_proj.bias"].abs().max() == 0
    assert first["model.norm.weight"].min() == 1


def test_compiles_without_graph_breaks() -> None:
    decoder, _ = pair(CASES["llama-3"])
    ids = some_ids(2, 12)
    expected = decoder(decoder.embed(ids))
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(decoder.embed(ids)), expected)
