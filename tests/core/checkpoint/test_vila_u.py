"""Format `vila-u`: what is read, what is written, and what is said of damaged checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.vila_u_checkpoint import RECORDED

import vila_core as vila
from vila_core.checkpoint import convert, open_checkpoint
from vila_core.checkpoint.configs.language import read_language_config
from vila_core.checkpoint.conversion import save_checkpoint
from vila_core.checkpoint.json_files import Section
from vila_core.config import DecoderConfig, DepthTransformerConfig, RQSiglipConfig
from vila_core.errors import CheckpointError
from vila_core.language.rope import inverse_frequencies

TOWER, HEAD = "rqvaesiglip", "rqtransformer"


@pytest.fixture
def folder(tiny_u: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(tiny_u, tmp_path / "model")
    return tmp_path / "model"


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "vision_tower" / "model.safetensors"
    save_file(change(load_file(file)), file)


def tower_config(folder: Path) -> RQSiglipConfig:
    config = open_checkpoint(folder).config.vision_tower
    assert isinstance(config, RQSiglipConfig)
    return config


def test_reads_all_parts(tiny_u: Path):
    checkpoint = open_checkpoint(tiny_u)
    tower, head = checkpoint.config.vision_tower, checkpoint.config.generation_head
    assert checkpoint.format == "vila-u"
    assert isinstance(tower, RQSiglipConfig)
    assert (tower.image_size, tower.patch_size, tower.num_hidden_layers, tower.num_attention_heads) == (64, 16, 4, 4)
    assert (tower.codebook_size, tower.code_depth, tower.grid, tower.decoded_size) == (64, 4, (4, 4), (64, 64))
    assert tower.shared_codebook
    assert isinstance(head, DepthTransformerConfig)
    assert (head.embed_dim, head.num_hidden_layers, head.num_attention_heads) == (40, 2, 4)
    assert checkpoint.config.chat_template == "vicuna_v1"


def test_is_known_by_its_tower_alone(folder: Path):
    edit(folder / "config.json", lambda values: values.update(model_type="llava_llama"))
    assert open_checkpoint(folder).format == "vila-u"


def test_unknown_keys_are_tolerated(folder: Path):
    def add(values: dict[str, Any]) -> None:
        for section in (values, values[TOWER], values[HEAD], values[TOWER]["ddconfig"]):
            section["key_of_a_later_release"] = {"a": [1, None]}

    edit(folder / "vision_tower" / "config.json", add)
    edit(folder / "config.json", lambda values: values.update(chunk_sampler=True, model_dtype="torch.bfloat16"))
    assert open_checkpoint(folder).config.dtype == "float32"  # the weights' own


def test_dtype_names_are_data(folder: Path):
    edit(folder / "config.json", lambda values: values.update(model_dtype="__import__('os').abort()"))
    assert open_checkpoint(folder).format == "vila-u"


@pytest.mark.parametrize("model_type", ["vila_u_llama", "llava_llama"])
def test_without_vi_tokens_there_is_no_video(folder: Path, model_type: str):
    edit(folder / "config.json", lambda values: values.update(mm_use_vi_start_end=False, model_type=model_type))
    head = open_checkpoint(folder).config.generation_head
    assert isinstance(head, DepthTransformerConfig)
    assert head.video_start_token is None


def test_pickles_with_a_copy_for_each_depth(tiny_u: Path, folder: Path):
    """A `.bin` holds a shared codebook once for each depth."""
    file = folder / "vision_tower" / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in list(tensors.items()):
        for depth in range(1, 4):
            if ".codebooks.0." in name:
                tensors[name.replace(".0.", f".{depth}.")] = tensor
    torch.save(tensors, folder / "vision_tower" / "pytorch_model.bin")
    file.unlink()
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    shared, copied = (vila.load_image_tokenizer(path, device="cpu").tower for path in (tiny_u, folder))
    assert torch.equal(shared.encode(pixels), copied.encode(pixels))


def test_separate_codebooks(folder: Path):
    draw = torch.Generator().manual_seed(0)

    def separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for depth in range(4):
            tensors[f"{TOWER}.quantizer.codebooks.{depth}.weight"] = torch.randn(65, 48, generator=draw)
        return {name: tensor for name, tensor in tensors.items() if "_ema" not in name}

    edit_tensors(folder, separate)
    edit(folder / "vision_tower" / "config.json", lambda values: values[TOWER].update(shared_codebook=False))
    tower = vila.load_image_tokenizer(folder, device="cpu").tower
    codes = tower.encode(torch.rand(2, 3, 64, 64) * 2 - 1)
    books = [tower.quantizer.codebook(depth).embeddings for depth in range(4)]
    by_hand = sum((book[codes[..., depth]] for depth, book in enumerate(books)), torch.zeros(()))
    torch.testing.assert_close(tower.embed_codes(codes), by_hand)
    torch.testing.assert_close(tower.cumulative(codes)[..., -1, :], by_hand)


def test_depth_and_latent_grid_of_another_tower(folder: Path):
    """Three codes for each position, and embeddings that are resized before they are decoded."""

    def shallower(values: dict[str, Any]) -> None:
        values[TOWER].update(code_shape=[4, 4, 3], decoder_latent_shape=[3, 3])
        values[HEAD].update(block_size=[4, 4, 3])

    def cut(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return tensors | {f"{HEAD}.pos_emb_d": tensors[f"{HEAD}.pos_emb_d"][:, :3].contiguous()}

    edit(folder / "vision_tower" / "config.json", shallower)
    edit_tensors(folder, cut)
    tokenizer = vila.load(folder, device="cpu").image_tokenizer
    codes = tokenizer.encode(RECORDED / "inputs" / "image_1.png")
    assert codes.shape == (1, 4, 4, 3)
    assert tokenizer.decode_bytes(codes).shape == (1, 48, 48, 3)


def test_known_towers_need_no_folder():
    from vila_core.checkpoint.configs.vila_u import KNOWN_TOWERS

    large, so400m = KNOWN_TOWERS["siglip-large-patch16-256"], KNOWN_TOWERS["siglip-so400m-patch14-384"]
    assert (large["hidden_size"], large["num_hidden_layers"], large["image_size"] // large["patch_size"]) == (
        1024,
        24,
        16,
    )
    assert (so400m["hidden_size"], so400m["intermediate_size"], so400m["image_size"] // 14) == (1152, 4304, 27)


@pytest.mark.parametrize("name", ["google/siglip-of-tomorrow", "", "../siglip-tiny-patch16-64", "/etc", "a" * 5000])
def test_unknown_siglip_says_what_to_add(folder: Path, name: str):
    edit(folder / "vision_tower" / "config.json", lambda values: values[TOWER].update(pretrained_model=name))
    with pytest.raises(CheckpointError, match="how many attention heads"):
        open_checkpoint(folder)


def test_siglip_that_contradicts_the_weights(folder: Path):
    edit(
        folder / "vision_tower" / "config.json",
        lambda values: values[TOWER].update(pretrained_model="google/siglip-large-patch16-256"),
    )
    with pytest.raises(CheckpointError, match="hidden_size 1024, but the weights have 48"):
        open_checkpoint(folder)


@pytest.mark.parametrize("part", ["vision_tower", "mm_projector", "llm"])
def test_missing_part(folder: Path, part: str):
    shutil.rmtree(folder / part)
    with pytest.raises(CheckpointError, match=f"has no folder {part}") as caught:
        open_checkpoint(folder)
    assert ("text-only" in str(caught.value)) == (part == "vision_tower")


def test_text_only_checkpoint(folder: Path):
    shutil.rmtree(folder / "vision_tower")
    shutil.rmtree(folder / "mm_projector")
    with pytest.raises(CheckpointError, match="text-only"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["vila-u-7b-256", "VILA_U", "vila-u"])
def test_language_model_with_the_name_of_vila_u(tiny_u: Path, tmp_path: Path, name: str):
    shutil.copytree(tiny_u / "llm", tmp_path / name)
    with pytest.raises(CheckpointError, match="holds only a language model"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("half", [TOWER, HEAD])
def test_config_without_a_half(folder: Path, half: str):
    edit(folder / "vision_tower" / "config.json", lambda values: values.pop(half))
    with pytest.raises(CheckpointError, match=f"has no '{half}'"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        (f"{TOWER}.", f"hold no '{TOWER}"),
        (f"{HEAD}.", f"hold no '{HEAD}"),
        (f"{TOWER}.decoder.", "image decoder"),
        (f"{TOWER}.quantizer.", "hold the codebooks none"),
        (f"{TOWER}.siglip_model.", "SigLIP part"),
    ],
)
def test_weights_without_a_part(folder: Path, prefix: str, said: str):
    edit_tensors(folder, lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(prefix)})
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(folder)


BAD_TOWER: list[tuple[str, object]] = [
    ("n_embed", 65),
    ("n_embed", 10**12),
    ("n_embed", "64"),
    ("embed_dim", 64),
    ("code_shape", [4, 4]),
    ("code_shape", [4, 4, 10**9]),
    ("code_shape", [8, 8, 4]),
    ("code_shape", None),
    ("latent_shape", [4, 8, 48]),
    ("shared_codebook", False),
    ("decoder_latent_shape", [4096, 4096]),
    ("decoder_latent_shape", "4x4"),
    ("ddconfig", None),
]
BAD_DECODER: list[tuple[str, object]] = [
    ("ch", 33),
    ("ch", 10**9),
    ("ch_mult", []),
    ("ch_mult", [1] * 100),
    ("ch_mult", [0]),
    ("num_res_blocks", 10**9),
    ("num_res_blocks", -1),
    ("attn_resolutions", "4"),
    ("out_ch", 4),
    ("z_channels", 0),
    ("resolution", 10**9),
]
BAD_HEAD: list[tuple[str, object]] = [
    ("block_size", [4, 4, 3]),
    ("block_size", [2, 2, 4]),
    ("embed_dim", 41),
    ("embed_dim", 10**12),
    ("vocab_size", 65),
    ("input_embed_dim_1", 47),
    ("input_embed_dim_2", 65),
    ("head", {"n_layer": 10**9, "block": {"n_head": 4}}),
    ("head", {"n_layer": 2}),
    ("head", {"n_layer": 2, "block": {"n_head": 3}}),
]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("tower", key, value) for key, value in BAD_TOWER]
    + [("decoder", key, value) for key, value in BAD_DECODER]
    + [("head", key, value) for key, value in BAD_HEAD],
)
def test_bad_values_are_named(folder: Path, section: str, key: str, value: object):
    """One line, before anything is built."""

    def change(values: dict[str, Any]) -> None:
        sections = {"tower": values[TOWER], "decoder": values[TOWER]["ddconfig"], "head": values[HEAD]}
        sections[section][key] = value

    edit(folder / "vision_tower" / "config.json", change)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("image_aspect_ratio", "dynamic", "expected one of resize, pad"),
        ("num_video_frames", 10**9, "num_video_frames"),
        ("mm_vision_select_layer", 99, "hidden states"),
    ],
)
def test_bad_root_values(folder: Path, key: str, value: object, said: str):
    edit(folder / "config.json", lambda values: values.update({key: value}))
    with pytest.raises(CheckpointError, match=said):
        vila.load(folder, device="cpu")


def test_tokenizer_without_start_tokens(folder: Path):
    (folder / "llm" / "added_tokens.json").unlink()
    edit(folder / "llm" / "tokenizer_config.json", lambda values: values["added_tokens_decoder"].pop("396"))
    with pytest.raises(CheckpointError, match="no token '<im_start>'"):
        open_checkpoint(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    names = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def test_written_again_and_again_it_is_the_same(tiny_u: Path, tmp_path: Path):
    first = convert(tiny_u, tmp_path / "one", "vila-u")
    convert(first, tmp_path / "two", "vila-u")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert first.config == open_checkpoint(tiny_u).config
    stored = load_file(tmp_path / "one" / "vision_tower" / "model.safetensors")
    original = load_file(tiny_u / "vision_tower" / "model.safetensors")
    assert stored.keys() == original.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in original.items())


def test_saved_model_answers_the_same(tiny_u: Path, tmp_path: Path):
    """Rows for tokens of this project are not written: the reference counts its special tokens from the end."""
    model = vila.load(tiny_u, device="cpu")
    assert model.checkpoint is not None
    written = save_checkpoint(
        model.network.state_dict(),
        model.network.config,
        tiny_u / "llm",
        tmp_path / "saved",
        format="vila-u",
        base=model.checkpoint,
    )
    assert written.weights.entries["llm.model.embed_tokens.weight"].shape == (400, 64)
    assert json.loads((tmp_path / "saved" / "llm" / "config.json").read_text())["vocab_size"] == 400
    assert json.loads((tmp_path / "saved" / "llm" / "generation_config.json").read_text())["do_sample"] is True
    again = vila.load(tmp_path / "saved", device="cpu")
    prompt = [vila.Image(RECORDED / "inputs" / "image_1.png"), "What is this?"]
    assert torch.equal(again.inspect(prompt).logits, model.inspect(prompt).logits)


@pytest.mark.parametrize("format", ["vila", "nvila"])
def test_other_formats_refuse_models_that_draw(tiny_u: Path, tmp_path: Path, format: str):
    with pytest.raises(CheckpointError, match="Write it as 'vila-u'"):
        convert(tiny_u, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_models_that_only_write_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no generation head"):
        convert("vila-tiny", tmp_path / "out", "vila-u")


@pytest.mark.parametrize(
    "stated",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ],
    ids=["old", "new", "parameters"],
)
def test_linear_scaling_in_every_spelling(folder: Path, stated: dict[str, Any]):
    """Angles as transformers computes them; the released model has factor 2 over 4096 positions."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    edit(folder / "llm" / "config.json", lambda values: values.update(rope_scaling=None) or values.update(stated))
    config = open_checkpoint(folder).config.language_model
    assert isinstance(config, DecoderConfig)
    assert config.rope_scaling is not None
    assert config.max_length == 2048  # twice the 1024 positions
    raw = json.loads((folder / "llm" / "config.json").read_text())
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=64,
            num_attention_heads=4,
            max_position_embeddings=1024,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        )
    )
    torch.testing.assert_close(inverse_frequencies(config), theirs.inv_freq, atol=0, rtol=1e-6)
    assert read_language_config(Section(raw, "config"), config.max_length) == config


def test_context_that_training_used(folder: Path):
    """The tokenizer's own limit, if it has one, is the context."""
    edit(folder / "llm" / "tokenizer_config.json", lambda values: values.update(model_max_length=512))
    assert open_checkpoint(folder).config.language_model.max_length == 512
