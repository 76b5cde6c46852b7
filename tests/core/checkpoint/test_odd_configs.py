"""Configs of language models with odd but readable values: the tokenizer is loaded without them (F15, F17)."""

import codecs
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.programs import run_program

import vila_core as vila
from vila_core.checkpoint import open_checkpoint
from vila_core.errors import CheckpointError
from vila_core.tokenizer import Tokenizer

Make = Callable[..., Path]
Edit = Callable[..., None]

ODD: dict[str, object] = {
    "max_window_layers": None,
    "tie_word_embeddings": None,
    "initializer_range": 1,
    "torch_dtype": "torch.float16",
    "dtype": "no such type",
    "use_cache": None,
    "attention_dropout": None,
    "use_sliding_window": None,
    "rope_theta": 1000000,
    "rms_norm_eps": 1,
    "eos_token_id": [2, 3],
    "bos_token_id": "one",
    "pad_token_id": 10**9,
    "head_dim": None,
    "layer_types": None,
    "hidden_act": None,
    "num_labels": 10**12,
    "id2label": "none",
    "problem_type": "guessing",
    "architectures": "Qwen2ForCausalLM",
    "is_encoder_decoder": "no",
    "transformers_version": 5,
    "output_attentions": True,
    "attn_implementation": "flash_attention_2",
    "per_layer_config": {"0": {"hidden_size": 3}},
    "base_model_tp_plan": 3,
    "name_or_path": ["x"],
    "chunk_size_feed_forward": -1.5,
}

READ = {"rope_theta", "rms_norm_eps"}
"""Of these keys, those that the network does need."""


@pytest.mark.parametrize("key", ODD)
def test_a_value_that_inference_does_not_need_may_be_odd(make_checkpoint: Make, edit: Edit, key: str):
    folder = make_checkpoint()
    expected = open_checkpoint(folder).config
    edit(folder / "llm" / "config.json", **{key: ODD[key]})
    got = open_checkpoint(folder).config.language_model
    assert got.model_dump(exclude=READ) == expected.language_model.model_dump(exclude=READ)
    assert Tokenizer.from_folder(folder / "llm").encode("a picture")


def test_all_odd_values_at_once(make_checkpoint: Make, edit: Edit):
    folder = make_checkpoint("clip_llama")
    edit(folder / "llm" / "config.json", **ODD)
    assert isinstance(vila.load(folder, device="cpu").generate("Hello", max_new_tokens=2), str)


@pytest.mark.parametrize("name", ["config.json", "llm/config.json", "llm/tokenizer_config.json"])
def test_byte_order_mark(make_checkpoint: Make, name: str):
    folder = make_checkpoint()
    file = folder / name
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert isinstance(vila.load(folder, device="cpu").generate("Hello", max_new_tokens=2), str)


@pytest.mark.parametrize(
    "name",
    ["AutoTokenizer", "AutoModelForCausalLM", "Trainer", "pipeline", "__class__", "utils", 5, ["LlamaTokenizer"]],
)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_only_a_tokenizer_can_be_the_tokenizer_class(make_checkpoint: Make, edit: Edit, file: str, name: object):
    folder = make_checkpoint() / "llm"
    edit(folder / file, tokenizer_class=name)
    with pytest.raises(CheckpointError, match=f"{file}: 'tokenizer_class' is "):
        Tokenizer.from_folder(folder)


def test_an_unknown_tokenizer_class_leaves_tokenizer_json(make_checkpoint: Make, edit: Edit):
    folder = make_checkpoint() / "llm"
    ids = Tokenizer.from_folder(folder).encode("a picture")
    edit(folder / "tokenizer_config.json", tokenizer_class="NovelTokenizerFast")
    assert Tokenizer.from_folder(folder).encode("a picture") == ids


def test_only_the_files_of_a_tokenizer_are_seen(make_checkpoint: Make):
    folder = make_checkpoint() / "llm"
    (folder / "config.json").write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "evil.jinja").write_text("evil")
    assert "evil" not in str(Tokenizer.from_folder(folder).hf.chat_template)


SCRIPT = """
import sys, vila_core as vila
from PIL import Image
model = vila.load(sys.argv[1], device="cpu")
model.generate([vila.Image(Image.new("RGB", (64, 64))), "What is this?"], max_new_tokens=3)
"""


