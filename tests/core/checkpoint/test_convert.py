"""Conversions keep every bit and setting; a failed one leaves nothing behind."""

import errno
import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vila_core.checkpoint import Checkpoint, convert, estimate, open_checkpoint, save_checkpoint
from vila_core.checkpoint.new_folder import new_folder
from vila_core.checkpoint.tensors.shard_writer import ShardWriter
from vila_core.cli.convert import convert_checkpoint
from vila_core.errors import CheckpointError
from vila_core.tokenizer import Tokenizer

Make = Callable[..., Path]
Edit = Callable[..., None]

QWEN_KINDS = ["nvila_lite", "nvila"]
ALL_KINDS = [*QWEN_KINDS, "clip_llama", "intern_llama"]

# SGLang: python/sglang/srt/models/nvila.py and nvila_lite.py (`NVILAConfig`, `NVILALiteConfig`).
SGLANG_KEYS = {"text_config", "vision_config", "image_token_id", "video_token_id", "model_type", "architectures"}


def all_bytes(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    entries = checkpoint.weights.entries
    return {
        name: (entries[name].dtype, entries[name].shape, b"".join(map(bytes, chunks)))
        for name, chunks in checkpoint.weights.stream()
    }


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".part" in path.name or path.name == "out")


@pytest.mark.parametrize("kind", QWEN_KINDS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_vila_to_nvila_and_back_keeps_every_bit(make_checkpoint: Make, tmp_path: Path, kind: str, tied: bool):
    folder = make_checkpoint(kind, tied=tied)
    # Mixed dtypes, one of which is never computed with.
    tensors = load_file(folder / "mm_projector" / "model.safetensors")
    tensors["layers.1.weight"] = tensors["layers.1.weight"].float()
    save_file(tensors, folder / "mm_projector" / "model.safetensors", {"format": "pt"})
    source = open_checkpoint(folder)
    there = convert(folder, tmp_path / "there", "nvila")
    back = convert(tmp_path / "there", tmp_path / "back", "vila")
    assert all_bytes(source) == all_bytes(there) == all_bytes(back)
    assert source.config == there.config == back.config
    assert (there.format, back.format) == ("nvila", "vila")
    assert source.license == there.license == back.license == "cc-by-nc-4.0"
    assert back.chat_template == source.chat_template
    for part in ("llm", "vision_tower", "mm_projector"):
        before, after = (load_file(path / part / "model.safetensors") for path in (folder, tmp_path / "back"))
        assert before.keys() == after.keys()
        assert all(
            torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before
        )


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_vila_to_vila_keeps_every_bit_and_setting(make_checkpoint: Make, tmp_path: Path, kind: str):
    source = open_checkpoint(make_checkpoint(kind))
    copy = convert(source, tmp_path / "copy", "vila")
    assert all_bytes(source) == all_bytes(copy)
    assert source.config == copy.config
    assert copy.raw_config["fabit"] == "E4M3"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_video_frames": 17, "fps": 2.0, "max_tiles": 5, "video_max_tiles": 2, "image_aspect_ratio": "pad"},
        {
            "image_encoder": {"_target_": "x.BasicImageEncoder", "start_tokens": "<a>", "end_tokens": None},
            "num_time_tokens": 10,
            "time_token_format": "<{t}>",
        },
        {"image_aspect_ratio": "anyres"},
        {"vision_resolution": 84},
        {"vila_kit": {"tile_all": True, "chat_template": "vicuna_v1"}},
    ],
    ids=["preprocessing", "encoders", "other aspect", "resolution", "own settings"],
)
def test_settings_survive_both_formats(make_checkpoint: Make, edit: Edit, tmp_path: Path, changes: dict[str, object]):
    folder = make_checkpoint()
    edit(folder / "config.json", **changes)
    config = open_checkpoint(folder).config
    assert convert(folder, tmp_path / "vila", "vila").config == config
    if "vision_resolution" not in changes:
        assert convert(folder, tmp_path / "nvila", "nvila").config == config
        assert convert(tmp_path / "nvila", tmp_path / "back", "vila").config == config


