"""llm-awq's search results: read without running anything, applied to a block, written so that they are read again."""

import pickle
from pathlib import Path

import pytest
import torch
from tests.quant.conftest import Recording
from torch import Tensor, nn

from vila_core.checkpoint.configs.language import read_language_config
from vila_core.checkpoint.json_files import read_section
from vila_core.checkpoint.tensors.headers import read_header
from vila_core.checkpoint.tensors.reading import read_tensors
from vila_core.config import DecoderConfig
from vila_core.errors import CheckpointError
from vila_core.language.decoder import Block, Decoder
from vila_quant.awq.block import BlockInputs
from vila_quant.awq.method import BlockOptions, QuantizedBlock
from vila_quant.packing.groupwise import quantize
from vila_quant.quantizing.search_results import AppliedSearch, read_search_results, write_search_results


def decoder() -> Decoder:
    config = DecoderConfig(
        architecture="qwen2",
        hidden_size=32,
        vocab_size=40,
        max_length=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        attention_bias=True,
        tie_word_embeddings=True,
    )
    model = Decoder(config)
    model.reset_parameters(std=0.3, generator=torch.Generator().manual_seed(5))
    return model.eval()


def block_of(model: Decoder, index: int = 0) -> Block:
    block = model.model.layers[index]
    assert isinstance(block, Block)
    return block


