"""Reading checkpoint folders, and the messages for damaged ones."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.programs import run_program

from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.configs.language import read_language_config, write_language_config
from vila_core.checkpoint.json_files import Section
from vila_core.config import DecoderConfig, RadioConfig, SiglipConfig, TransformersConfig, TSPVideoEncoderConfig
from vila_core.errors import CheckpointError

Make = Callable[..., Path]
Edit = Callable[..., None]

DATA = Path(__file__).parents[2] / "parity" / "data"
RECORDED = sorted(path.parent for path in DATA.glob("*/*/checkpoint"))


@pytest.mark.parametrize("variant", RECORDED, ids=lambda path: path.name)
def test_recorded_checkpoints_open_with_the_context_that_the_reference_gives(variant: Path):
    checkpoint = open_checkpoint(variant / "checkpoint")
    cases = [json.loads(path.read_text()) for path in variant.glob("cases/*/case.json")]
    lengths = {case["default_generation_config"]["max_length"] for case in cases if "default_generation_config" in case}
    assert checkpoint.format == "vila"
    assert lengths <= {checkpoint.config.language_model.max_length}


def test_reading_needs_no_torch(make_checkpoint: Make):
    use = "from vila_core.checkpoint import estimate, open_checkpoint; estimate(open_checkpoint(sys.argv[1]))"
    code = f"import sys; {use}; print('torch' in sys.modules)"
    done = run_program([sys.executable, "-c", code, str(make_checkpoint())], check=True)
    assert done.stdout.strip() == "False"


def test_towers_of_each_family(make_checkpoint: Make):
    lite = open_checkpoint(make_checkpoint("nvila_lite")).config
    assert isinstance(lite.vision_tower, SiglipConfig)
    assert (lite.vision_tower.use_head, lite.vision_tower.select_layer, lite.pixels.size) == (False, -2, 56)
    s2 = open_checkpoint(make_checkpoint("nvila")).config
    assert s2.dynamic_s2 is not None
    assert s2.dynamic_s2.scales == s2.preprocess.s2_scales == (56, 112, 168)
    assert (s2.pixels.size, s2.projector.in_size, s2.dynamic_s2.resize_output_to_scale_idx) == (56, 72, -1)
    clip = open_checkpoint(make_checkpoint("clip_llama")).config
    assert (clip.pixels.resize, clip.pixels.crop, clip.pixels.mean, clip.vision_tower.select_feature) == (
        "shortest_edge",
        True,
        (0.48, 0.46, 0.41),
        "patch",
    )
    intern = open_checkpoint(make_checkpoint("intern_llama")).config
    assert (intern.vision_tower.select_layer, intern.pixels.mean, intern.pixels.can_pad) == (
        -1,
        (0.485, 0.456, 0.406),
        False,
    )


def test_template_is_the_one_stated_by_the_config(make_checkpoint: Make, edit: Edit):
    folder = make_checkpoint("clip_llama")
    assert open_checkpoint(folder).config.chat_template == "vicuna_v1"
    for changes, expected in (
        ({"version": "never heard of"}, None),
        ({"version": "auto"}, "auto"),
        ({"version": ..., "chat_template": "qwen2"}, "auto"),
    ):
        edit(folder / "config.json", **changes)
        assert open_checkpoint(folder).config.chat_template == expected


def test_tokenizers_template_is_found_in_both_places(make_checkpoint: Make, edit: Edit):
    folder = make_checkpoint("clip_llama")
    assert open_checkpoint(folder).chat_template is None
    named = [{"name": "tools", "template": "{{ tools }}"}, {"name": "default", "template": "{{ messages[0] }}"}]
    edit(folder / "llm" / "tokenizer_config.json", chat_template=named)
    assert open_checkpoint(folder).chat_template == "{{ messages[0] }}"
    (folder / "llm" / "chat_template.jinja").write_text("{{ messages }}")
    assert open_checkpoint(folder).chat_template == "{{ messages }}"


def test_license_comes_from_the_model_card(make_checkpoint: Make):
    folder = make_checkpoint()
    assert open_checkpoint(folder).license == "cc-by-nc-4.0"
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: nvidia-eula\n---\n")
    assert open_checkpoint(folder).license == "other (nvidia-eula)"
    (folder / "README.md").unlink()
    assert open_checkpoint(folder).license is None
    (folder / "LICENSE").write_text("\n  Apache License\n  Version 2.0\n")
    assert open_checkpoint(folder).license == "Apache License (LICENSE)"


def test_training_settings_are_kept_and_ignored(make_checkpoint: Make):
    checkpoint = open_checkpoint(make_checkpoint())
    assert checkpoint.raw_config["fabit"] == "E4M3"
    assert checkpoint.raw_config["tune_language_model"] is True


def test_remote_code_releases_open_without_their_code(make_checkpoint: Make, edit: Edit):
    folder = make_checkpoint()
    (folder / "modeling_vila.py").write_text("raise SystemExit('remote code was run')")
    edit(folder / "config.json", model_type="vila", auto_map={"AutoModel": "modeling_vila.VILAForCausalLM"})
    assert open_checkpoint(folder).format == "vila-remote"


def test_remote_code_releases_may_keep_all_weights_at_the_root(make_checkpoint: Make, edit: Edit):
    folder = make_checkpoint()
    expected = dict(open_checkpoint(folder).weights.shards())
    wrapped = {name.replace("vision_tower.", "vision_tower.vision_tower."): tensor for name, tensor in expected.items()}
    save_file(wrapped, folder / "model.safetensors")
    for part in ("llm", "vision_tower", "mm_projector"):
        (folder / part / "model.safetensors").unlink()
    edit(folder / "config.json", model_type="vila")
    found = dict(open_checkpoint(folder).weights.shards())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_radio_config_comes_from_the_weights_shapes(make_checkpoint: Make, edit: Edit):
    """Names and config keys are those of nvidia/RADIO on the hub."""
    folder = make_checkpoint()
    width, at = 128, "radio_model.model"
    shapes = {
        f"{at}.patch_generator.pos_embed": (1, 64, width), f"{at}.patch_generator.cls_token.token": (8, width),
        f"{at}.patch_generator.embedder.weight": (width, 3 * 16 * 16), "radio_model.summary_idxs": (2,),
    }  # fmt: skip
    for layer in range(3):
        block = f"{at}.blocks.{layer}"
        shapes |= {
            f"{block}.norm1.weight": (width,),
            f"{block}.attn.qkv.weight": (3 * width, width),
            f"{block}.mlp.fc1.weight": (4 * width, width),
        }
    save_file(
        {name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "vision_tower" / "model.safetensors"
    )
    teachers = [
        {"name": "clip", "type": "open_clip"},
        {"name": "siglip"},
        {"name": "dino"},
        {"name": "clip", "input_size": 432},
    ]
    args = {
        "cls_token_per_teacher": True,
        "register_multiple": 8,
        "teachers": teachers,
        "model": "vit_base_patch16_224",
    }
    config = {
        "architectures": ["RADIOModel"],
        "args": args,
        "patch_size": 16,
        "max_resolution": 128,
        "preferred_resolution": [96, 96],
    }
    (folder / "vision_tower" / "config.json").write_text(json.dumps(config))
    (folder / "vision_tower" / "preprocessor_config.json").unlink()
    edit(folder / "config.json", mm_hidden_size=width, mm_vision_select_feature="patch")
    tower = open_checkpoint(folder).config.vision_tower
    assert isinstance(tower, RadioConfig)
    assert (tower.image_size, tower.max_image_size, tower.num_summary_tokens, tower.num_registers) == (96, 128, 3, 5)
    assert (tower.hidden_size, tower.num_hidden_layers, tower.num_attention_heads, tower.intermediate_size) == (
        128,
        3,
        2,
        512,
    )
    assert (tower.final_norm, tower.normalize_features, tower.select_layer) == (False, False, -1)


def test_encoders_are_looked_up_by_their_last_name(make_checkpoint: Make, edit: Edit):
    folder = make_checkpoint()
    encoder = {"_target_": "somewhere.else.TSPVideoEncoder", "pool_sizes": [[8, 1, 1], [4, 2, 2]], "sep_tokens": "\n"}
    edit(folder / "config.json", video_encoder=encoder, num_time_tokens=100, time_token_format="<t{t}>")
    config = open_checkpoint(folder).config
    assert isinstance(config.video_encoder, TSPVideoEncoderConfig)
    assert (config.video_encoder.pool_sizes, config.video_encoder.end_tokens) == (((8, 1, 1), (4, 2, 2)), "\n")
    assert config.time_tokens is not None
    assert config.time_tokens.count == 100


def test_vision_resolution_resizes_positions(make_checkpoint: Make, edit: Edit):
    folder = make_checkpoint()
    edit(folder / "config.json", vision_resolution=84)
    config = open_checkpoint(folder).config
    assert (config.vision_tower.image_size, config.vision_tower.pretrained_image_size, config.pixels.size) == (
        84,
        56,
        84,
    )


def test_static_s2_resizes_to_its_largest_scale(make_checkpoint: Make, edit: Edit):
    folder = make_checkpoint()
    edit(folder / "config.json", s2=True, s2_scales=[112, 56], mm_hidden_size=48)
    config = open_checkpoint(folder).config
    assert config.s2 is not None
    assert (config.s2.scales, config.pixels.size, config.projector.in_size, config.preprocess.s2_scales) == (
        (56, 112),
        112,
        48,
        (),
    )


QWEN2 = {
    "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6,
}  # fmt: skip


def language(**changes: object) -> DecoderConfig | TransformersConfig:
    config = read_language_config(Section(QWEN2 | changes, "config.json"), 256)
    assert isinstance(config, DecoderConfig | TransformersConfig)
    return config


def native(**changes: object) -> DecoderConfig:
    config = language(**changes)
    assert isinstance(config, DecoderConfig)
    return config


def test_biases_and_norms_of_each_architecture():
    flags = {
        kind: (config.attention_bias, config.attention_out_bias, config.qk_norm, config.head_dim)
        for kind in ("qwen2", "qwen3", "llama", "mistral")
        for config in [native(model_type=kind)]
    }
    assert flags == {
        "qwen2": (True, False, False, 16),
        "qwen3": (False, False, True, 128),
        "llama": (False, False, False, 16),
        "mistral": (False, False, False, 16),
    }
    biased = native(model_type="llama", attention_bias=True, mlp_bias=True, head_dim=32)
    assert (biased.attention_bias, biased.attention_out_bias, biased.mlp_bias, biased.head_dim) == (
        True,
        True,
        True,
        32,
    )


@pytest.mark.parametrize(
    ("given", "kind", "factor"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear", 2.0),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}},
            "llama3",
            8.0,
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0}}, "yarn", 4.0),
        ({"rope_scaling": {"type": "dynamic", "factor": 3.0}}, "dynamic", 3.0),
    ],
    ids=["linear", "llama3", "transformers-5", "dynamic"],
)  # fmt: skip
def test_rotary_scalings_in_every_spelling(given: dict[str, object], kind: str, factor: float):
    config = native(**given)
    assert config.rope_scaling is not None
    assert (config.rope_scaling.rope_type, config.rope_scaling.factor) == (kind, factor)
    assert config.rope_theta == (5e5 if "rope_parameters" in given else 1e6)


def test_sliding_windows():
    assert native(use_sliding_window=False, sliding_window=128).sliding_window is None
    assert native(use_sliding_window=True, sliding_window=128, max_window_layers=0).sliding_window == 128
    assert native(use_sliding_window=True, sliding_window=128, max_window_layers=4).sliding_window is None
    assert native(model_type="mistral", sliding_window=None).sliding_window is None
    assert native(model_type="mistral").sliding_window == 4096
    # Windows in some layers only: for the adapter of transformers.
    assert isinstance(language(use_sliding_window=True, sliding_window=128, max_window_layers=2), TransformersConfig)


def test_unsupported_language_models_use_transformers():
    for changes in (
        {"model_type": "gemma2"},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
    ):
        config = language(**changes)
        assert isinstance(config, TransformersConfig), changes
        assert config.hf_config["hidden_size"] == 64


@pytest.mark.parametrize(
    "changes",
    [{}, {"model_type": "qwen3", "head_dim": 32}, {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
     {"model_type": "mistral", "sliding_window": 64},
     {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0},
     {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}}],
    ids=["qwen2", "qwen3", "llama", "mistral", "window", "llama3"],
)  # fmt: skip
def test_written_language_configs_read_back(changes: dict[str, object]):
    config = native(**changes)
    assert read_language_config(Section(write_language_config(config, "bfloat16"), "written"), 256) == config


def test_missing_and_empty_folders(tmp_path: Path, make_checkpoint: Make):
    with pytest.raises(CheckpointError, match="No folder"):
        open_checkpoint(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is empty"):
        open_checkpoint(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        open_checkpoint(tmp_path / "file")
    folder = make_checkpoint()
    with pytest.raises(CheckpointError, match="revision"):
        open_checkpoint(folder, revision="main")
    shutil.rmtree(folder / "mm_projector")
    with pytest.raises(CheckpointError, match="no folder 'mm_projector'"):
        open_checkpoint(folder)


def test_unknown_model_type_lists_the_known_ones(make_checkpoint: Make, edit: Edit):
    folder = make_checkpoint()
    edit(folder / "config.json", model_type="blip")
    with pytest.raises(CheckpointError, match=r"'blip'.*llava_\*.*nvila_lite"):
        open_checkpoint(folder)


@pytest.mark.parametrize("file", ["config.json", "llm/config.json"])
def test_quantized_model_needs_the_format_of_its_quantizer(
    make_checkpoint: Make, edit: Edit, monkeypatch: pytest.MonkeyPatch, file: str
):
    monkeypatch.setenv("VILA_PLUGINS", "")
    folder = make_checkpoint()
    edit(folder / file, quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(CheckpointError, match=r"quantized \(awq\).*vila-quant"):
        open_checkpoint(folder)
    edit(folder / file, quantization_config=["awq"])
    with pytest.raises(CheckpointError, match=r"quantized \(unknown method\)"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "config.json",
            {"image_encoder": {"_target_": "os.system"}},
            r"media encoder 'system'.*Known: .*BasicImageEncoder",
        ),
        ("config.json", {"image_encoder": {"_target_": "x.BasicImageEncoder", "color": 1}}, "color"),
        ("config.json", {"image_encoder": "{not json"}, "not valid JSON"),
        ("config.json", {"image_encoder": ["BasicImageEncoder"]}, "expected an object"),
        ("config.json", {"num_video_frames": -1}, r"num_video_frames.*at least 1"),
        ("config.json", {"fps": "fast"}, r"fps.*finite number"),
        ("config.json", {"mm_vision_select_feature": "cls"}, "one of patch, cls_patch"),
        ("config.json", {"s2": True, "s2_scales": "448;896"}, "s2_scales"),
        ("config.json", {"image_aspect_ratio": "dynamic_s2"}, "dynamic_s2"),
        ("config.json", {"mm_hidden_size": 25}, "mm_hidden_size"),
        ("config.json", {"min_tiles": 13}, "min_tiles"),
        ("config.json", {"ps3": True}, "PS3"),
        ("mm_projector/config.json", {"mm_projector_type": "qformer"}, r"projector 'qformer'.*mlp_downsample_2x2_fix"),
        ("vision_tower/config.json", {"model_type": "dinov2"}, r"vision tower 'dinov2'.*siglip"),
        ("vision_tower/config.json", {"hidden_size": 0}, "hidden_size"),
        ("vision_tower/config.json", {"patch_size": ...}, "has no 'patch_size'"),
        ("vision_tower/preprocessor_config.json", {"do_normalize": False}, "do_normalize"),
        ("vision_tower/preprocessor_config.json", {"size": {"height": 56, "width": 112}}, "square"),
        ("vision_tower/preprocessor_config.json", {"image_mean": [0.5]}, "list of 3"),
        ("llm/config.json", {"num_attention_heads": 3, "num_key_value_heads": 2}, "multiple of num_key_value_heads"),
        ("llm/config.json", {"hidden_size": "wide"}, "whole number"),
        ("llm/config.json", {"rope_scaling": {"type": "linear"}}, "has no 'factor'"),
    ],
)  # fmt: skip
def test_wrong_values_are_reported_with_their_file(
    make_checkpoint: Make, edit: Edit, file: str, changes: dict[str, object], message: str
):
    folder = make_checkpoint()
    edit(folder / file, **changes)
    with pytest.raises(CheckpointError, match=message) as raised:
        open_checkpoint(folder)
    assert Path(file).name in str(raised.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '"llava_llama"', '{"model_type": NaN}', '{"a": ' + "[" * 100_000, "\xff\xfe"], ids=range(7)
)
@pytest.mark.parametrize(
    "file", ["config.json", "llm/config.json", "vision_tower/config.json", "llm/tokenizer_config.json"]
)
def test_files_that_are_not_json_objects(make_checkpoint: Make, file: str, text: str):
    folder = make_checkpoint()
    (folder / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=Path(file).name):
        open_checkpoint(folder)


def test_missing_tokenizer(make_checkpoint: Make):
    folder = make_checkpoint()
    (folder / "llm" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer.*tokenizer\.json"):
        open_checkpoint(folder)
