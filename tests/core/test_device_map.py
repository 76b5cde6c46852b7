"""`vila_core.load(device_map=...)`: blocks on several devices, and errors when memory does not suffice."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

import vila_core as vila
from vila_core import loading, placement
from vila_core.bench.random_model import random_checkpoint
from vila_core.checkpoint import Checkpoint, estimate, open_checkpoint
from vila_core.cli.infer import main
from vila_core.config import TransformersConfig
from vila_core.device_choice import choose_device
from vila_core.errors import ConfigError
from vila_core.language.decoder import Decoder
from vila_core.language.split import Segment, SplitDecoder
from vila_core.placement import Need, assign_blocks, estimate_need, plan_split
from vila_core.smaller_variants import smaller_variants


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint("vila-tiny")


@pytest.fixture(scope="module")
def one() -> vila.Vila:
    return vila.load("vila-tiny")


@pytest.mark.parametrize("count", [2, 3, 6, 9])
def test_a_split_model_answers_like_one_on_one_device(one: vila.Vila, count: int) -> None:
    split = vila.load("vila-tiny", device_map=["cpu"] * count)
    assert isinstance(split.network.llm, SplitDecoder)
    prompt = [Image.new("RGB", (90, 60), "green"), "What is in the picture?"]
    prompts = [prompt, "Hello", "What is a circle?"]
    assert split.generate(prompt, max_new_tokens=12) == one.generate(prompt, max_new_tokens=12)
    assert split.generate_batch(prompts, max_new_tokens=8) == one.generate_batch(prompts, max_new_tokens=8)
    assert "".join(split.stream("Hello", max_new_tokens=8)) == one.generate("Hello", max_new_tokens=8)
    seen = (model.inspect(prompt).logits for model in (one, split))
    torch.testing.assert_close(*seen, rtol=0, atol=0)


def test_a_split_model_shares_prefixes_and_reads_prompts_in_chunks(one: vila.Vila) -> None:
    engine = vila.EngineConfig(chunk_tokens=64)
    split = vila.load("vila-tiny", device_map=["cpu", "cpu"], engine=engine)
    long = "one two three four five six seven eight nine ten " * 20
    for question in ("Which number is first?", "Which number is last?"):
        assert split.generate(long + question, max_new_tokens=8) == one.generate(long + question, max_new_tokens=8)
    assert split.engine.stats().cached_tokens >= 64
    assert split.engine.stats().pages_used == 0


def test_a_list_of_one_device_does_not_split() -> None:
    assert isinstance(vila.load("vila-tiny", device_map=["cpu"]).network.llm, Decoder)


def test_everything_a_segment_computes_with_moves_to_its_device(one: vila.Vila) -> None:
    decoder = Decoder(one.network.llm.config).eval()  # pyright: ignore[reportArgumentType]
    decoder.model.layers[2:4].to("meta")
    segment = Segment(decoder, 2, 2, torch.device("meta"))
    cache = segment.part.new_cache(3, 20)
    assert cache.keys.device.type == "meta"
    assert cache.keys.shape[0] == 2
    lengths = torch.tensor([5, 7, 2])
    embeds = torch.zeros(3, 7, decoder.config.hidden_size)
    assert segment(embeds, None, cache, lengths).device.type == "meta"
    assert segment(embeds[:, :1], lengths[:, None], cache.up_to(8), None).device.type == "meta"


@pytest.mark.parametrize(
    ("need", "free", "counts"),
    [
        (Need((10,) * 8, 0), [100, 100], [4, 4]),
        (Need((10,) * 8, 20), [100, 100], [3, 5]),
        (Need((10,) * 8, 0), [300, 100], [6, 2]),
        (Need((10,) * 8, 1000), [100, 100], [1, 7]),
        (Need((10,) * 8, 0), [100, 1, 1], [6, 1, 1]),
        (Need((10,) * 8, 0), [0, 100], [1, 7]),
        (Need((10,) * 8, 0), [100, 0], [7, 1]),
        (Need((10,) * 3, 0), [1, 1, 1], [1, 1, 1]),
        (Need((90, 10, 10, 10), 0), [60, 60], [1, 3]),
        (Need((10,) * 60, 40), [80, 80, 80, 80], [12, 16, 16, 16]),
    ],
)
def test_blocks_are_assigned_by_bytes(need: Need, free: list[int], counts: list[int]) -> None:
    places = assign_blocks(need, free)
    assert list(places) == sorted(places)
    assert [places.count(place) for place in range(len(free))] == counts


@pytest.mark.parametrize(("part", "count"), [(100.0, 1), (1.0, 1), (0.99, 2), (0.51, 2), (0.4, 3), (0.3, 4)])
def test_auto_uses_as_few_gpus_as_hold_the_model(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, part: float, count: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    free = int(part * estimate_need(checkpoint, torch.float32).total)
    placed = plan_split(checkpoint, "auto", torch.float32, choose_device, lambda device: free)
    assert [str(device) for device in placed.devices] == [f"cuda:{number}" for number in range(count)]
    assert placed.device_of("vision_tower.x") == placed.device_of("llm.lm_head.weight") == torch.device("cuda:0")
    assert placed.device_of("llm.model.layers.5.mlp.up_proj.weight") == placed.devices[-1]


def test_too_little_memory_says_how_much_is_needed_and_free(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = (
        r"vila-tiny needs 4\d MiB in float32 with a cache of 2,048 tokens, but 20 MiB are free \(cuda:0 10 MiB, cuda:1 "
        r"10 MiB\)\. It does not fit in bfloat16 \(--dtype bfloat16, 2\d MiB\) or quantized to 4 bits "
        r"\(vila-quant awq, \d+ MiB\) either\. Free memory, or use a smaller model\.$"
    )
    with pytest.raises(ConfigError, match=message):
        plan_split(checkpoint, "auto", torch.float32, choose_device, lambda device: 10 * 2**20)
    with pytest.raises(ConfigError, match=message):
        plan_split(checkpoint, ["cuda:0", "cuda:1"], torch.float32, choose_device, lambda device: 10 * 2**20)


def loading_error(**settings: object) -> str:
    with pytest.raises(ConfigError) as raised:
        vila.load("vila-tiny", **settings)  # pyright: ignore[reportArgumentType]
    return str(raised.value)


def test_a_model_that_does_not_fit_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what does fit."""
    (variant,) = smaller_variants(open_checkpoint("vila-tiny"), torch.bfloat16)
    four_bits = variant.weight_bytes
    for free, dtype, message in (
        (2, "float32", "2 MiB free. It does not fit in bfloat16 (--dtype bfloat16, 15 MiB) or quantized to 4 bits"),
        (20, "float32", "20 MiB free. It fits in bfloat16 (--dtype bfloat16, 15 MiB) or quantized to 4 bits (vila-"),
        (four_bits / 2**20, "float32", "free. It fits quantized to 4 bits (vila-quant awq, "),
        (four_bits / 2**20, "bfloat16", "free. It fits quantized to 4 bits (vila-quant awq, "),
        (2, "bfloat16", "2 MiB free. It does not fit quantized to 4 bits (vila-quant awq, "),
    ):
        monkeypatch.setattr(placement, "free_bytes", lambda device, free=free: int(free * 2**20))
        error = loading_error(dtype=dtype)
        assert error.startswith(f"vila-tiny needs {30 if dtype == 'float32' else 15} MiB in {dtype}, but cpu has ")
        assert message in error
    monkeypatch.setattr(placement, "free_bytes", lambda device: None)  # unknown
    assert vila.load("vila-tiny").name == "vila-tiny"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), MemoryError(), RuntimeError("DefaultCPUAllocator: x")])