def weight_of(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(f"{name}.weight").detach()


def run(model: Decoder) -> Tensor:
    embeds = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(embeds)


Item = tuple[object, ...]


def save(path: Path, scale: object = (), clip: object = ()) -> Path:
    torch.save({"scale": scale, "clip": clip}, path)
    return path


@pytest.mark.parametrize("kind", ["gqa", "mha"])
def test_the_recorded_results_are_read(recording: Recording, kind: str) -> None:
    results = read_search_results(recording.path(f"b_awq_search_{kind}_fp32.pt"))
    recorded = recording.tensors(f"b_awq_search_{kind}_fp32.safetensors")
    found = {f"scale|{item.previous}|{','.join(item.linears)}": item.scales for item in results.scales}
    found |= {f"clip|{name}": limits for name, limits in results.clips}
    assert found.keys() == recorded.keys()
    assert all(torch.equal(found[key], recorded[key]) for key in recorded)


def test_applied_to_the_recorded_model_they_give_the_recorded_weights(recording: Recording) -> None:
    quantized = recording.path("*_awq_gemm")
    folder = quantized.with_name(quantized.name.removesuffix("_awq_gemm"))
    config = read_language_config(read_section(folder / "config.json"), 2048)
    assert isinstance(config, DecoderConfig)
    model = Decoder(config).half()
    model.load_state_dict(dict(read_tensors(folder / "model.safetensors", read_header(folder / "model.safetensors"))))
    results = read_search_results(recording.path("b_awq_search_gqa_fp32.pt"))
    for name in results.blocks():
        results.apply(block_of(model, int(name.rpartition(".")[2])), name)
    recorded = recording.tensors("c_packed_tinychat.safetensors")
    names = [key.removesuffix(".weight_fp16_after_awq") for key in recorded if key.endswith(".weight_fp16_after_awq")]
    assert names
    for name in names:
        weight = weight_of(model, f"model.layers.{name.removeprefix('L')}")
        assert torch.equal(weight, recorded[f"{name}.weight_fp16_after_awq"]), name


def test_scales_leave_what_the_model_computes(tmp_path: Path) -> None:
    model = decoder()
    before = run(model)
    scales = torch.linspace(0.5, 2.0, 32)
    at = "model.layers.0"
    results = read_search_results(
        save(
            tmp_path / "r.pt",
            [(f"{at}.input_layernorm", tuple(f"{at}.self_attn.{name}_proj" for name in "qkv"), scales)],
        )
    )
    assert results.blocks() == (at,)
    original = weight_of(model, f"{at}.self_attn.q_proj").clone()
    results.apply(block_of(model), at)
    assert torch.allclose(weight_of(model, f"{at}.self_attn.q_proj"), original * scales)
    assert torch.allclose(weight_of(model, f"{at}.input_layernorm"), 1 / scales)
    assert torch.allclose(run(model), before, atol=1e-5)


def test_clips_cut_each_group_at_its_own_limit(tmp_path: Path) -> None:
    model = decoder()
    name = "model.layers.1.mlp.down_proj"
    limits = torch.full((32, 2, 1), 0.1)
    limits[3, 1] = 0.02
    read_search_results(save(tmp_path / "r.pt", clip=[(name, limits)])).apply(block_of(model, 1), "model.layers.1")
    groups = weight_of(model, name).view(32, 2, 32).abs().amax(-1)
    assert groups[3, 1] == pytest.approx(0.02)
    assert groups.flatten().sort().values[1:].tolist() == pytest.approx([0.1] * 63)


def test_results_of_another_block_are_left_for_it(tmp_path: Path) -> None:
    model = decoder()
    before = run(model)
    results = read_search_results(
        save(tmp_path / "r.pt", clip=[("model.layers.11.mlp.down_proj", torch.zeros(32, 2, 1))])
    )
    results.apply(block_of(model, 1), "model.layers.1")
    assert torch.equal(run(model), before)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    found = QuantizedBlock({}, {"mlp.up_proj|mlp.down_proj": torch.arange(3.0)}, {"mlp.up_proj": torch.ones(4, 2, 1)})
    write_search_results({"model.layers.0": found}, tmp_path / "r.pt")
    content = torch.load(tmp_path / "r.pt", weights_only=True)
    assert content["scale"][0][:2] == ("model.layers.0.mlp.up_proj", ("model.layers.0.mlp.down_proj",))
    results = read_search_results(tmp_path / "r.pt")
    assert torch.equal(results.scales[0].scales, torch.arange(3.0))
    assert results.clips[0][0] == "model.layers.0.mlp.up_proj"
    assert torch.equal(results.clips[0][1], torch.ones(4, 2, 1))


def test_a_block_is_quantized_with_what_was_found_before(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj"
    limits = torch.full((32, 2, 1), 0.1)
    method = AppliedSearch(read_search_results(save(tmp_path / "r.pt", clip=[(name, limits)])))
    model = decoder()
    clipped = weight_of(model, name).clone().clamp(-0.1, 0.1)
    block_inputs = BlockInputs((torch.ones(1, 1, 1, 16), torch.zeros(1, 1, 1, 16)))
    options = BlockOptions(group_size=32)
    quantized = method.quantize_block(block_of(model, 1), torch.zeros(1, 1, 32), block_inputs, options)
    assert len(quantized.weights) == 7
    expected = quantize(clipped, 4, 32)
    assert torch.equal(quantized.weights["mlp.down_proj"].q, expected.q)
    with pytest.raises(CheckpointError, match=r"none for 'model\.layers\.0'"):
        method.quantize_block(block_of(model, 0), torch.zeros(1, 1, 32), block_inputs, options)


class Payload:
    """Pickled, it asks the reader to create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "r.pt").write_bytes(pickle.dumps({"scale": [Payload(tmp_path / "ran")], "clip": []}, protocol=2))
    with pytest.raises(CheckpointError, match=r"r\.pt (was refused|is damaged)"):
        read_search_results(tmp_path / "r.pt")
    torch.save({"scale": [Payload(tmp_path / "ran")], "clip": []}, tmp_path / "r.pt")
    with pytest.raises(CheckpointError, match="Nothing of it was executed"):
        read_search_results(tmp_path / "r.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected the keys 'scale' and 'clip'"),
        ({"scale": []}, "expected the keys 'scale' and 'clip'"),
        ({"scale": {}, "clip": []}, "'scale' is a dict; expected a list"),
        ({"scale": [("a", "b", torch.ones(3))], "clip": []}, "an item of 'scale' is"),
        ({"scale": [("a", ("b",), torch.ones(3, 3))], "clip": []}, "an item of 'scale' is"),
        ({"scale": [("a", ("b",), torch.ones(3).to_sparse())], "clip": []}, "a tensor is sparse"),
        ({"scale": [("a", ("b",), torch.ones(3, dtype=torch.complex64))], "clip": []}, "an item of 'scale' is"),
        ({"scale": [("a", (), torch.ones(3))], "clip": []}, "an item of 'scale' is"),
        ({"scale": [], "clip": [("a", torch.ones(3))]}, "an item of 'clip' is"),
        ({"scale": [], "clip": [("a", torch.ones(3, 1, 1).int())]}, "an item of 'clip' is"),
        ({"scale": [], "clip": [(1, torch.ones(3, 1, 1))]}, "an item of 'clip' is"),
    ],
)
def test_other_content_is_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "r.pt")
    with pytest.raises(CheckpointError, match=message):
        read_search_results(tmp_path / "r.pt")


AT = "model.layers.0"


@pytest.mark.parametrize(
    ("scale", "clip", "message"),
    [
        (
            [(f"{AT}.mlp.act_fn", (f"{AT}.mlp.down_proj",), torch.ones(64))],
            [],
            "scale 'model.layers.0.mlp.act_fn'; expected one of",
        ),
        (
            [(f"{AT}.input_layernorm", (f"{AT}.attn.qkv",), torch.ones(32))],
            [],
            "'model.layers.0.attn.qkv', which is not a linear",
        ),
        (
            [(f"{AT}.mlp.up_proj", (f"{AT}.mlp.down_proj",), torch.ones(63))],
            [],
            "have 63 values; its weight has 64 inputs",
        ),
        ([], [(f"{AT}.mlp.down_proj", torch.ones(32, 3, 1))], r"have shape \[32, 3, 1\]; for its weight \[32, 64\]"),
        ([], [(f"{AT}.mlp.down_proj", torch.ones(31, 2, 1))], r"have shape \[31, 2, 1\]"),
    ],
)
def test_results_of_another_model_are_refused(
    tmp_path: Path, scale: list[Item], clip: list[Item], message: str
) -> None:
    results = read_search_results(save(tmp_path / "r.pt", scale, clip))
    with pytest.raises(CheckpointError, match=message):
        results.apply(block_of(decoder()), AT)
