"""Format `awq`: written in both layouts, read back exactly, loaded, and rejected after tampering."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.quant.conftest import Recording, rounded, tensors_of, with_tensors
from torch import Tensor, nn

import vila_core as vila
from vila_core.checkpoint import Checkpoint, WeightIndex, convert, estimate, load_weights, open_checkpoint
from vila_core.checkpoint.configs.language import read_language_config
from vila_core.checkpoint.json_files import read_section
from vila_core.checkpoint.tensors.headers import read_header
from vila_core.cli.main import main
from vila_core.config import DecoderConfig
from vila_core.errors import CheckpointError, ConfigError
from vila_core.language.decoder import Decoder
from vila_quant.formats.awq import AwqFormat
from vila_quant.formats.layers import find_layers
from vila_quant.formats.modules import replace_modules
from vila_quant.linears.eight_bit_linear import EightBitLinear
from vila_quant.linears.groupwise_linear import GroupwiseLinear

MEDIA = Path("examples/media")
DOWN = "llm.model.layers.1.mlp.down_proj"


def same(actual: Checkpoint, expected: Checkpoint) -> bool:
    """Whether two checkpoints hold the same tensors, to the bit."""
    ours, theirs = tensors_of(actual), tensors_of(expected)
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )


def ask(folder: Path) -> str:
    model = vila.load(folder, device="cpu")
    return model.generate([vila.Image(MEDIA / "scene.png"), "What is in the picture?"], max_new_tokens=40)


def answer() -> str:
    """What is true of the picture."""
    cases: list[dict[str, Any]] = json.loads((MEDIA / "questions.json").read_text())
    return next(
        case["answer"] for case in cases if case["media"] == ["scene.png"] and case["text"] == "What is in the picture?"
    )


def test_a_quantized_folder_loads_like_any_other_and_answers(awq_tiny: Checkpoint) -> None:
    assert awq_tiny.format == "awq"
    assert ask(awq_tiny.path) == answer()
    network = vila.load(awq_tiny.path, device="cpu").network
    kinds = {
        name: type(module)
        for name, module in network.named_modules()
        if name.endswith("_proj") and name.startswith("llm.")
    }
    assert len(kinds) == 7 * 6
    assert set(kinds.values()) == {GroupwiseLinear}


def test_reading_back_gives_the_same_tensors(awq_tiny: Checkpoint, whole_tiny: Checkpoint) -> None:
    assert same(awq_tiny, rounded(whole_tiny, 128))


def test_a_quantized_model_is_split_by_layers_and_not_divided_further(awq_tiny: Checkpoint) -> None:
    one, two = (vila.load(awq_tiny.path, device_map=device_map) for device_map in (["cpu"], ["cpu", "cpu"]))
    questions = ["Hello", "What is a circle?", "Is the circle red?"]
    answers = one.generate_batch(questions, max_new_tokens=12)
    assert two.generate_batch(questions, max_new_tokens=12) == answers
    assert [two.generate(question, max_new_tokens=12) for question in questions] == answers
    with pytest.raises(ConfigError, match=r"is quantized \(.*4 bits.*\), and device_map='tensor' divides unquantized"):
        vila.load(awq_tiny.path, device_map="tensor:cpu,cpu")


def test_the_folder_of_the_language_model_is_a_checkpoint_by_itself(awq_tiny: Checkpoint) -> None:
    config = json.loads((awq_tiny.path / "llm" / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head", "vision_tower", "mm_projector"],
    }
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    header = read_header(awq_tiny.path / "llm" / "model.safetensors")
    assert header["model.layers.0.mlp.up_proj.qweight"].dtype == "I32"
    assert header["model.layers.0.mlp.up_proj.scales"].dtype == "F16"
    assert "model.layers.0.mlp.up_proj.weight" not in header


def test_the_nvila_layout_states_it_at_the_root_and_in_the_text_config(lite: Checkpoint, tmp_path: Path) -> None:
    skipped = ("llm.model.layers.1.mlp.down_proj",)
    source = rounded(lite, 32, skip=skipped)
    written = convert(source, tmp_path / "out", "awq")
    assert same(written, source)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "nvila_lite"
    assert config["quantization_config"] == config["text_config"]["quantization_config"]
    assert config["quantization_config"]["group_size"] == 32
    names = config["quantization_config"]["modules_to_not_convert"]
    assert names == ["model.layers.1.mlp.down_proj", "lm_head", "vision_tower", "mm_projector"]
    network = vila.load(tmp_path / "out", device="cpu").network
    assert isinstance(network.get_submodule("llm.model.layers.0.mlp.down_proj"), GroupwiseLinear)
    assert isinstance(network.get_submodule(skipped[0]), nn.Linear)


def test_the_layout_is_the_source_layout_unless_another_is_requested(
    lite: Checkpoint, awq_tiny: Checkpoint, tmp_path: Path
) -> None:
    source = convert(rounded(lite, 32), tmp_path / "nvila", "awq")
    assert not (source.path / "llm").exists()
    AwqFormat(layout="vila").write(source, tmp_path / "vila")
    moved = open_checkpoint(tmp_path / "vila")
    assert (tmp_path / "vila" / "llm" / "config.json").exists()
    assert same(moved, source)
    assert moved.config == source.config
    AwqFormat(layout="nvila").write(moved, tmp_path / "back")
    assert same(open_checkpoint(tmp_path / "back"), source)
    with pytest.raises(CheckpointError, match=r"'nvila' .* cannot represent this model"):
        AwqFormat(layout="nvila").write(awq_tiny, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_files_are_cut_to_the_asked_size(awq_tiny: Checkpoint, tmp_path: Path) -> None:
    written = convert(awq_tiny, tmp_path / "out", "awq", max_shard_bytes=500_000)
    assert (tmp_path / "out" / "llm" / "model.safetensors.index.json").exists()
    assert same(written, awq_tiny)


def test_scales_in_bfloat16_are_taken_as_they_are(awq_tiny: Checkpoint, tmp_path: Path) -> None:
    scales = {name: tensor.bfloat16() for name, tensor in tensors_of(awq_tiny).items() if name.endswith(".scales")}
    written = convert(with_tensors(awq_tiny, {**scales}), tmp_path / "out", "awq")
    assert written.weights.entries[f"{DOWN}.scales"].dtype == "BF16"
    assert ask(tmp_path / "out") == answer()


def test_the_recorded_checkpoint_gives_the_recorded_logits(recording: Recording, whole_tiny: Checkpoint) -> None:
    folder = recording.path("*_awq_gemm")
    config = read_language_config(read_section(folder / "config.json"), 2048)
    assert isinstance(config, DecoderConfig)
    entries = {f"llm.{name}": entry for name, entry in read_header(folder / "model.safetensors").items()}
    with torch.device("meta"):
        network = nn.Module()
        network.add_module("llm", Decoder(config))
        replace_modules(network, find_layers(entries))
    load_weights(
        network, replace(whole_tiny, path=folder, weights=WeightIndex(entries)), device="cpu", dtype=torch.float32
    )
    recorded = recording.tensors("c_logits_last32.safetensors")
    (name,) = (key for key in recorded if "v2_dequant" in key)
    with torch.inference_mode():
        decoder = network.get_submodule("llm")
        assert isinstance(decoder, Decoder)
        logits = decoder.logits(decoder(decoder.embed(recorded["eval_tokens"])))[:, -recorded[name].shape[1] :]
    error = (logits - recorded[name]).abs().max().item()
    # Weights differ by the fp16 rounding of zero · scale alone: at most 4e-4 each.
    assert error <= 5e-3 * recorded[name].abs().max().item()
    assert (logits - recorded["logits_fp32_model"]).abs().max().item() > 10 * error


def eight_bits(tensors: dict[str, Tensor], name: str, dtype: torch.dtype) -> dict[str, Tensor | None]:
    weight = tensors[f"{name}.weight"].float()
    largest = 127.0 if dtype == torch.int8 else 448.0
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-5) / largest
    q = (weight / scale).round() if dtype == torch.int8 else weight / scale
    return {f"{name}.weight": q.to(dtype), f"{name}.weight_scale": scale}


def test_a_quantized_head_takes_the_place_of_a_tied_embedding(awq_tiny: Checkpoint, tmp_path: Path) -> None:
    tensors = tensors_of(awq_tiny)
    tensors["llm.lm_head.weight"] = tensors["llm.model.embed_tokens.weight"]
    written = convert(with_tensors(awq_tiny, eight_bits(tensors, "llm.lm_head", torch.int8)), tmp_path / "out", "awq")
    assert written.quantization is not None
    assert written.quantization.method == "AWQ, 4 bits, groups of 128, head int8"
    network = vila.load(tmp_path / "out", device="cpu").network
    head = network.get_submodule("llm.lm_head")
    assert isinstance(head, EightBitLinear)
    assert head.shape.scheme == "int8"
    hidden = torch.randn(3, head.weight.shape[1], generator=torch.Generator().manual_seed(0))
    expected = hidden @ tensors["llm.lm_head.weight"].float().T
    assert isinstance(network.llm, Decoder)
    assert (network.llm.logits(hidden) - expected).norm() < 0.01 * expected.norm()
    assert ask(tmp_path / "out") == answer()


@pytest.mark.parametrize(
    ("dtype", "kind", "scheme"), [(torch.int8, "int8", "w8a8"), (torch.float8_e4m3fn, "fp8", "fp8")]
)
def test_a_tower_in_eight_bits_loads_and_answers(
    awq_tiny: Checkpoint, tmp_path: Path, dtype: torch.dtype, kind: str, scheme: str
) -> None:
    tensors = tensors_of(awq_tiny)
    names = [
        name.removesuffix(".weight")
        for name in tensors
        if "encoder.layers" in name and name.endswith(("fc1.weight", "q_proj.weight"))
    ]
    changed: dict[str, Tensor | None] = {}
    for name in names:
        changed |= eight_bits(tensors, name, dtype)
    written = convert(with_tensors(awq_tiny, changed), tmp_path / "out", "awq")
    assert written.quantization is not None
    assert written.quantization.method.endswith(f", vision tower {kind}")
    assert same(open_checkpoint(tmp_path / "out"), with_tensors(awq_tiny, changed))
    replaced = vila.load(tmp_path / "out", device="cpu").network.get_submodule(names[0])
    assert isinstance(replaced, EightBitLinear)
    assert replaced.shape.scheme == scheme
    assert ask(tmp_path / "out") == answer()


@pytest.mark.parametrize("format", ["vila", "nvila"])
def test_formats_of_whole_weights_refuse_it(awq_tiny: Checkpoint, tmp_path: Path, format: str) -> None:
    with pytest.raises(CheckpointError, match=r"is quantized \(AWQ, 4 bits, groups of 128\)"):
        convert(awq_tiny, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["awq", "tinychat"])
def test_whole_weights_are_to_be_quantized_first(whole_tiny: Checkpoint, tmp_path: Path, format: str) -> None:
    with pytest.raises(CheckpointError, match=r"is not quantized.*vila-quant awq"):
        convert(whole_tiny, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_no_adapter_is_merged_into_it(awq_tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="adapter cannot be merged"):
        convert(awq_tiny, tmp_path / "out", "awq", lora=tmp_path)


def test_without_vila_quant_the_reader_says_what_to_install(
    awq_tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VILA_PLUGINS", "")
    with pytest.raises(CheckpointError, match=r"is quantized \(awq\).*Install vila-quant"):
        open_checkpoint(awq_tiny.path)


def test_info_counts_weights_and_not_words(
    awq_tiny: Checkpoint, whole_tiny: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes, whole = estimate(awq_tiny), estimate(whole_tiny)
    assert sizes.parameters == whole.parameters
    blocks = sum(
        entry.numel
        for name, entry in whole_tiny.weights.entries.items()
        if name.endswith("_proj.weight") and "llm." in name
    )
    # four bits a weight, and two bytes and a half for 128 of them
    assert sizes.parts["llm"].packed == blocks
    assert sizes.parts["llm"].packed_bytes == blocks // 2 + blocks // 128 * 2 + blocks // 128 // 2
    assert sizes.weight_bytes("bfloat16") == 2 * (whole.parameters - blocks) + sizes.parts["llm"].packed_bytes
    with pytest.raises(SystemExit) as stopped:
        main(["info", str(awq_tiny.path)])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "AWQ, 4 bits, groups of 128" in shown
    assert "I32" in shown


Tamper = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(awq_tiny: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the quantized model that may be changed."""
    return convert(awq_tiny, tmp_path / "model", "awq").path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "gptq"}, r"quantized \(gptq\), which no registered format reads"),
        ({"quant_method": None}, "quantized"),
        ({"version": "gemv"}, "'version' is 'gemv'; expected 'gemm'"),
        ({"version": 2}, "'version' is 2; expected a string"),
        ({"version": None, "format": "llm-awq"}, "'format' is 'llm-awq'; expected 'gemm'"),
        ({"bits": 8}, "'bits' is 8; expected 4"),
        ({"bits": "four"}, "'bits' is 'four'; expected a whole number"),
        ({"zero_point": False}, "'zero_point' is false"),
        ({"group_size": 64}, "'group_size' is 64, but '.*scales' has groups of 128"),
        ({"group_size": 0}, "'group_size' is 0"),
        ({"group_size": -1}, "'group_size' is -1, but"),
        ({"group_size": -2}, "at least -1"),
        ({"modules_to_not_convert": "lm_head"}, "'modules_to_not_convert' is lm_head; expected a list"),
        ({"modules_to_not_convert": [1]}, "expected a list of names"),
        (
            {"modules_to_not_convert": ["model.layers.3"]},
            "names 'model.layers.3', but 'llm.model.layers.3.* is quantized",
        ),
        ({"modules_to_not_convert": ["q_proj.weight"]}, "names 'q_proj', but"),
    ],
)
def test_a_config_that_is_unknown_or_wrong_is_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    file = folder / "llm" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= changes
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_configs_that_contradict_one_another_are_refused(folder: Path) -> None:
    root = json.loads((folder / "config.json").read_text())
    own = json.loads((folder / "llm" / "config.json").read_text())["quantization_config"]
    (folder / "config.json").write_text(json.dumps(root | {"quantization_config": own | {"group_size": 32}}))
    with pytest.raises(CheckpointError, match=r"'group_size' is 128, but .*says 32"):
        open_checkpoint(folder)


