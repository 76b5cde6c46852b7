"""Tensor parallelism: shares of a decoder compute what the whole does; devices that cannot share it are named."""

import re
from copy import deepcopy

import pytest
import torch
from PIL import Image
from torch import nn

import vila_core as vila
from vila_core import tensor_placement
from vila_core.bench.shapes import LANGUAGE_SHAPES
from vila_core.checkpoint import Checkpoint, open_checkpoint
from vila_core.cli.infer import main
from vila_core.config import DecoderConfig
from vila_core.device_choice import choose_device
from vila_core.engine import memory
from vila_core.engine.limits import EngineConfig
from vila_core.errors import ConfigError
from vila_core.language.decoder import Decoder
from vila_core.language.divided import new_pages
from vila_core.language.split import SplitDecoder
from vila_core.language.tensor_parallel import (
    TensorParallelDecoder,
    divide_linear,
    part_config,
    possible_counts,
)
from vila_core.placement import estimate_need
from vila_core.tensor_placement import plan_shares

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint("vila-tiny")


@pytest.fixture(scope="module")
def one() -> vila.Vila:
    return vila.load("vila-tiny")


def config(**changes: object) -> DecoderConfig:
    settings: dict[str, object] = {
        "architecture": "qwen2", "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 64,
        "max_length": 64,
    }  # fmt: skip
    return DecoderConfig.model_validate(settings | changes)


def test_a_shared_model_answers_like_one_on_one_device(one: vila.Vila) -> None:
    shared = vila.load("vila-tiny", device_map="tensor:cpu,cpu")
    assert isinstance(shared.network.llm, TensorParallelDecoder)
    prompt = [Image.new("RGB", (90, 60), "green"), "What is in the picture?"]
    prompts = [prompt, "Hello", "What is a circle?", "one two three four five six " * 30]
    assert shared.generate(prompt, max_new_tokens=12) == one.generate(prompt, max_new_tokens=12)
    assert shared.generate_batch(prompts, max_new_tokens=8) == one.generate_batch(prompts, max_new_tokens=8)
    assert "".join(shared.stream("Hello", max_new_tokens=8)) == one.generate("Hello", max_new_tokens=8)
    assert shared.generate(prompts[-1], max_new_tokens=8) == one.generate(prompts[-1], max_new_tokens=8)
    assert shared.engine.stats().cached_tokens >= 64
    assert shared.engine.stats().pages_used == 0
    seen = (model.inspect(prompt).logits for model in (one, shared))
    torch.testing.assert_close(*seen, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True},
        {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
        {"architecture": "qwen3", "qk_norm": True},
        {"architecture": "llama", "tie_word_embeddings": True},
        {"architecture": "mistral", "sliding_window": 5},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 8},
        {"num_key_value_heads": 8},
        {"head_dim": 2},
    ],
    ids=str,
)
def test_shares_compute_what_the_whole_does(changes: dict[str, object], count: int) -> None:
    torch.manual_seed(0)
    decoder = Decoder(config(**changes)).double().eval().requires_grad_(False)
    decoder.reset_parameters(std=0.3)
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.normal_()
    shared = TensorParallelDecoder(deepcopy(decoder), [CPU] * count)
    assert not len(shared.decoder.model.layers)
    embeds, lengths = torch.randn(3, 9, 32, dtype=torch.float64), torch.tensor([9, 4, 1])
    caches = decoder.new_cache(3, 20), shared.new_cache(3, 20)
    assert shared(embeds).allclose(decoder(embeds))
    hidden = [
        model(embeds, cache=cache, lengths=lengths) for model, cache in zip((decoder, shared), caches, strict=True)
    ]
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(hidden[0][row, :length], hidden[1][row, :length])
    steps = [
        model.decode_step(embeds[:, :1], lengths[:, None], cache.up_to(10))
        for model, cache in zip((decoder, shared), caches, strict=True)
    ]
    torch.testing.assert_close(*steps)
    torch.testing.assert_close(decoder.logits(steps[0]), shared.logits(steps[1]))