@pytest.mark.parametrize("kind", ["vila-tiny", "nvila_lite", "nvila", "clip_llama", "released nvila"])
def test_loading_and_generating_are_silent(make_checkpoint: Make, tmp_path: Path, kind: str):
    folder: Path | str
    if kind == "vila-tiny":
        folder = kind
    elif kind == "released nvila":
        folder = tmp_path / "nvila"
        run_program([sys.executable, "-c", CONVERT, str(make_checkpoint("nvila_lite")), str(folder)], check=True)
        assert json.loads((folder / "config.json").read_text())["model_type"] == "nvila_lite"
    else:
        folder = make_checkpoint(kind)
    run = run_program([sys.executable, "-W", "always", "-c", SCRIPT, str(folder)], check=True)
    assert run.stderr == run.stdout == ""


@pytest.mark.parametrize("size", [0, 10**7, 10**12, -1])
@pytest.mark.parametrize(
    ("kind", "file", "key"),
    [
        ("nvila", "config.json", "s2_max_split_size"),
        ("nvila", "config.json", "max_tiles"),
        ("nvila_lite", "config.json", "num_video_frames"),
        ("nvila_lite", "config.json", "num_time_tokens"),
        ("nvila_lite", "config.json", "fps"),
        ("nvila_lite", "config.json", "vision_resolution"),
        ("nvila_lite", "llm/config.json", "num_hidden_layers"),
        ("nvila_lite", "llm/config.json", "head_dim"),
        ("nvila_lite", "vision_tower/config.json", "num_hidden_layers"),
        ("nvila_lite", "vision_tower/config.json", "patch_size"),
        ("clip_llama", "vision_tower/config.json", "image_size"),
    ],
)
def test_sizes_are_bounded_before_anything_is_built(
    make_checkpoint: Make, edit: Edit, kind: str, file: str, key: str, size: int
):
    if size <= 0 and key in ("fps", "vision_resolution", "num_time_tokens"):
        return  # the value for "not used"
    folder = make_checkpoint(kind)
    edit(folder / file, **{key: size})
    with pytest.raises(CheckpointError, match=key.removeprefix("s2_").removeprefix("num_").split("_")[-1]):
        open_checkpoint(folder)


@pytest.mark.parametrize("rope", [{"type": "su"}, {"rope_type": "ntk"}, {"type": "mrope", "factor": 2.0}, {"type": 5}])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_unknown_rope_types(make_checkpoint: Make, edit: Edit, key: str, rope: dict[str, object]):
    folder = make_checkpoint()
    edit(folder / "llm" / "config.json", **{key: rope})
    with pytest.raises(CheckpointError, match=rf"llm/config.json: {key}.*(linear|string)"):
        open_checkpoint(folder)


@pytest.mark.parametrize("factor", [0, -1.0, "2", True, None, 1e300, [2.0]])
@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn", "llama3"])
def test_rope_factors(make_checkpoint: Make, edit: Edit, rope_type: str, factor: object):
    folder = make_checkpoint()
    edit(folder / "llm" / "config.json", rope_scaling={"rope_type": rope_type, "factor": factor})
    with pytest.raises(CheckpointError, match="factor"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": False},
        {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": True, "sliding_window": None},
        {"layer_types": ["full_attention"]},
        {"layer_types": ["full_attention", "sideways"]},
        {"layer_types": "full_attention"},
        {"layer_types": [1, 2]},
    ],
)
def test_contradicting_layer_types(make_checkpoint: Make, edit: Edit, changes: dict[str, object]):
    folder = make_checkpoint()
    edit(folder / "llm" / "config.json", **changes)
    with pytest.raises(CheckpointError, match=r"llm/config\.json: 'layer_types' "):
        open_checkpoint(folder)


@pytest.mark.parametrize("values", [[0, 0, 0], [-1, 1, 1], [1e300] * 3, [0.5, 0.5], [0.5] * 4, ["a"] * 3, 0.5, []])
@pytest.mark.parametrize("key", ["image_mean", "image_std"])
def test_pixel_statistics(make_checkpoint: Make, edit: Edit, key: str, values: object):
    if key == "image_mean" and values == [0, 0, 0]:
        return
    folder = make_checkpoint()
    edit(folder / "vision_tower" / "preprocessor_config.json", **{key: values})
    with pytest.raises(CheckpointError, match=key.removeprefix("image_")):
        open_checkpoint(folder)


def test_loading_needs_no_compiler():
    """PyTorch imports it to initialize weights on the meta device, a quarter of the time that loading takes."""
    script = """
import sys, vila_core as vila
vila.load("vila-tiny", device="cpu").generate("Hello", max_new_tokens=2)
assert "torch._dynamo" not in sys.modules
"""
    run_program([sys.executable, "-c", script], check=True)


CONVERT = """
import sys
from pathlib import Path
from vila_core.checkpoint import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), "nvila")
"""
