"""The model that a run starts from: a checkpoint with changes, or a new one from parts."""

import json
import re
import shutil
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

import vila_core as vila
from vila_core.checkpoint import save_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.errors import CheckpointError, ConfigError, VilaError
from vila_train.config import ModelConfig, NewModel
from vila_train.models import OpenedModel, open_model

LLM, TOWER = str(embedded_model() / "llm"), str(embedded_model() / "vision_tower")


def new(**changes: object) -> NewModel:
    return NewModel.model_validate({"language_model": LLM, "vision_tower": TOWER, **changes})


def save(opened: OpenedModel, folder: Path) -> vila.Vila:
    save_checkpoint(opened.network.state_dict(), opened.network.config, opened.tokenizer_path, folder, base=opened.base)
    return vila.load(folder, device="cpu", dtype="float32")


def test_a_checkpoint_opens_unchanged():
    opened = open_model(ModelConfig(path="vila-tiny"), 0)
    expected = vila.load("vila-tiny", device="cpu", dtype="float32")
    assert opened.network.config == expected.config
    assert opened.template == expected.template
    assert not opened.has_new_projector
    assert opened.base is not None
    weights = opened.network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in expected.network.state_dict().items())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in opened.network.parameters())


def test_shapes_need_no_weights():
    opened = open_model(ModelConfig(path="vila-tiny"), 0, weights=False)
    assert all(parameter.is_meta for parameter in opened.network.parameters())


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"image_aspect_ratio": "dynamic", "max_tiles": 4}, "max_tiles", 4),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio", "pad"),
        ({"num_video_frames": 16}, "num_video_frames", 16),
        ({"image_aspect_ratio": "dynamic_s2", "s2_scales": (192, 96)}, "s2_scales", (96, 192)),
    ],
)
def test_a_change_is_saved_with_the_model(tmp_path: Path, changes: dict[str, object], field: str, value: object):
    opened = open_model(ModelConfig.model_validate({"path": "vila-tiny", **changes}), 0)
    assert getattr(opened.network.config.preprocess, field) == value
    model = save(opened, tmp_path / "model")
    assert model.config.preprocess == opened.network.config.preprocess
    image = PIL.Image.new("RGB", (300, 200), "red")
    assert isinstance(model.generate([image, "What is it?"], max_new_tokens=2), str)


def test_dynamic_s2_needs_a_new_projector_and_leaving_it_another(tmp_path: Path):
    opened = open_model(
        ModelConfig(path="vila-tiny", image_aspect_ratio="dynamic_s2", s2_scales=(96, 192), projector="mlp_downsample"),
        0,
    )
    assert opened.has_new_projector
    assert opened.network.config.projector.in_size == 2 * 192
    save(opened, tmp_path / "s2")
    plain = ModelConfig(path=str(tmp_path / "s2"), image_aspect_ratio="resize", s2_scales=())
    left = open_model(plain, 0)
    assert left.has_new_projector
    assert left.network.config.dynamic_s2 is None
    assert left.network.config.projector.in_size == 192
    assert not open_model(ModelConfig(path=str(tmp_path / "s2")), 0).has_new_projector


def test_the_projector_of_the_same_type_is_kept():
    own = open_model(ModelConfig(path="vila-tiny"), 0)
    name = own.network.config.projector.name
    same = open_model(ModelConfig(path="vila-tiny", projector=name), 0)
    other = open_model(ModelConfig(path="vila-tiny", projector="linear"), 0)
    assert (same.has_new_projector, other.has_new_projector) == (False, True)
    kept = own.network.state_dict()
    assert all(torch.equal(kept[n], t) for n, t in same.network.state_dict().items())
    assert all(torch.equal(kept[n], t) for n, t in other.network.state_dict().items() if not n.startswith("mm_"))


