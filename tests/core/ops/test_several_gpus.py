"""Decoders on several NVIDIA GPUs: split by layers, and with heads divided among them.

Where there is one GPU, it holds both parts of a split.
"""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch

import vila_core as vila
from vila_core.config import DecoderConfig
from vila_core.language.decoder import Decoder
from vila_core.language.divided import DividedDecoder, new_pages
from vila_core.language.paged_rows import RowSampling, StepKind
from vila_core.language.paged_step import PagedStep, TorchPagedStep, paged_step
from vila_core.language.split import SplitDecoder
from vila_core.language.tensor_parallel import TensorParallelDecoder

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not GPUS, reason="no NVIDIA GPU")]
two_gpus = pytest.mark.skipif(GPUS < 2, reason="fewer than two NVIDIA GPUs")

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda", min(1, GPUS - 1) if GPUS else 0)
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3.2e-2}
CONFIG = DecoderConfig.model_validate(
    {
        "architecture": "qwen2", "vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1536,
        "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 4096, "attention_bias": True, "max_length": 4096,
    }
)  # fmt: skip


def split(decoder: Decoder) -> DividedDecoder:
    decoder.model.layers[1:].to(SECOND)
    return SplitDecoder(decoder, [(FIRST, 1), (SECOND, 2)])


def share(decoder: Decoder) -> DividedDecoder:
    return TensorParallelDecoder(decoder, [FIRST, SECOND])


def start(decoder: Decoder | DividedDecoder, prompts: list[torch.Tensor], pages: list[list[int]]) -> PagedStep:
    """Read prompts and return a step with a row for each; `decoder` on one device gets the step to compare with."""
    cache = new_pages(decoder, 32)
    step = paged_step(decoder, cache, 6, 16)
    if isinstance(decoder, Decoder):
        step = TorchPagedStep(decoder, cache, step.rows)
    else:
        assert type(step).__name__ == "DividedGraphStep"
    for row, (prompt, of_row) in enumerate(zip(prompts, pages, strict=True)):
        view = cache.rows(torch.tensor([of_row], device=FIRST)).up_to(len(prompt))
        decoder(prompt[None], positions=torch.arange(len(prompt), device=FIRST)[None], cache=view)
        step.rows.start(row, len(prompt), of_row, RowSampling(seed=3))
    return step


@torch.inference_mode()
@pytest.mark.parametrize("divide", [split, pytest.param(share, marks=two_gpus)])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_step_on_two_gpus_follows_one_on_one(dtype: torch.dtype, divide: Callable[[Decoder], DividedDecoder]) -> None:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG).to(FIRST)
    decoder.reset_parameters(std=0.05)
    decoder = decoder.to(dtype).requires_grad_(False)
    divided = divide(deepcopy(decoder))
    lengths = (5, 90, 64, 700, 3)
    prompts = [torch.randn(length, 512, device=FIRST).to(dtype) for length in lengths]
    for count in (len(prompts), 1, 3):
        free = torch.randperm(32).tolist()
        pages = [[free.pop() for _ in range(-(-(length + 30) // 64))] for length in lengths[:count]]
        steps = [start(one, prompts[:count], pages) for one in (divided, decoder)]
        for number in range(12):
            ids = torch.randint(1000, (count,), device=FIRST)
            for step in steps:
                step.rows.ids[:count] = ids
            ours, plain = (step.launch(count, StepKind()) for step in steps)
            error = ((ours.logits.double() - plain.logits.double()).norm() / plain.logits.double().norm()).item()
            assert error < TOLERANCE[dtype], f"{count} rows, step {number}: {error:.2e}"
            assert ours.tokens() == ours.logits.argmax(-1).tolist()
        hidden = [step.hidden(torch.ones(count, 512, device=FIRST, dtype=dtype)) for step in steps]
        torch.testing.assert_close(*hidden, rtol=10 * TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])
        assert torch.equal(steps[0].rows.positions, steps[1].rows.positions)


@pytest.mark.parametrize(
    "device_map",
    [
        [str(FIRST), str(SECOND)],
        pytest.param("tensor", marks=two_gpus),
        pytest.param("tensor:cuda:1,cuda:0", marks=two_gpus),
    ],
    ids=str,
)
def test_a_model_on_two_gpus_answers_like_one_on_the_cpu(device_map: str | list[str]) -> None:
    one, two = vila.load("vila-tiny", device="cpu"), vila.load("vila-tiny", device_map=device_map, dtype="float16")
    questions = ["Hello", "What is a circle?", "Is the circle red?", "Describe the picture."]
    expected = [one.generate(question, max_new_tokens=24) for question in questions]
    assert [two.generate(question, max_new_tokens=24) for question in questions] == expected
    assert two.generate_batch(questions * 4, max_new_tokens=24) == expected * 4


@two_gpus
def test_a_model_on_the_second_gpu_answers_like_one_on_the_cpu() -> None:
    one, two = vila.load("vila-tiny", device="cpu"), vila.load("vila-tiny", device="cuda:1", dtype="float16")
    assert two.generate("What is a circle?", max_new_tokens=24) == one.generate("What is a circle?", max_new_tokens=24)