def test_memory_that_runs_out_while_loading(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(loading, "load_weights", fail)
    message = loading_error(dtype="float32")
    assert message.startswith("vila-tiny needs 30 MiB in float32, and the memory ran out while it was loaded")
    assert "It takes less in bfloat16 (--dtype bfloat16, 15 MiB) or quantized to 4 bits (vila-quant awq, " in message


def test_other_errors_of_loading_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(loading, "load_weights", fail)
    with pytest.raises(RuntimeError, match="something else"):
        vila.load("vila-tiny")


def test_what_4_bits_take_is_what_awq_writes() -> None:
    whole, quantized = (random_checkpoint("nvila-8b", weights) for weights in ("bf16", "w4"))
    (variant,) = smaller_variants(whole, torch.bfloat16)
    assert variant.how == "vila-quant awq"
    assert variant.weight_bytes == pytest.approx(estimate(quantized).weight_bytes("float16"), rel=0.02)
    assert smaller_variants(quantized, torch.float16) == []


def test_the_need_is_weights_and_cache(checkpoint: Checkpoint) -> None:
    config = checkpoint.config.language_model
    single, double = (estimate_need(checkpoint, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert double.total == 2 * single.total
    assert len(single.blocks) == config.num_hidden_layers  # pyright: ignore
    assert 15e6 < single.total < 40e6


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("balanced", "expected 'auto' or a list of devices"),
        ("cuda:0", "For one device use device="),
        ([], "expected 'auto'"),
        ({"": 0}, "expected 'auto'"),
        (0, "expected 'auto'"),
        ([0, 1], "expected 'auto'"),
        (["cpu", None], "expected 'auto'"),
        (["cpu", "tpu"], "Unknown device 'tpu'"),
        (["cpu", "cuda:99"], "'cuda:99' is not on this machine"),
    ],
)
def test_wrong_device_maps_are_named(device_map: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vila.load("vila-tiny", device_map=device_map)  # pyright: ignore


def test_device_and_device_map_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="Both device and device_map"):
        vila.load("vila-tiny", device="cpu", device_map="auto")


def test_models_of_transformers_are_not_split(checkpoint: Checkpoint) -> None:
    own = checkpoint.config.language_model
    foreign = TransformersConfig(
        name="transformers",
        hidden_size=own.hidden_size,
        vocab_size=own.vocab_size,
        max_length=own.max_length,
        hf_config={"model_type": "gpt2"},
    )
    changed = replace(checkpoint, config=checkpoint.config.model_copy(update={"language_model": foreign}))
    with pytest.raises(ConfigError, match="through transformers, which device_map cannot split"):
        plan_split(changed, ["cpu", "cpu"], torch.float32, choose_device)


@pytest.mark.parametrize("names", ["cpu, cpu", "auto", "cpu"])
def test_vila_infer_splits_a_model(one: vila.Vila, names: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["-m", "vila-tiny", "--device-map", names, "Is the circle red?"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == one.generate("Is the circle red?")


def test_vila_infer_names_an_unknown_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["-m", "vila-tiny", "--device-map", "cpu,tpu", "Is the circle red?"])
    assert ended.value.code == 2
    assert "Unknown device 'tpu'" in capsys.readouterr().err