def test_remote_code_release_becomes_vila(make_checkpoint: Make, edit: Edit, tmp_path: Path):
    folder = make_checkpoint()
    edit(folder / "config.json", model_type="vila", auto_map={"AutoModel": "modeling_vila.VILA"})
    (folder / "modeling_vila.py").write_text("raise SystemExit")
    convert(folder, tmp_path / "out", "vila")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["model_type"] == "llava_llama"
    assert "auto_map" not in written
    assert not list((tmp_path / "out").rglob("*.py"))
    with pytest.raises(CheckpointError, match="read-only"):
        convert(folder, tmp_path / "other", "vila-remote")


@pytest.mark.parametrize(("kind", "model_type", "architecture"), [
    ("nvila", "nvila", "NVILAForConditionalGeneration"),
    ("nvila_lite", "nvila_lite", "NVILALiteForConditionalGeneration"),
])  # fmt: skip
def test_nvila_has_the_keys_and_names_that_sglang_reads(
    make_checkpoint: Make, tmp_path: Path, kind: str, model_type: str, architecture: str
):
    convert(make_checkpoint(kind), tmp_path / "out", "nvila")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.keys() - {"auto_map", "torch_dtype"} == SGLANG_KEYS
    assert (config["model_type"], config["architectures"]) == (model_type, [architecture])
    assert (config["text_config"]["model_type"], config["vision_config"]["model_type"]) == (
        "qwen2",
        "siglip_vision_model",
    )
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"llm", "vision_tower", "mm_projector"}
    assert {
        "llm.model.layers.0.self_attn.q_proj.bias",
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "mm_projector.layers.1.weight",
    } <= names
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert processor["processor_class"] == architecture.replace("ForConditionalGeneration", "Processor")


def test_nvila_tokenizer_has_what_the_processor_reads(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint()
    written = convert(folder, tmp_path / "out", "nvila")
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (theirs.image_token, theirs.video_token) == ("<image>", "<vila/video>")
    assert (theirs.image_token_id, theirs.video_token_id) == (config["image_token_id"], config["video_token_id"])
    ours = Tokenizer.from_folder(folder / "llm")
    text = "a small <image>\npicture <vila/video>"
    assert theirs(text).input_ids == ours.encode(text)
    assert ours.media_token_ids == {"image": config["image_token_id"], "video": config["video_token_id"]}
    strings = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "yes"}]
    assert theirs.apply_chat_template(strings, tokenize=False) == ours.hf.apply_chat_template(strings, tokenize=False)
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}, {"type": "video"}]}]
    assert "user\n<image>what?<vila/video><|im_end|>" in theirs.apply_chat_template(parts, tokenize=False)
    assert written.chat_template is not None


@pytest.mark.parametrize("kind", QWEN_KINDS)
def test_released_nvila_folder_without_our_settings(make_checkpoint: Make, edit: Edit, tmp_path: Path, kind: str):
    expected = convert(make_checkpoint(kind), tmp_path / "out", "nvila").config
    (tmp_path / "out" / "vila_config.json").unlink()
    # transformers omits values of nested configs that equal the defaults of their class.
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for key in ("hidden_act", "model_type", "rms_norm_eps", "use_sliding_window", "sliding_window"):
        del config["text_config"][key]
    for key in ("hidden_act", "model_type", "num_channels", "layer_norm_eps"):
        del config["vision_config"][key]
    edit(tmp_path / "out" / "config.json", **config)
    assert open_checkpoint(tmp_path / "out").config == expected


def test_settings_that_contradict_the_config_are_refused(make_checkpoint: Make, edit: Edit, tmp_path: Path):
    convert(make_checkpoint(), tmp_path / "out", "nvila")
    sidecar = json.loads((tmp_path / "out" / "vila_config.json").read_text())
    sidecar["language_model"]["rope_theta"] = 5.0
    edit(tmp_path / "out" / "vila_config.json", **sidecar)
    with pytest.raises(CheckpointError, match="contradicts"):
        open_checkpoint(tmp_path / "out")
    edit(tmp_path / "out" / "vila_config.json", vision_tower={"name": "os.system"})
    with pytest.raises(CheckpointError, match=r"vision tower 'os\.system'"):
        open_checkpoint(tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [("clip_llama", ["'clip'", "'llama'", "mlp2x_gelu"]), ("intern_llama", ["'intern_vit'", "layer -1"])],
)
def test_unsupported_design_names_a_format_that_supports_it(
    make_checkpoint: Make, tmp_path: Path, kind: str, reasons: list[str]
):
    with pytest.raises(CheckpointError, match="Format 'vila' can") as raised:
        convert(make_checkpoint(kind), tmp_path / "out", "nvila")
    assert all(reason in str(raised.value) for reason in reasons)
    assert leftovers(tmp_path) == []


