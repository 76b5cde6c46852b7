"""Folders for SGLang and TensorRT-LLM: what those engines look for is there, and what they cannot serve is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from vila_core.checkpoint import export as export_module
from vila_core.checkpoint import open_checkpoint
from vila_core.cli.main import main
from vila_core.errors import CheckpointError

Make = Callable[..., Path]
Edit = Callable[..., None]


@pytest.fixture
def small_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SGLang's classes have the sizes of the tests' checkpoints."""
    monkeypatch.setattr(export_module, "SGLANG_TOWER_WIDTH", 24)
    monkeypatch.setattr(export_module, "SGLANG_TILE", 56)
    monkeypatch.setattr(export_module, "SGLANG_SCALES", (56, 112, 168))


@pytest.mark.parametrize("kind", ["nvila_lite", "nvila", "clip_llama"])
def test_tensorrt_llm_finds_every_part(make_checkpoint: Make, tmp_path: Path, kind: str):
    source = make_checkpoint(kind)
    out = tmp_path / ("vila1.5-3b" if kind == "clip_llama" else "out")
    folder = export_module.export("tensorrt-llm", source, out)
    root = json.loads((folder / "config.json").read_text())
    assert root["architectures"] == ["LlavaLlamaModel"]
    assert root["model_type"] == "llava_llama"
    assert root["model_dtype"] == "torch.bfloat16"  # `_convert_dtype` knows this and float16
    assert root["resume_path"]  # else `init_mm_projector` takes the folder's path for a type
    for part in ("llm", "vision_tower", "mm_projector"):
        # `_get_model_paths` joins the last name to the root.
        assert (folder / Path(root[f"{part}_cfg"]["_name_or_path"]).name / "config.json").is_file()
    projector = json.loads((folder / "mm_projector" / "config.json").read_text())
    assert projector["mm_projector_type"] == open_checkpoint(source).config.projector.name
    # What `init_tokenizer`, `VisionTower` and `init_vision_tower` call.
    assert AutoConfig.from_pretrained(folder / "llm").model_max_length == 256
    assert AutoTokenizer.from_pretrained(folder / "llm").model_max_length == 256
    tower = AutoConfig.from_pretrained(folder / "vision_tower")
    assert any(name in tower.architectures[0].lower() for name in ("siglip", "clip"))
    weights = torch.cat(
        [tensor.flatten() for tensor in AutoModel.from_pretrained(folder / "vision_tower").parameters()]
    )
    assert weights.isfinite().all()
    assert AutoImageProcessor.from_pretrained(folder / "vision_tower").size
    language_model = AutoModelForCausalLM.from_pretrained(folder / "llm")
    assert language_model.config.hidden_size == 32


def test_a_source_without_these_keys_gets_them(make_checkpoint: Make, edit: Edit, tmp_path: Path):
    source = make_checkpoint()
    edit(source / "llm" / "config.json", model_max_length=...)
    edit(source / "vision_tower" / "config.json", architectures=...)
    folder = export_module.export("tensorrt-llm", source, tmp_path / "out")
    assert json.loads((folder / "llm" / "config.json").read_text())["model_max_length"] == 256
    assert "siglip" in json.loads((folder / "vision_tower" / "config.json").read_text())["architectures"][0].lower()


def test_we_read_back_what_tensorrt_llm_reads(make_checkpoint: Make, tmp_path: Path):
    source = open_checkpoint(make_checkpoint())
    written = open_checkpoint(export_module.export("tensorrt-llm", source, tmp_path / "out"))
    assert written.config == source.config
    assert written.weights.entries.keys() == source.weights.entries.keys()