def test_every_device_has_an_equal_share_and_nothing_is_left() -> None:
    whole = Decoder(config(attention_bias=True)).requires_grad_(False)
    sizes = sum(weight.numel() for layer in whole.model.layers for weight in layer.parameters() if weight.ndim > 1)
    shared = TensorParallelDecoder(whole, [CPU, torch.device("meta")])
    shares = [sum(weight.numel() for weight in shard.parameters() if weight.ndim > 1) for shard in shared.shards]
    assert shares == [sizes // 2] * 2
    assert {weight.device.type for weight in shared.shards[1].parameters()} == {"meta"}
    assert {weight.device.type for weight in shared.decoder.parameters()} == {"cpu"}
    cache = shared.new_cache(2, 7)
    assert [part.keys.device.type for part in cache.parts] == ["cpu", "meta"]  # pyright: ignore[reportAttributeAccessIssue]
    assert shared.parts[0].config.num_key_value_heads == 2


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_the_shares_of_a_linear_add_up_or_stand_side_by_side(count: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 6, bias=bias).double()
    x = torch.randn(5, 12, dtype=torch.float64)
    devices = [CPU] * count
    columns = divide_linear(linear, devices, by_outputs=True)
    torch.testing.assert_close(torch.cat([share(x) for share in columns], dim=-1), linear(x))
    rows = divide_linear(linear, devices, by_outputs=False)
    torch.testing.assert_close(
        sum(share(part) for share, part in zip(rows, x.chunk(count, -1), strict=True)), linear(x)
    )
    assert all(share.weight.is_contiguous() for share in [*columns, *rows])
    assert all(share.weight.data_ptr() != linear.weight.data_ptr() for share in [*columns, *rows])


def test_linears_of_another_kind_are_not_divided() -> None:
    class Sparse(nn.Linear):
        pass

    with pytest.raises(ConfigError, match=r"kind Sparse cannot be divided among devices\. Split the model by layers"):
        divide_linear(Sparse(4, 4), [CPU, CPU], by_outputs=True)


@pytest.mark.parametrize(
    ("shapes", "counts"),
    [("vila1.5-40b", [2, 4, 8]), ("nvila-8b", [2, 4]), ("nvila-3b", [2]), ("nvila-0.5b", [2])],
)
def test_how_many_devices_can_share_a_model(shapes: str, counts: list[int]) -> None:
    language = LANGUAGE_SHAPES[shapes]
    assert possible_counts(language) == counts
    for count in range(2, 17):
        if count in counts:
            part = part_config(language, count)
            assert part.num_attention_heads * count == language.num_attention_heads
            assert part.head_dim == language.head_dim
        else:
            with pytest.raises(ConfigError, match=rf"^{count} devices cannot share .* {counts[-1]} can\. Name as many"):
                part_config(language, count)


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        ({}, 3, "3 devices cannot share 8 query heads, 4 key/value heads and an MLP of 48 equally; 2 or 4 can"),
        ({"num_key_value_heads": 1}, 2, "8 query heads, 1 key/value heads and an MLP of 48 equally; no number of"),
        ({"intermediate_size": 50}, 4, "an MLP of 50 equally; 2 can"),
        ({"intermediate_size": 49}, 2, "an MLP of 49 equally; no number of devices can"),
    ],
)
def test_devices_that_cannot_share_equally_are_refused(changes: dict[str, object], count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        TensorParallelDecoder(Decoder(config(**changes)), [CPU] * count)


def pretend(monkeypatch: pytest.MonkeyPatch, kinds: list[str], *, reach: bool = True) -> None:
    """Let the machine have GPUs of these kinds."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(kinds))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: kinds[device.index])
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: reach)


@pytest.mark.parametrize(("gpus", "used"), [(2, 2), (3, 2), (4, 2), (8, 2)])
def test_all_gpus_are_used_that_can_share_the_heads(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, gpus: int, used: int
) -> None:
    pretend(monkeypatch, ["H100"] * gpus)
    placed = plan_shares(checkpoint, [], torch.float16, choose_device, lambda device: 10**9)
    assert [str(device) for device in placed.devices] == [f"cuda:{number}" for number in range(used)]
    assert placed.shares_blocks
    assert placed.blocks == (0, 1, 0, 1, 0, 1)


@pytest.mark.parametrize(
    ("kinds", "names", "reach", "message"),
    [
        ([], [], True, "needs at least two GPUs; this machine has 0"),
        (["H100"], [], True, "needs at least two GPUs; this machine has 1"),
        (["H100"] * 2, ["cuda:0", "cuda:0"], True, "names cuda:0, cuda:0; expected different GPUs"),
        (["H100"] * 2, ["cuda", "cuda:0"], True, "names cuda:0, cuda:0; expected different GPUs"),
        (["H100"] * 2, ["cuda:0", "cpu"], True, "names cuda:0, cpu; expected different GPUs"),
        (["H100", "A100"], [], True, r"needs GPUs of one kind, and these differ \(cuda:0 H100, cuda:1 A100\)"),
        (["H100"] * 2, [], False, "cuda:0 cannot reach that of cuda:1"),
        (["H100"] * 3, ["cuda:0", "cuda:1", "cuda:2"], True, "3 devices cannot share 4 query heads"),
        (["H100"] * 2, ["cuda:0", "cuda:7"], True, "'cuda:7' is not on this machine"),
    ],
)
def test_gpus_that_cannot_work_together_are_named(
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    kinds: list[str],
    names: list[str],
    reach: bool,
    message: str,
) -> None:
    pretend(monkeypatch, kinds, reach=reach)
    with pytest.raises(ConfigError, match=message):
        plan_shares(checkpoint, names, torch.float16, choose_device, lambda device: 10**9)


def test_each_device_needs_room_for_its_share(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ["H100"] * 2)
    need = estimate_need(checkpoint, torch.float32)
    share = sum(need.blocks) // 2
    room = {"cuda:0": share + need.rest, "cuda:1": share}
    assert plan_shares(checkpoint, [], torch.float32, choose_device, lambda device: room[str(device)]).shares_blocks
    for device in room:
        less = room | {device: room[device] - 1}
        message = (
            rf"vila-tiny needs \d+ MiB on {device} in float32, one of 2 that share it, with a cache of 2,048 tokens"
        )
        with pytest.raises(ConfigError, match=message):
            plan_shares(checkpoint, [], torch.float32, choose_device, lambda device, less=less: less[str(device)])
    monkeypatch.setattr(tensor_placement, "free_bytes", lambda device: None)
    assert plan_shares(checkpoint, [], torch.float32, choose_device, lambda device: None).shares_blocks  # unknown


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("tensors", "or 'tensor' or 'tensor:cuda:0,cuda:1' for tensor parallelism"),
        ("tensor:cpu,tpu", "Unknown device 'tpu'"),
        (
            "tensor:cpu,cpu,cpu",
            "3 devices cannot share 4 query heads, 2 key/value heads and an MLP of 640 equally; 2 can",
        ),
        ("tensor", "needs at least two GPUs"),
        ("tensor:", "needs at least two GPUs"),
    ],
)
def test_wrong_device_maps_are_named(device_map: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=re.escape(message)):
        vila.load("vila-tiny", device_map=device_map)


def test_one_device_is_not_shared() -> None:
    assert isinstance(vila.load("vila-tiny", device_map="tensor:cpu").network.llm, Decoder)


def test_vila_infer_shares_a_model(one: vila.Vila, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["-m", "vila-tiny", "--device-map", "tensor:cpu,cpu", "Is the circle red?"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == one.generate("Is the circle red?")


def test_a_page_takes_its_part_of_the_memory_of_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    meta = torch.device("meta")
    whole = memory.page_bytes(Decoder(config()), EngineConfig())
    split = SplitDecoder(Decoder(config(num_hidden_layers=3)), [(CPU, 1), (meta, 2)])
    assert memory.page_bytes_by_device(split, EngineConfig()) == {CPU: whole // 2, meta: whole}
    shared = TensorParallelDecoder(Decoder(config()), [CPU, meta])
    assert memory.page_bytes_by_device(shared, EngineConfig()) == {CPU: whole // 2, meta: whole // 2}
    same = TensorParallelDecoder(Decoder(config()), [CPU, CPU])
    assert memory.page_bytes_by_device(same, EngineConfig()) == {CPU: whole}
    monkeypatch.setattr(memory, "free_bytes", lambda device: 400 * whole if device == CPU else 20 * whole)
    monkeypatch.setattr(memory, "HOST_SPARE_BYTES", 10**9)
    assert memory.num_pages(split, EngineConfig()) == 5  # a quarter of 20 pages, where two of three layers lie
    assert memory.num_pages(shared, EngineConfig()) == 10
    assert memory.num_pages(shared, EngineConfig(cache_bytes=7 * whole)) == 7
    assert [part.keys.shape[2] for part in new_pages(shared, 3).parts] == [2, 2]  # pyright: ignore[reportAttributeAccessIssue]
