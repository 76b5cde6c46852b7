"""A model whose values stop being finite in the middle of an answer: an error, never an arbitrary token."""

import numpy as np
import pytest
import torch

import vila_core as vila
from vila_core.engine.completion import Completion
from vila_core.errors import BatchGenerationError, GenerationError

QUESTION = "What color is this?"


def picture(color: tuple[int, int, int]) -> vila.Image:
    return vila.Image(np.full((60, 60, 3), color, dtype=np.uint8))


RED, BLUE = picture((200, 30, 30)), picture((30, 30, 200))


def load(dtype: str, factor: float) -> vila.Vila:
    """Load the embedded model, and multiply the embedding of the token "red" so that reading it overflows."""
    model = vila.load("vila-tiny", dtype=dtype)
    (red,) = model.complete([RED, QUESTION]).token_ids
    decoder = model.network.llm
    embedding = decoder.model.embed_tokens.weight
    decoder.lm_head = torch.nn.Linear(*reversed(embedding.shape), bias=False).requires_grad_(False)
    decoder.lm_head.weight.data = embedding.clone()  # the embedding alone is damaged
    embedding[red] *= factor
    return model


@pytest.fixture(scope="module")
def model() -> vila.Vila:
    return load("float16", 2e6)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "seed": 1}], ids=["greedy", "sampled"])
def test_generate_and_stream(model: vila.Vila, settings: dict[str, float]) -> None:
    with pytest.raises(GenerationError, match=r"not finite in float16, at token 2.*bfloat16 or float32") as caught:
        model.generate([RED, QUESTION], **settings)
    assert not isinstance(caught.value, BatchGenerationError)
    pieces = model.stream([RED, QUESTION], **settings)
    with pytest.raises(GenerationError, match="float16"):
        list(pieces)


def test_one_row_of_a_batch_fails_alone(model: vila.Vila) -> None:
    prompts = [[BLUE, QUESTION], [RED, QUESTION], [BLUE, "Is this blue?"]]
    with pytest.raises(
        BatchGenerationError, match=r"1 of 3 prompts failed; the first is prompt 2: .*float16"
    ) as caught:
        model.generate_batch(prompts)
    first, failed, last = caught.value.outcomes
    assert isinstance(failed, GenerationError)
    assert isinstance(first, Completion)
    assert isinstance(last, Completion)
    assert first.text == model.generate(prompts[0])
    assert last.text == model.generate(prompts[2])
    assert caught.value.errors == [failed]


def test_schema(model: vila.Vila) -> None:
    with pytest.raises(GenerationError, match="float16"):
        model.generate([RED, QUESTION], json_schema={"enum": ["red", "redred"]})


def test_a_norm_that_overflows_to_zero(model: vila.Vila) -> None:
    damaged = load("bfloat16", 1e30)  # finite, but its square is not
    with pytest.raises(GenerationError, match=r"not finite in bfloat16.*float32"):
        damaged.generate([RED, QUESTION])