def test_temporal_pooling_and_the_context_are_saved(tmp_path: Path):
    model = save(open_model(ModelConfig(path="vila-tiny", temporal_pool=4, max_length=1024), 0), tmp_path / "model")
    assert model.config.video_encoder.model_dump()["pool_sizes"] == ((4, 1, 1),)
    assert model.config.video_encoder.end_tokens == "\n"
    assert model.config.language_model.max_length == 1024


def test_time_tokens_join_the_vocabulary(tmp_path: Path):
    opened = open_model(ModelConfig(path="vila-tiny", num_time_tokens=10), 0)
    before = open_model(ModelConfig(path="vila-tiny"), 0)
    ids = [opened.tokenizer.encode(f"<t{t}>") for t in range(10)]
    assert all(len(of_one) == 1 for of_one in ids)
    rows = opened.network.config.language_model.vocab_size
    assert max(max(ids)) < rows
    model = save(opened, tmp_path / "model")
    assert model.config.time_tokens is not None
    assert model.config.time_tokens.count == 10
    assert [model.tokenizer.encode(f"<t{t}>") for t in range(10)] == ids
    assert model.tokenizer.media_token_ids == before.tokenizer.media_token_ids
    assert model.template == before.template
    again = open_model(ModelConfig(path=str(tmp_path / "model"), num_time_tokens=10), 0)
    assert again.files is None  # it has them
    text = "What is <t3>?"
    assert model.tokenizer.encode(text) == again.tokenizer.encode(text)


