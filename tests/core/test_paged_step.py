"""Decoding over a paged cache in plain PyTorch: rows that come and go, grow, and share pages."""

import math
import warnings

import pytest
import torch

from vila_core.config import DecoderConfig
from vila_core.language.decoder import Decoder
from vila_core.language.divided import DividedPages
from vila_core.language.fused_step import warn_if_not_captured
from vila_core.language.paged_cache import PagedCache
from vila_core.language.paged_rows import RowSampling, StepKind
from vila_core.language.paged_step import PagedStep, paged_step

CPU = torch.device("cpu")
GREEDY = StepKind()
PLAIN = RowSampling()


def config(**changes: object) -> DecoderConfig:
    settings: dict[str, object] = {
        "architecture": "qwen2", "vocab_size": 70, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
        "attention_bias": True, "max_length": 256,
    }  # fmt: skip
    return DecoderConfig.model_validate(settings | changes)


def model(**changes: object) -> Decoder:
    decoder = Decoder(config(**changes))
    decoder.reset_parameters(std=0.3, generator=torch.Generator().manual_seed(0))
    return decoder.requires_grad_(False)


def new_step(decoder: Decoder, *, pages: int = 24, rows: int = 6) -> tuple[PagedStep, PagedCache]:
    cache = PagedCache.allocate(decoder.config, pages, page_size=8, device=CPU, dtype=torch.float32)
    return paged_step(decoder, cache, rows, 8), cache


def admit(
    decoder: Decoder, step: PagedStep, cache: PagedCache, row: int, prompt: torch.Tensor, pages: list[int],
    sampling: RowSampling = PLAIN, chunk: int = 100,
) -> int:  # fmt: skip
    """Prefill in chunks, and choose the first token."""
    table = torch.tensor([pages])
    for start in range(0, len(prompt), chunk):
        end = min(start + chunk, len(prompt))
        positions = torch.arange(start, end)[None]
        hidden = decoder(prompt[None, start:end], positions=positions, cache=cache.rows(table).up_to(end))
    step.rows.start(row, len(prompt), pages, sampling)
    return step.choose([row], decoder.logits(hidden[:, -1]), StepKind.of([sampling])).tokens()[0]


@pytest.mark.parametrize("in_8_bits", [False, True])
def test_a_page_is_copied_on_all_devices(in_8_bits: bool) -> None:
    parts = tuple(
        PagedCache.allocate(config(), 3, page_size=8, device=CPU, dtype=torch.float32, in_8_bits=in_8_bits)
        for _ in range(2)
    )
    for part in parts:
        for buffer in (part.keys, part.values, *(part.scales or ())):
            buffer.copy_(torch.randint(100, buffer.shape))
    before = [[buffer.clone() for buffer in (part.keys, part.values, *(part.scales or ()))] for part in parts]
    DividedPages(parts).copy_page(2, 0)
    for part, old in zip(parts, before, strict=True):
        for buffer, was in zip((part.keys, part.values, *(part.scales or ())), old, strict=True):
            assert buffer[:, 0].equal(was[:, 2])
            assert buffer[:, 1:].equal(was[:, 1:])


def alone(decoder: Decoder, prompt: torch.Tensor, count: int) -> list[int]:
    """Greedy tokens without any cache."""
    tokens: list[int] = []
    for _ in range(count):
        token = decoder.logits(decoder(prompt[None])[:, -1]).argmax(-1)
        tokens.append(int(token))
        prompt = torch.cat([prompt, decoder.embed(token)])
    return tokens


@pytest.mark.parametrize("window", [None, 9])
def test_rows_join_and_leave_without_changing_each_other(window: int | None) -> None:
    decoder = model(sliding_window=window)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randn(length, 32, generator=generator) for length in (3, 17, 8, 30)]
    expected = [alone(decoder, prompt, 12) for prompt in prompts]
    step, cache = new_step(decoder)
    pages = [[20, 1], [7, 3, 5, 2], [9, 11, 0], [4, 12, 6, 10, 8, 13]]
    got = [[admit(decoder, step, cache, row, prompts[row], pages[row], chunk=5)] for row in range(2)]
    for _ in range(4):
        for row, token in enumerate(step.launch(2, GREEDY).tokens()):
            got[row].append(token)
    assert got[0] == expected[0][:5]
    step.rows.move(1, 0)  # the first row leaves, and two others come
    order = [1, 2, 3]
    got += [[admit(decoder, step, cache, place, prompts[place + 1], pages[place + 1])] for place in (1, 2)]
    for _ in range(7):
        for place, token in enumerate(step.launch(3, GREEDY).tokens()):
            got[order[place]].append(token)
    assert got[1] == expected[1]
    assert got[2:] == [tokens[:8] for tokens in expected[2:]]


def test_a_step_may_be_launched_before_the_tokens_of_the_last_are_read() -> None:
    decoder = model()
    prompt = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    step, cache = new_step(decoder)
    first = admit(decoder, step, cache, 0, prompt, [3, 2, 1])
    pending = [step.launch(1, GREEDY) for _ in range(6)]
    assert [first, *(token for one in pending for token in one.tokens())] == alone(decoder, prompt, 7)