def test_nvila_needs_the_media_tokens_in_the_tokenizer(make_checkpoint: Make, tmp_path: Path):
    folder, other = make_checkpoint(), make_checkpoint("clip_llama")
    shutil.copy(other / "llm" / "tokenizer.json", folder / "llm" / "tokenizer.json")
    with pytest.raises(CheckpointError, match="no token '<image>'"):
        convert(folder, tmp_path / "out", "nvila")


def test_shards_stay_under_the_limit_and_are_complete(make_checkpoint: Make, tmp_path: Path):
    source = open_checkpoint(make_checkpoint())
    written = convert(source, tmp_path / "out", "nvila", max_shard_bytes=20_000)
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 3
    loaded = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert loaded.keys() == source.weights.entries.keys()
    biggest = max(entry.nbytes for entry in source.weights.entries.values())
    assert all(sum(tensor.nbytes for tensor in load_file(file).values()) <= max(20_000, biggest) for file in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == loaded.keys()
    assert all_bytes(written) == all_bytes(source)
    assert convert(tmp_path / "out", tmp_path / "whole", "nvila").config == written.config
    for limit in (0, -5):
        with pytest.raises(CheckpointError, match="max_shard_bytes"):
            convert(source, tmp_path / "never", "vila", max_shard_bytes=limit)


def test_unknown_format_lists_the_known_ones(make_checkpoint: Make, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"'nvla'.*Did you mean 'nvila'"):
        convert(make_checkpoint(), tmp_path / "out", "nvla")


def test_non_empty_target_is_left_alone(make_checkpoint: Make, tmp_path: Path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="not empty"):
        convert(make_checkpoint(), target, "vila")
    assert [path.name for path in target.iterdir()] == ["mine.txt"]
    (target / "mine.txt").unlink()
    assert convert(make_checkpoint(), target, "vila").format == "vila"
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(CheckpointError, match="not empty"):
        convert(make_checkpoint(), file, "vila")


@pytest.mark.parametrize("form", ["vila", "nvila"])
@pytest.mark.parametrize("after", [0, 7])
def test_full_disk_leaves_nothing_behind(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, after: int
):
    source = make_checkpoint()
    write, count = ShardWriter.write, 0

    def full(self: ShardWriter, name: str, chunks: object) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, name, chunks)

    monkeypatch.setattr(ShardWriter, "write", full)
    with pytest.raises(CheckpointError, match=r"disk is full.*no part of it was left behind"):
        convert(source, tmp_path / "out", form)
    assert leftovers(tmp_path) == []