def test_a_template_may_change(tmp_path: Path):
    opened = open_model(ModelConfig(path="vila-tiny", chat_template="hermes-2"), 0)
    assert opened.template.name == "hermes-2"
    assert save(opened, tmp_path / "model").template.name == "hermes-2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_aspect_ratio": "dynamic_s2"}, "needs model.s2_scales"),
        ({"s2_scales": (96,)}, "at least two scales"),
        ({"s2_scales": (100, 200)}, "expected 96, the image size of the vision tower"),
        ({"s2_scales": (96, 200)}, "S2 scale 200 is not a few tiles"),
        ({"s2_scales": ()}, None),
        ({"projector": "mlp_downsampel"}, "Did you mean 'mlp_downsample'"),
        ({"projector": "identity"}, "identity"),
        ({"chat_template": "quen2"}, "Did you mean 'qwen2'"),
        ({"chat_template": "llama_3"}, "is not a token of this checkpoint"),
        ({"max_length": 4096}, "the language model has 2,048 positions"),
        ({"max_tiles": 10**6}, "max_tiles"),
        ({"num_video_frames": 10**9}, "num_video_frames"),
        ({"num_time_tokens": 10**9}, "count"),
        ({"temporal_pool": 10**9}, "pool_sizes"),
        ({"path": "no/such-folder-here/x"}, "No folder"),
        ({"path": LLM}, "qwen2"),
        ({"new": new()}, "Both model.path and model.new are set"),
    ],
)
def test_a_wrong_change_is_explained(changes: dict[str, object], message: str | None):
    config = ModelConfig.model_validate({"path": "vila-tiny", **changes})
    if message is None:
        assert open_model(config, 0, weights=False).network.config.dynamic_s2 is None
        return
    with pytest.raises(VilaError, match=re.escape(message)) as caught:
        open_model(config, 0, weights=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("projector", ["mlp_downsample", "mlp_downsample_3x3_fix", "mlp2x_gelu", "linear"])
def test_a_new_model_has_trained_parts_and_a_new_projector(tmp_path: Path, projector: str):
    opened = open_model(ModelConfig(new=new(projector=projector)), 3)
    trained = open_model(ModelConfig(path="vila-tiny"), 0).network.state_dict()
    made = opened.network.state_dict()
    assert opened.base is None
    assert opened.has_new_projector
    assert all(torch.equal(trained[n], t) for n, t in made.items() if not n.startswith("mm_projector."))
    assert all(t.isfinite().all() and t.any() for n, t in made.items() if n.endswith("weight"))
    model = save(opened, tmp_path / "model")
    assert model.config.projector.name == projector
    assert isinstance(model.generate([PIL.Image.new("RGB", (50, 60)), "What is it?"], max_new_tokens=2), str)


def test_new_weights_depend_on_the_seed_only():
    weights = []
    for seed, other in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(other)
        state = torch.get_rng_state()
        weights.append(open_model(ModelConfig(new=new()), seed).network.mm_projector.state_dict())
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_a_new_model_of_nvila_sees_scales():
    config = ModelConfig(
        new=new(), chat_template="qwen2", image_aspect_ratio="dynamic_s2", s2_scales=(96, 192, 288), max_tiles=9
    )
    network = open_model(config, 0, weights=False).network
    assert network.config.dynamic_s2 is not None
    assert network.config.dynamic_s2.resize_output_to_scale_idx == -1
    assert network.config.projector.in_size == 3 * 192
    assert network.config.vision_tower.select_layer == -2
    assert network.config.vision_tower.select_feature == "cls_patch"


def test_a_tower_with_a_text_model_beside_it(tmp_path: Path):
    """google/siglip-… and openai/clip-… hold both encoders and put the tower's settings into `vision_config`."""
    whole = tmp_path / "siglip"
    shutil.copytree(TOWER, whole)
    (file,) = whole.glob("*.safetensors")
    tensors = load_file(file)
    assert all(name.startswith("vision_model.") for name in tensors)
    save_file({**tensors, "text_model.x": torch.zeros(2), "logit_scale": torch.zeros(1)}, file)
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(
        json.dumps(
            {"model_type": "siglip", "vision_config": config, "text_config": {"model_type": "siglip_text_model"}}
        )
    )
    opened = open_model(ModelConfig(new=new(vision_tower=str(whole))), 0)
    assert opened.network.config.vision_tower == open_model(ModelConfig(new=new()), 0).network.config.vision_tower


def copy_of(folder: str, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language_model": "no/such/folder"}, "No folder"),
        ({"language_model": str(embedded_model())}, "is a whole model of the VILA family, not a language model"),
        ({"vision_tower": str(embedded_model())}, "is a whole model of the VILA family"),
        ({"language_model": TOWER}, "has no tokenizer"),
        ({"vision_tower": LLM}, "qwen2"),
        ({"projector": "mlp"}, "Unknown projector 'mlp'"),
        ({"projector": "identity"}, "identity"),
    ],
)
def test_wrong_parts_are_explained(changes: dict[str, object], message: str):
    with pytest.raises(VilaError, match=re.escape(message)) as caught:
        open_model(ModelConfig(new=new(**changes)), 0, weights=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "name", "content", "message"),
    [
        ("language_model", "config.json", None, "has no config.json"),
        ("language_model", "tokenizer.json", None, "has no tokenizer"),
        ("language_model", "model.safetensors", None, "weights"),
        ("language_model", "model.safetensors", b"x" * 100, "model.safetensors"),
        ("language_model", "config.json", b"{}", "model_type"),
        ("language_model", "config.json", b"[", "config.json"),
        ("vision_tower", "config.json", None, "has no config.json"),
        ("vision_tower", "preprocessor_config.json", None, "preprocessor_config.json"),
        ("vision_tower", "model.safetensors", None, "weights"),
        ("vision_tower", "preprocessor_config.json", b'{"size": {"height": 64, "width": 64}}', "resizes to 64 pixels"),
    ],
)
def test_damaged_parts_are_explained(tmp_path: Path, part: str, name: str, content: bytes | None, message: str):
    folder = copy_of(LLM if part == "language_model" else TOWER, tmp_path / "part")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises((CheckpointError, ConfigError), match=re.escape(message)):
        open_model(ModelConfig(new=new(**{part: str(folder)})), 0)


def test_a_quantized_language_model_is_refused(tmp_path: Path):
    folder = copy_of(LLM, tmp_path / "llm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(CheckpointError, match="is quantized"):
        open_model(ModelConfig(new=new(language_model=str(folder))), 0)