@pytest.mark.parametrize(
    ("kind", "folder", "problem"),
    [
        ("intern_llama", "out", "the vision tower is 'intern_vit', not siglip or clip"),
        ("intern_llama", "vila1.5-40b", "the vision tower is 'intern_vit'"),
        ("clip_llama", "out", "chat template 'auto', not 'vicuna_v1' (name the folder with vila1.5-3b or vila1.5-13b)"),
        ("clip_llama", "Llama-3-model", "chat template 'llama_3', not 'vicuna_v1'"),
    ],
)
def test_tensorrt_llm_refuses(make_checkpoint: Make, tmp_path: Path, kind: str, folder: str, problem: str):
    with pytest.raises(CheckpointError) as caught:
        export_module.export("tensorrt-llm", make_checkpoint(kind), tmp_path / folder)
    assert problem in str(caught.value)
    assert not (tmp_path / folder).exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_dtype": "torch.float32"}, "the weights are float32"),
        ({"num_time_tokens": 100}, "its prompts have time tokens"),
        ({"vision_resolution": 112}, "the tower's positions are resized as they load"),
        (
            {"video_encoder": {"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[2, 1, 1]]}},
            "a media encoder is not the basic one",
        ),
        (
            {"image_encoder": {"_target_": "llava.model.encoders.BasicImageEncoder", "end_tokens": None}},
            "images or frames do not end with a newline alone",
        ),
    ],
)
def test_tensorrt_llm_refuses_settings(
    make_checkpoint: Make, edit: Edit, tmp_path: Path, changes: dict[str, object], problem: str
):
    float32 = changes.get("model_dtype") == "torch.float32"
    source = make_checkpoint(dtype=torch.float32 if float32 else torch.bfloat16)
    edit(source / "config.json", **changes)
    with pytest.raises(CheckpointError) as caught:
        export_module.export("tensorrt-llm", source, tmp_path / "out")
    assert problem in str(caught.value)


@pytest.mark.usefixtures("small_sglang")
@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("nvila_lite", "NVILALiteForConditionalGeneration"), ("nvila", "NVILAForConditionalGeneration")],
)
def test_sglang_gets_its_class(make_checkpoint: Make, tmp_path: Path, kind: str, architecture: str):
    folder = export_module.export("sglang", make_checkpoint(kind), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert {"text_config", "vision_config", "image_token_id", "video_token_id"} <= config.keys()
    assert open_checkpoint(folder).format == "nvila"


@pytest.mark.usefixtures("small_sglang")
@pytest.mark.parametrize(
    ("kind", "changes", "problem"),
    [
        ("nvila_lite", {"image_aspect_ratio": "resize"}, "images are cut as 'resize', not 'dynamic'"),
        ("nvila_lite", {"max_tiles": 6}, "an image has 1 to 6 tiles, not 1 to 12"),
        ("nvila", {"image_aspect_ratio": "resize"}, "images are cut as 'resize', not 'dynamic_s2'"),
        ("nvila", {"s2_resize_output_to_scale_idx": 0}, "features are not merged to the last scale"),
        ("clip_llama", {}, "not 'siglip'"),
    ],
)
def test_sglang_refuses(
    make_checkpoint: Make, edit: Edit, tmp_path: Path, kind: str, changes: dict[str, object], problem: str
):
    source = make_checkpoint(kind)
    edit(source / "config.json", **changes)
    with pytest.raises(CheckpointError) as caught:
        export_module.export("sglang", source, tmp_path / "out")
    assert problem in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_sglang_fixes_the_size_of_the_tower(make_checkpoint: Make, tmp_path: Path):
    with pytest.raises(CheckpointError, match="24 wide, not 1152; its images have 56 pixels a side, not 448"):
        export_module.export("sglang", make_checkpoint(), tmp_path / "out")


def test_the_command_exports_and_says_how_to_serve(
    make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as exit:
        main(["export", "tensorrt-llm", str(out), "-m", str(make_checkpoint()), "--max-shard", "5KB"])
    assert exit.value.code == 0
    assert f"trtllm-serve {out}" in capsys.readouterr().out
    assert len(list((out / "llm").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("engine", ["vllm", "", "SGLang", "tensorrt_llm"])
def test_an_unknown_engine_is_named(engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit:
        main(["export", engine, str(tmp_path / "out")])
    assert exit.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error == f"Error: There is no engine '{engine}'. Known: sglang, tensorrt-llm."


def test_a_used_folder_is_not_overwritten(make_checkpoint: Make, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        export_module.export("tensorrt-llm", make_checkpoint(), tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