def test_too_small_disk_is_reported_before_writing(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(CheckpointError, match="10 are free"):
        convert(make_checkpoint(), tmp_path / "out", "vila")
    assert leftovers(tmp_path) == []


def test_interrupt_leaves_nothing_behind(make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(self: ShardWriter, name: str, chunks: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardWriter, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(make_checkpoint(), tmp_path / "out", "vila")
    assert leftovers(tmp_path) == []


def test_source_truncated_during_the_copy(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint()
    checkpoint = open_checkpoint(folder)
    path = folder / "vision_tower" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"vision_tower/model\.safetensors ended inside tensor"):
        convert(checkpoint, tmp_path / "out", "vila")
    assert leftovers(tmp_path) == []


def test_unwritable_folder(make_checkpoint: Make, tmp_path: Path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder is needed")
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert(make_checkpoint(), blocked / "out", "vila")


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("with_base", [True, False], ids=["with base", "from nothing"])
def test_saving_from_memory_reads_back(make_checkpoint: Make, tmp_path: Path, kind: str, with_base: bool):
    base = open_checkpoint(make_checkpoint(kind))
    trained = {name: tensor * 2 for name, tensor in base.weights.shards()}
    saved = save_checkpoint(
        trained, base.config, base.tokenizer_path, tmp_path / "out", base=base if with_base else None
    )
    assert saved.config == base.config
    assert all(torch.equal(tensor, trained[name]) for name, tensor in saved.weights.shards())
    assert saved.license == (base.license if with_base else None)
    half = save_checkpoint(trained, base.config, base.tokenizer_path, tmp_path / "half", dtype=torch.float16)
    assert half.config.dtype == "float16"
    assert {entry.dtype for entry in half.weights.entries.values()} == {"F16"}


def test_changed_config_is_written(make_checkpoint: Make, tmp_path: Path):
    base = open_checkpoint(make_checkpoint("clip_llama"))
    grown = {
        name: torch.cat([tensor, tensor[:3]]) if tensor.shape[:1] == (300,) else tensor
        for name, tensor in base.weights.shards()
    }
    language_model = base.config.language_model.model_copy(update={"vocab_size": 303, "max_length": 99})
    preprocess = base.config.preprocess.model_copy(update={"num_video_frames": 3, "tile_all": True})
    config = base.config.model_copy(
        update={"language_model": language_model, "preprocess": preprocess, "chat_template": "llama_3"}
    )
    saved = save_checkpoint(grown, config, base.tokenizer_path, tmp_path / "out", base=base)
    assert saved.config == config
    assert json.loads((tmp_path / "out" / "llm" / "config.json").read_text())["vocab_size"] == 303


def test_estimate_counts_by_part(make_checkpoint: Make):
    checkpoint = open_checkpoint(make_checkpoint())
    sizes = estimate(checkpoint)
    stored = load_file(checkpoint.path / "llm" / "model.safetensors")
    assert sizes.parts["llm"].parameters == sum(tensor.numel() for tensor in stored.values())
    assert sizes.nbytes == 2 * sizes.parameters == sizes.weight_bytes("bfloat16") == sizes.weight_bytes("float32") // 2
    # Two layers, two key/value heads of width 8, keys and values, two bytes each.
    assert sizes.cache_bytes("float16", 100) == 2 * 2 * 2 * 8 * 100 * 2
    assert sizes.cache_bytes("float16", 100, batch_size=3) == 3 * 2 * 2 * 2 * 8 * 100 * 2


def test_what_a_killed_run_left_is_removed_by_the_next(make_checkpoint: Make, tmp_path: Path):
    """A killed process leaves its temporary folder; one that still writes keeps it."""
    source = make_checkpoint()
    abandoned, other = tmp_path / ".out.abcd1234.part", tmp_path / ".other.abcd1234.part"
    for folder in (abandoned, other):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(100))
    with new_folder(tmp_path / "out") as running:
        convert(source, tmp_path / "out", "vila")
        assert running.exists()
        assert not abandoned.exists()
        assert other.exists()
        for path in (tmp_path / "out").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not list(tmp_path.glob(".out.*.part"))


def test_running_a_finished_conversion_again_is_a_success(
    make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, out = make_checkpoint(), tmp_path / "out"
    convert_checkpoint(str(source), out, "nvila")
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    convert_checkpoint(str(source), out, "nvila")
    assert "is already complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written
    assert convert(source, out, "nvila").format == "nvila"


@pytest.mark.parametrize("change", ["format", "shards", "source", "adapter"])
def test_another_conversion_never_passes_for_a_finished_one(make_checkpoint: Make, tmp_path: Path, change: str):
    source, out = make_checkpoint(), tmp_path / "out"
    convert(source, out, "vila")
    if change == "source":
        (source / "llm" / "config.json").write_text((source / "llm" / "config.json").read_text() + " ")
    (tmp_path / "lora").mkdir()
    with pytest.raises(CheckpointError, match=r"exists and is not empty|contains no adapter"):
        convert(
            source,
            out,
            "nvila" if change == "format" else "vila",
            max_shard_bytes=1000 if change == "shards" else None,
            lora=tmp_path / "lora" if change == "adapter" else None,
        )


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "file/below"])
def test_impossible_targets(make_checkpoint: Make, tmp_path: Path, name: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert(make_checkpoint(), tmp_path / name, "vila")