def test_prompts_share_the_pages_of_their_prefix() -> None:
    decoder = model()
    generator = torch.Generator().manual_seed(3)
    prefix = torch.randn(16, 32, generator=generator)
    prompts = [torch.cat([prefix, torch.randn(n, 32, generator=generator)]) for n in (3, 6)]
    step, cache = new_step(decoder)
    got = [[admit(decoder, step, cache, 0, prompts[0], [5, 6, 0, 1])]]
    positions = torch.arange(16, 22)[None]
    rows = cache.rows(torch.tensor([[5, 6, 9, 10]]))
    hidden = decoder(prompts[1][None, 16:], positions=positions, cache=rows.up_to(22))
    step.rows.start(1, 22, [5, 6, 9, 10], PLAIN)
    got.append(step.choose([1], decoder.logits(hidden[:, -1]), GREEDY).tokens())
    for _ in range(7):
        for row, token in enumerate(step.launch(2, GREEDY).tokens()):
            got[row].append(token)
    assert got == [alone(decoder, prompt, 8) for prompt in prompts]


def test_a_rows_tokens_depend_neither_on_its_batch_nor_on_when_it_joined() -> None:
    decoder = model()
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randn(n, 32, generator=generator) for n in (4, 9, 6)]
    hot = RowSampling(temperature=1.5, top_k=30, top_p=0.95, seed=2**62 + 5, repetition_penalty=1.2)
    kind = StepKind.of([hot])
    step, cache = new_step(decoder)
    expected = [admit(decoder, step, cache, 0, prompts[0], [0, 1, 2], hot)]
    expected += [step.launch(1, kind).tokens()[0] for _ in range(10)]
    others = RowSampling(temperature=0.7, seed=3)
    step, cache = new_step(decoder)
    admit(decoder, step, cache, 0, prompts[1], [7, 8, 9, 10], others)
    for _ in range(3):
        step.launch(1, StepKind.of([others]))
    got = [admit(decoder, step, cache, 2, prompts[0], [3, 5, 4], hot)]
    admit(decoder, step, cache, 1, prompts[2], [11, 12, 13])
    got += [step.launch(3, kind).tokens()[2] for _ in range(10)]
    assert got == expected
    assert len(set(expected)) > 5


def test_a_grammar_allows_only_its_tokens() -> None:
    decoder = model()
    step, cache = new_step(decoder)
    prompt = torch.randn(5, 32, generator=torch.Generator().manual_seed(5))
    admit(decoder, step, cache, 0, prompt, [0, 1], PLAIN)
    admit(decoder, step, cache, 1, prompt, [2, 3], PLAIN)
    free = step.launch(2, GREEDY)
    mask = torch.zeros(3, dtype=torch.int32)
    mask[2], mask[1] = 1 << 5, -(2**31)  # tokens 69 and 63
    step.rows.allow(0, mask)
    pending = step.launch(2, StepKind.of([], masks=True))
    assert pending.tokens()[0] == max((63, 69), key=lambda token: pending.logits[0, token].item())
    assert pending.tokens()[1] == pending.logits[1].argmax()
    assert free.tokens()[0] == free.tokens()[1]


def test_a_row_that_computes_nan_is_reported_and_does_not_spoil_its_pages() -> None:
    decoder = model()
    generator = torch.Generator().manual_seed(6)
    prompts = [torch.randn(7, 32, generator=generator) for _ in range(2)]
    step, cache = new_step(decoder)
    bad = prompts[0].clone()
    bad[6] = math.nan
    assert admit(decoder, step, cache, 0, bad, [0, 1]) == -1
    good = [admit(decoder, step, cache, 1, prompts[1], [2, 3])]
    for _ in range(4):
        tokens = step.launch(2, GREEDY).tokens()
        good.append(tokens[1])
    step.rows.stop(0)
    assert step.launch(2, GREEDY).tokens()[0] == -1
    assert good == alone(decoder, prompts[1], 5)
    again = [admit(decoder, step, cache, 0, prompts[1], [0, 1])]
    again += [step.launch(1, GREEDY).tokens()[0] for _ in range(4)]
    assert again == good


def test_inputs_need_not_be_tokens() -> None:
    decoder = model()
    generator = torch.Generator().manual_seed(7)
    prompt = torch.randn(9, 32, generator=generator)
    step, cache = new_step(decoder)
    admit(decoder, step, cache, 1, prompt[:7], [4, 5])
    given = torch.randn(2, 32, generator=generator)
    given[1] = prompt[7]
    hidden = step.hidden(given)
    given[1] = prompt[8]
    hidden = step.hidden(given)
    torch.testing.assert_close(hidden[1], decoder(prompt[None])[0, -1])
    assert not hidden[0].any()
    assert step.rows.positions.tolist()[:2] == [-1, 9]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({}, "not float32"), ({"head_dim": 80}, "heads of 64 or 128, not 80"), ({"qk_norm": True}, "Qwen3")],
)
def test_a_gpu_that_decodes_without_graphs_says_why(changes: dict[str, object], reason: str) -> None:
    with pytest.warns(UserWarning, match=f"slower path, without CUDA graphs: .*{reason}"):
        warn_if_not_captured(config(**{"head_dim": 64} | changes), torch.device("cuda"), torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_not_captured(config(**changes), CPU, torch.float32)