def test_a_whole_linear_that_the_config_does_not_name_is_refused(lite: Checkpoint, tmp_path: Path) -> None:
    convert(rounded(lite, 32, skip=(DOWN,)), tmp_path / "out", "awq")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for section in (config, config["text_config"]):
        section["quantization_config"]["modules_to_not_convert"] = None
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"does not name '{DOWN}', which is not quantized"):
        vila.load(tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qzeros": None}, f"'{DOWN}.qzeros' is missing: the layer has only .*qweight.*scales"),
        ({"scales": None}, f"'{DOWN}.scales' is missing"),
        ({"qweight": None}, f"has no '{DOWN}.qweight' beside it"),
        ({"qweight": torch.zeros(640, 32)}, "qweight' is F32; expected I32"),
        ({"qzeros": torch.zeros(5, 32, dtype=torch.int64)}, "qzeros' is I64; expected I32"),
        ({"scales": torch.ones(5, 256)}, "scales' is F32; expected F16 or BF16"),
        (
            {"scales": torch.ones(7, 256).half()},
            r"scales' has shape \[7, 256\], whose rows do not divide the 640 inputs",
        ),
        ({"scales": torch.ones(5, 248).half()}, r"scales' has shape \[5, 248\]; expected \[5, 256\]"),
        ({"qzeros": torch.zeros(4, 32, dtype=torch.int32)}, r"qzeros' has shape \[4, 32\]; expected \[5, 32\]"),
        ({"qweight": torch.zeros(640, dtype=torch.int32)}, r"qweight' has shape \[640\]; expected \[K, N/8\]"),
        ({"weight": torch.zeros(256, 640).half()}, "is stored twice"),
        ({"weight_scale": torch.ones(256, 1)}, "scales no eight-bit"),
    ],
)
def test_tensors_that_do_not_make_a_layer_are_named(
    awq_tiny: Checkpoint, changed: dict[str, Tensor | None], message: str
) -> None:
    tampered = with_tensors(awq_tiny, {f"{DOWN}.{kind}": tensor for kind, tensor in changed.items()})
    with pytest.raises(CheckpointError, match=message):
        find_layers(tampered.weights.entries)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight_scale": None}, "weight_scale' is missing"),
        ({"weight_scale": torch.ones(256)}, r"weight_scale' has shape \[256\]; expected \[256, 1\]"),
        ({"weight_scale": torch.ones(256, 1).half()}, "weight_scale' is F16; expected F32"),
        ({"weight": torch.zeros(256, dtype=torch.int8)}, r"I8 of shape \[256\]; expected \[N, K\]"),
    ],
)
def test_eight_bit_tensors_that_do_not_make_a_layer_are_named(
    changed: dict[str, Tensor | None], message: str, awq_tiny: Checkpoint
) -> None:
    layer: dict[str, Tensor | None] = {
        "weight": torch.zeros(256, 64, dtype=torch.int8),
        "weight_scale": torch.ones(256, 1),
    }
    name = "vision_tower.a.fc1"
    tampered = with_tensors(awq_tiny, {f"{name}.{kind}": tensor for kind, tensor in (layer | changed).items()})
    with pytest.raises(CheckpointError, match=message):
        find_layers(tampered.weights.entries)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llm.model.layers.9.mlp.down_proj", "is quantized in the checkpoint, but no module in the model"),
        ("llm.model.norm", "but a RMSNorm in the model"),
        ("mm_projector.layers.2", r"has 256 outputs and 640 inputs in the checkpoint; its config says \d+ and \d+"),
    ],
)
def test_a_layer_that_the_model_does_not_have_is_refused(
    awq_tiny: Checkpoint, tmp_path: Path, name: str, message: str
) -> None:
    tensors = tensors_of(awq_tiny)
    changed: dict[str, Tensor | None] = {
        f"{name}.{kind}": tensors[f"{DOWN}.{kind}"] for kind in ("qweight", "qzeros", "scales")
    }
    changed |= {key: None for key in (f"{name}.weight", f"{name}.bias") if key in tensors}
    convert(with_tensors(awq_tiny, changed), tmp_path / "out", "awq")
    file = tmp_path / "out" / "llm" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["modules_to_not_convert"] = None
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        vila.load(tmp_path / "out", device="cpu")


def test_groups_of_different_sizes_cannot_be_written(whole_tiny: Checkpoint, tmp_path: Path) -> None:
    mixed = with_tensors(rounded(whole_tiny, 128), {})
    other = tensors_of(rounded(whole_tiny, 64))
    changed: dict[str, Tensor | None] = {name: tensor for name, tensor in other.items() if name.startswith(f"{DOWN}.")}
    with pytest.raises(
        CheckpointError, match=r"layers with one group size; got .*64 \(llm.model.layers.1.mlp.down_proj\)"
    ):
        convert(with_tensors(mixed, changed), tmp_path / "out", "awq")
    assert not (tmp_path / "out").exists()
