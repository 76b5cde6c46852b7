"""The methods of a loaded model, on tiny checkpoints of the recordings."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vila_core as vila
from vila_core.device_choice import choose_device
from vila_core.errors import CheckpointError, ConfigError, GenerationError, MediaError, PromptError
from vila_core.preprocess import TileLayout

DATA = Path(__file__).parents[1] / "parity" / "data"
NVILA = DATA / "golden" / "nvila_lite_56" / "checkpoint"
NVILA_S2 = DATA / "golden" / "nvila_56" / "checkpoint"
CLIP = DATA / "golden2" / "vila15_clip_336" / "checkpoint"
YI = DATA / "golden2" / "vila15_yi_intern_448" / "checkpoint"
INPUTS = DATA / "golden" / "inputs"


@pytest.fixture(scope="module")
def model() -> vila.Vila:
    return vila.load(NVILA, device="cpu")


def picture(width: int, height: int, seed: int = 0) -> vila.Image:
    return vila.Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def clip_of(frames: int) -> vila.Video:
    return vila.Video(np.random.default_rng(1).integers(0, 256, (frames, 40, 60, 3), dtype=np.uint8))


def test_stream_matches_complete(model: vila.Vila):
    prompt = ["what is this?", picture(90, 60)]
    done = model.complete(prompt, max_new_tokens=12)
    assert (
        "".join(model.stream(prompt, max_new_tokens=12)).strip()
        == done.text
        == model.generate(prompt, max_new_tokens=12)
    )
    assert len(done.token_ids) == done.usage.completion_tokens <= 12
    assert done.usage.media_tokens < done.usage.prompt_tokens
    assert done.finish_reason in ("stop", "length")
    assert min(done.timings.preprocess, done.timings.encode, done.timings.prefill) > 0


def test_batch_matches_single_prompts(model: vila.Vila):
    two = ["a longer question about ", picture(30, 30, 2), picture(31, 20, 3), " both"]
    prompts = [["hello"], [picture(200, 50), "what?"], two, [clip_of(8), "and then?"]]
    assert model.generate_batch(prompts, max_new_tokens=8) == [
        model.generate(prompt, max_new_tokens=8) for prompt in prompts
    ]
    assert model.generate_batch([]) == []


def test_media_of_a_batch_stay_with_their_prompts(model: vila.Vila, monkeypatch: pytest.MonkeyPatch):
    prompts = [
        ["what?", picture(90, 60)],
        "no picture",
        ["a video:", clip_of(3)],
        ["two:", picture(40, 40, 1), "and", picture(40, 80, 2)],
    ]
    alone = [model.inspect(prompt) for prompt in prompts]
    for tiles_at_once in (1, 3, 64):
        monkeypatch.setattr("vila_core.model.TILES_AT_ONCE", tiles_at_once)
        batch = model.network.batch([model.prepare(prompt) for prompt in prompts])
        with torch.inference_mode():
            together = model.network.embed(batch).split(list(batch.lengths))
        for one, embeds in zip(alone, together, strict=True):
            torch.testing.assert_close(embeds, one.inputs_embeds, rtol=1e-4, atol=1e-5)


def test_media_keep_the_order_of_the_prompt(model: vila.Vila):
    seen = model.inspect(["a video:", clip_of(3), "a picture:", picture(40, 40), "and another video:", clip_of(2)])
    assert [medium.kind for medium in seen.media] == ["video", "image", "video"]
    assert list(seen.token_counts) == ["text", "video 1", "image 1", "video 2"]
    frames = len(seen.media[0].tiles.pixels)
    assert seen.token_counts["video 1"] == frames * seen.token_counts["image 1"]


def test_prepared_prompts(model: vila.Vila):
    prompt = ["what is this?", picture(90, 60)]
    assert (
        model.generate_batch([model.prepare(prompt), prompt], max_new_tokens=8)
        == [model.generate(prompt, max_new_tokens=8)] * 2
    )


def test_sampling_is_repeatable(model: vila.Vila):
    settings = {"max_new_tokens": 10, "temperature": 1.0, "top_p": 0.95}
    first = model.generate("tell me", seed=3, **settings)
    assert model.generate("tell me", seed=3, **settings) == first
    assert any(model.generate("tell me", seed=seed, **settings) != first for seed in range(4, 8))


def test_chat_history(model: vila.Vila):
    first = vila.Message("user", [picture(40, 40), "what color?"])
    history = [first, vila.Message("assistant", "Red."), vila.Message("user", "are you sure?")]
    seen = model.inspect(history)
    assert "Red.<|im_end|>" in seen.prompt_text
    assert seen.prompt_text.count("<|im_start|>user") == 2
    assert model.chat(history, max_new_tokens=3) == model.generate(history, max_new_tokens=3)
    assert (
        "You are a pirate"
        in model.inspect([vila.Message("system", "You are a pirate"), vila.Message("user", "hi")]).prompt_text
    )


def test_stop_string_ends_an_answer(model: vila.Vila):
    full = model.complete("how are you today?", max_new_tokens=12)
    cut = full.text[3:5]
    done = model.complete("how are you today?", max_new_tokens=12, stop=cut)
    assert done.finish_reason == "stop"
    assert cut not in done.text
    assert full.text.startswith(done.text)


def test_token_counts_sum_to_the_sequence(model: vila.Vila):
    seen = model.inspect(["look: ", picture(200, 100), "what is it?"])
    assert sum(seen.token_counts.values()) == len(seen.inputs_embeds) == len(seen.last_hidden)
    assert set(seen.token_counts) == {"text", "image 1"}
    assert seen.pixel_values is not None
    tiles = seen.media[0].tiles
    assert len(seen.pixel_values) == len(tiles.pixels) == tiles.layout.rows * tiles.layout.columns + 1
    assert seen.logits.shape[0] == 16


def test_only_a_single_image_is_tiled_without_tile_all(model: vila.Vila):
    pair = [picture(300, 100), picture(100, 300), "compare"]
    assert [len(medium.tiles.pixels) for medium in model.inspect(pair).media] == [1, 1]
    every = vila.load(NVILA, device="cpu", tile_all=True)
    seen = every.inspect(pair)
    assert [medium.tiles.layout for medium in seen.media] == [
        TileLayout("separate", 2, 6),
        TileLayout("separate", 6, 2),
    ]
    assert seen.prompt_text.count("<image>\n") == 2 * 13
    s2 = vila.load(NVILA_S2, device="cpu", tile_all=True).inspect(pair)
    assert [medium.tiles.layout for medium in s2.media] == [TileLayout("merged", 2, 6), TileLayout("merged", 6, 2)]
    assert s2.prompt_text.count("<image>") == 2


def test_a_tiled_image_in_a_later_turn(model: vila.Vila):
    history = [
        vila.Message("user", "hello"),
        vila.Message("assistant", "hi"),
        vila.Message("user", [picture(300, 100), "what?"]),
    ]
    assert len(model.inspect(history).media[0].tiles.pixels) == 13


def test_frames_as_images(model: vila.Vila):
    other = vila.load(NVILA, device="cpu", video_as_images=True, num_video_frames=3)
    seen = other.inspect([clip_of(6), "what happens?"])
    assert seen.prompt_text.count("<image>") == 3
    assert "<vila/video>" in model.inspect([clip_of(6), "what happens?"]).prompt_text


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (17, 11)])
@pytest.mark.parametrize("checkpoint", [NVILA, NVILA_S2])
def test_images_of_extreme_shapes(checkpoint: Path, size: tuple[int, int]):
    assert vila.load(checkpoint, device="cpu").generate([picture(*size), "what?"], max_new_tokens=2) is not None


def test_extreme_shape_with_a_center_crop_is_refused():
    cropped = vila.load(CLIP, device="cpu", chat_template="vicuna_v1", image_aspect_ratio="other")
    with pytest.raises(MediaError, match="1x5000"):
        cropped.inspect([picture(1, 5000), "what?"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str):
    half = vila.load(NVILA, device="cpu", dtype=dtype)
    assert str(half.dtype) == f"torch.{dtype}"
    assert len(half.complete([picture(60, 60), "what?"], max_new_tokens=4).token_ids) <= 4
    logits = half.inspect([picture(60, 60), "what?"]).logits.float()
    exact = vila.load(NVILA, device="cpu", dtype="float32").inspect([picture(60, 60), "what?"]).logits
    assert torch.nn.functional.cosine_similarity(logits[-1], exact[-1], dim=0) > 0.99


def test_adapter_changes_the_answers(tmp_path: Path, model: vila.Vila):
    width, rank = 64, 2
    weights = {
        f"base_model.model.llm.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": torch.randn(*shape)
        for layer in range(2)
        for side, shape in (("A", (rank, width)), ("B", (width, rank)))
    }
    save_file(weights, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tuned = vila.load(NVILA, device="cpu", lora=tmp_path)
    name = "llm.model.layers.0.self_attn.q_proj.weight"
    key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
    expected = model.network.state_dict()[name] + 2 * weights[f"{key}B.weight"] @ weights[f"{key}A.weight"]
    torch.testing.assert_close(tuned.network.state_dict()[name], expected)
    assert not torch.allclose(tuned.inspect("hi").logits, model.inspect("hi").logits)


@pytest.mark.parametrize("prompt", [[], "", "  ", [""], ["<image>"], [vila.Message("user", "")]])
def test_empty_prompt(model: vila.Vila, prompt: object):
    if prompt == ["<image>"]:  # a typed media token is removed, which leaves nothing
        assert "<image>" not in model.inspect(["<image>", "hi"]).prompt_text
        return
    with pytest.raises(PromptError, match="empty"):
        model.generate(prompt)  # pyright: ignore


def test_prompt_of_other_types(model: vila.Vila):
    with pytest.raises(PromptError, match="not int"):
        model.generate(["what is", 5])  # pyright: ignore
    with pytest.raises(PromptError, match="not both"):
        model.generate(["hi", vila.Message("user", "hi")])  # pyright: ignore
    with pytest.raises(PromptError, match="role"):
        vila.Message("human", "hi")  # pyright: ignore


def test_prompt_longer_than_the_context(tmp_path: Path):
    folder = tmp_path / "short"
    shutil.copytree(NVILA, folder)
    tokenizer = json.loads((folder / "llm" / "tokenizer_config.json").read_text())
    (folder / "llm" / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": 128}))
    small = vila.load(folder, device="cpu")
    with pytest.raises(PromptError, match=r"video 1: \d+.*context is 128.*Reduce num_video_frames") as error:
        small.generate([vila.Video(np.zeros((40, 8, 8, 3), np.uint8), frames=40), "what happens?"])
    assert "text: " in str(error.value)
    with pytest.raises(PromptError, match="Shorten the text"):
        small.generate("word " * 50)
    picture = vila.Image(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(PromptError, match="Shorten the text"):  # the picture takes less than the text
        small.generate([picture, "word " * 5000])
    prompt = "a " * 35  # fits, but leaves little room for an answer
    room = 128 - small.complete(prompt, max_new_tokens=1).usage.prompt_tokens
    assert 0 < room < 64
    assert small.complete(prompt, max_new_tokens=64).usage.completion_tokens <= room


def test_too_long_video_is_refused_before_encoding(model: vila.Vila, monkeypatch: pytest.MonkeyPatch):
    model.generate(["a video:", clip_of(2)], max_new_tokens=1)
    monkeypatch.setattr(model.network.vision_tower, "forward", lambda pixels: pytest.fail("the tower ran"))
    with pytest.raises(PromptError, match=r"video 1: \d+.*num_video_frames"):
        model.generate(["a video:", vila.Video(np.zeros((4000, 8, 8, 3), dtype=np.uint8), frames=4000)])


@pytest.mark.parametrize("folder", [NVILA, NVILA_S2, CLIP, YI], ids=lambda path: path.parent.name)
def test_tokens_are_counted_without_encoding(folder: Path):
    model = vila.load(folder, device="cpu")
    for prompt in (["one", picture(300, 200)], ["two", picture(40, 90), picture(31, 20)], ["a video:", clip_of(8)]):
        prepared = model.prepare(prompt)
        lengths = [len(block) for blocks in model.network.expand(prepared).blocks for block in blocks]
        assert lengths == [len(block) for block in model.inspect(prepared).media_embeddings]


def test_unknown_override_setting_template_device_dtype():
    with pytest.raises(ConfigError, match="Did you mean 'num_video_frames'"):
        vila.load(NVILA, num_video_frame=3)
    with pytest.raises(ConfigError, match="max_tiles"):
        vila.load(NVILA, max_tiles=0)
    with pytest.raises(ConfigError, match="dynamic S2"):
        vila.load(NVILA, image_aspect_ratio="dynamic_s2", s2_scales=(56, 112))
    with pytest.raises(ConfigError, match="Did you mean 'vicuna_v1'"):
        vila.load(NVILA, chat_template="vicuna_v2")
    for device in ("gpu", "meta", "mps"):
        with pytest.raises(ConfigError, match=f"Unknown device '{device}'. Use auto, cpu, cuda"):
            vila.load(NVILA, device=device)
    with pytest.raises(ConfigError, match="not on this machine"):
        vila.load(NVILA, device="cuda:99")
    with pytest.raises(ConfigError, match="Unknown dtype 'int8'"):
        vila.load(NVILA, dtype="int8")


@pytest.mark.parametrize("name", [None, "auto", "cuda", torch.device("cuda")])
@pytest.mark.parametrize(("initialized", "expected"), [(False, "cuda:0"), (True, "cuda:1")])
def test_a_gpu_has_its_number_as_the_tensors_on_it(
    monkeypatch: pytest.MonkeyPatch, name: str | torch.device | None, initialized: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert choose_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"path": 5}, {"path": [NVILA]}, {"path": b"x"}, {"lora": 1.5}, {"device": 1.5}, {"device": 2**70},
        {"dtype": 16},
        {"chat_template": ["qwen2"]}, {"chat_template": iter(int, 1)}, {"revision": 5}, {"token": True},
        {"offline": "no"}, {"limits": {}}, {"progress": "yes"},
    ],
    ids=lambda values: str(values).partition(" object at ")[0],
)  # fmt: skip
def test_arguments_of_another_type(arguments: dict[str, Any]):
    (name,) = arguments
    with pytest.raises(ConfigError, match=f"load: {name} is|Unknown device"):
        vila.load(**{"path": NVILA, "device": "cpu", **arguments})


def test_an_empty_path_is_not_the_embedded_model():
    with pytest.raises(CheckpointError, match=r"config\.json"):
        vila.load("")


def test_a_text_that_cannot_fit_is_not_tokenized():
    """Tokenizing 10 million characters takes a minute."""
    model = vila.load("vila-tiny", device="cpu")
    with pytest.raises(PromptError, match=r"10,000,\d+ characters, but the context is 2,048 tokens\. Shorten"):
        model.generate("x" * 10_000_000)


def test_template_that_contradicts_the_checkpoint():
    with pytest.raises(ConfigError, match="contradicts this checkpoint, which was trained with 'auto'"):
        vila.load(NVILA, chat_template="hermes-2")
    with pytest.raises(ConfigError, match="trained with 'vicuna_v1'"):
        vila.load(CLIP, chat_template="llama_3")
    assert vila.load(NVILA, chat_template="qwen2").template.name == "qwen2"  # renders the same text


def test_checkpoint_without_a_template(tmp_path: Path):
    folder = tmp_path / "silent"
    shutil.copytree(CLIP, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "version"}))
    with pytest.raises(PromptError, match=r"does not say which chat template.*vicuna_v1"):
        vila.load(folder)
    with pytest.raises(ConfigError, match=r"'<\|eot_id\|>', which is not a token of this checkpoint"):
        vila.load(folder, chat_template="llama_3")
    (folder / "config.json").write_text(json.dumps(config | {"version": "auto"}))  # but its tokenizer has no template
    assert vila.load(folder, chat_template="vicuna_v1").inspect("hi").prompt_text.endswith("USER: hi ASSISTANT:")


def test_plain_template_has_stop_tokens(tmp_path: Path):
    folder = tmp_path / "plain"
    shutil.copytree(NVILA, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"version": "plain", "chat_template": None}))
    assert len(vila.load(folder).stop_token_ids) == 2  # eos, and the newline after an answer


def test_separator_templates_have_a_fixed_system_prompt():
    legacy = vila.load(CLIP, device="cpu", chat_template="vicuna_v1")
    with pytest.warns(UserWarning, match="fixed system prompt"):
        legacy.inspect([vila.Message("system", "Be brief."), vila.Message("user", "hi")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": float("nan")}, "'top_p' must be a finite number, got nan"),
        ({"max_token": 5}, "Did you mean"),
        ({"json_schema": "{"}, "not JSON"),
        ({"json_schema": {"type": "no such type"}}, "schema"),
    ],
)
def test_settings_out_of_range(model: vila.Vila, settings: dict[str, object], message: str):
    with pytest.raises(GenerationError, match=message):
        model.generate("hi", **settings)  # pyright: ignore


def test_padding_without_a_mean_color():
    padded = vila.load(YI, device="cpu", chat_template="hermes-2", image_aspect_ratio="pad")
    with pytest.raises(ConfigError, match="mean color"):
        padded.inspect([picture(30, 20), "what?"])


def test_missing_tokenizer(tmp_path: Path):
    folder = tmp_path / "broken"
    shutil.copytree(NVILA, folder)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / "llm" / name).unlink()
    with pytest.raises(CheckpointError, match=r"[Nn]o tokenizer"):
        vila.load(folder)
