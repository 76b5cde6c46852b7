"""Requests that draw: guidance rows, batches, text beside pictures, modes that switch, and pages."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from tests.core.answering import PAGE_BYTES
from tests.core.drawing_heads import KINDS, SmallHead

from vila_core.engine.answer import Generated
from vila_core.engine.drawing import DrawingRequest, Drawn, OutputModes
from vila_core.engine.drawing_settings import DrawingConfig
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import TextPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.engine.request import Handle
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError, PromptTooLongError
from vila_core.generation.drawing_rows import seed_of_picture
from vila_core.language.decoder import Decoder
from vila_core.language.paged_cache import PAGE_SIZE
from vila_core.ops.reference import gumbel_noise, kept_tokens
from vila_core.tokenizer import Tokenizer

START, VIDEO_START = 7, 8
"""Token ids after which the head draws."""
HOT = DrawingConfig(guidance=3, temperature=1.3, top_k=12, top_p=0.9, seed=5)
ONLY_TEXT = {START: -100.0, VIDEO_START: -100.0}
"""A bias under which no text begins a picture."""


def some_ids(length: int, seed: int = 0) -> list[int]:
    return torch.randint(20, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def empty_prompt(kind: str, text: str) -> list[int]:
    return [*some_ids(3, seed=99), *text.encode(), START if kind == "image" else VIDEO_START]


def modes(head: SmallHead) -> OutputModes:
    return OutputModes(head, {START: "image", VIDEO_START: "video"}, empty_prompt)


@pytest.fixture(params=[1, 3], ids=["one code", "three codes"])
def head(request: pytest.FixtureRequest, decoder: Decoder) -> SmallHead:
    return SmallHead(decoder.config.hidden_size, depth=request.param)


@pytest.fixture
def engine(decoder: Decoder, tokenizer: Tokenizer, head: SmallHead) -> Engine:
    return new_engine(decoder, tokenizer, head)


def new_engine(llm: Any, tokenizer: Tokenizer, head: SmallHead, *, pages: int = 60, rows: int = 24) -> Engine:
    config = EngineConfig(cache_bytes=pages * PAGE_BYTES, max_batch=rows)
    return Engine(llm, tokenizer, frozenset(), config, modes=modes(head))


def draw(
    engine: Engine,
    decoder: Decoder,
    ids: Sequence[int],
    config: DrawingConfig = HOT,
    number: int = 0,
    start: int = START,
) -> Handle:
    prompt = TextPrompt(decoder, [*ids, start])
    return engine.submit(prompt, GenerationConfig(seed=1), DrawingRequest(config, number))


def codes_of(answer: Generated) -> list[tuple[int, ...]]:
    (drawn,) = answer.parts
    assert isinstance(drawn, Drawn)
    return [tuple(codes) for codes in drawn.codes]


def alone(
    decoder: Decoder, head: SmallHead, ids: Sequence[int], config: DrawingConfig, number: int = 0, kind: str = "image"
) -> list[tuple[int, ...]]:
    """Codes without an engine, batches or caches."""
    return formula(decoder, head, decoder.embed(torch.tensor(ids)), config, number, kind)


def formula(
    decoder: Decoder, head: SmallHead, context: torch.Tensor, config: DrawingConfig, number: int, kind: str
) -> list[tuple[int, ...]]:
    """Codes after a context `[T, D]`: guidance, temperature, top-k, top-p and the draw as formulas."""
    contexts = [context, decoder.embed(torch.tensor(empty_prompt(kind, config.negative_prompt)))]
    seed, drawn = seed_of_picture(config.seed or 0, number), list[tuple[int, ...]]()
    for position in range(KINDS[kind].positions):
        hidden = torch.stack([decoder(context[None])[0, -1] for context in contexts])
        codes = torch.zeros(1, 0, dtype=torch.int64)
        for depth in range(head.codes_per_position):
            padded = torch.nn.functional.pad(codes, (0, head.codes_per_position - depth)).expand(2, -1)
            conditional, unconditional = head.logits(hidden, padded)[:, depth]
            logits = (unconditional + config.guidance * (conditional - unconditional)) / config.temperature
            kept = kept_tokens(logits, config.top_k, config.top_p)
            noise = gumbel_noise(seed, position * head.codes_per_position + depth + 1, head.codebook_size)
            p = logits.masked_fill(~kept, -math.inf).softmax(dim=-1)
            codes = torch.cat([codes, (p / (-noise).exp()).argmax()[None, None]], dim=1)
        drawn.append(tuple(codes[0].tolist()))
        contexts = [torch.cat([context, head.embed(codes)]) for context in contexts]
    return drawn


def all_is_free(engine: Engine) -> bool:
    stats = engine.stats()
    return (stats.queued, stats.reading, stats.answering, stats.pages_used) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "config",
    [
        HOT,
        HOT.model_copy(update={"guidance": 1.0}),
        HOT.model_copy(update={"guidance": 0.0}),
        HOT.model_copy(update={"negative_prompt": "blurred"}),
        HOT.model_copy(update={"top_k": 900, "top_p": 1.0}),
        HOT.model_copy(update={"top_k": 0, "top_p": 0.3}),
        HOT.model_copy(update={"seed": 2**62}),
    ],
    ids=["guided", "not guided", "unconditional", "negative prompt", "large top_k", "only top_p", "large seed"],
)
def test_a_picture_is_what_the_formulas_say(
    engine: Engine, decoder: Decoder, head: SmallHead, config: DrawingConfig
) -> None:
    ids = some_ids(11)
    answer = draw(engine, decoder, ids, config).result()
    assert codes_of(answer) == alone(decoder, head, [*ids, START], config)
    assert (answer.text, answer.finish_reason, answer.token_ids) == ("", "stop", [])
    assert all_is_free(engine)


def test_the_same_pictures_alone_and_in_a_batch_of_eight(engine: Engine, decoder: Decoder) -> None:
    prompts = [some_ids(length, seed=length) for length in (5, 70, 5, 31, 130, 5, 64, 63)]
    separately = [codes_of(draw(engine, decoder, ids, number=i).result()) for i, ids in enumerate(prompts)]
    engine.clear_cache()
    handles = [draw(engine, decoder, ids, number=i) for i, ids in enumerate(prompts)]
    assert [codes_of(handle.result()) for handle in handles] == separately
    assert len({tuple(codes) for codes in separately}) > 5
    assert all_is_free(engine)


def test_pictures_join_and_leave_beside_texts(engine: Engine, decoder: Decoder) -> None:
    texts = [TextPrompt(decoder, some_ids(length, seed=length)) for length in (4, 90, 33)]
    settings = [
        GenerationConfig(max_new_tokens=25),
        GenerationConfig(max_new_tokens=14, temperature=0.9, seed=4, logprobs=True),
        GenerationConfig(max_new_tokens=40, temperature=1.2, top_k=30, seed=3, repetition_penalty=1.1),
    ]
    expected = [engine.submit(text, config).result() for text, config in zip(texts, settings, strict=True)]
    picture = codes_of(draw(engine, decoder, some_ids(9)).result())
    video = codes_of(draw(engine, decoder, some_ids(9), start=VIDEO_START).result())
    unguided = codes_of(draw(engine, decoder, some_ids(9), HOT.model_copy(update={"guidance": 1.0})).result())
    handles = [engine.submit(texts[0], settings[0])]
    engine.step()
    pictures = [draw(engine, decoder, some_ids(9), start=VIDEO_START), draw(engine, decoder, some_ids(9))]
    handles.append(engine.submit(texts[1], settings[1]))
    engine.step()
    engine.step()
    pictures.append(draw(engine, decoder, some_ids(9), HOT.model_copy(update={"guidance": 1.0})))
    handles.append(engine.submit(texts[2], settings[2]))
    assert [codes_of(handle.result()) for handle in pictures] == [video, picture, unguided]
    assert [handle.result().token_ids for handle in handles] == [one.token_ids for one in expected]
    assert [one.logprob for one in handles[1].result().logprobs] == pytest.approx(
        [one.logprob for one in expected[1].logprobs], abs=1e-4
    )
    assert all_is_free(engine)


def test_pieces_report_every_position(engine: Engine, decoder: Decoder) -> None:
    pieces = list(draw(engine, decoder, some_ids(4)))
    assert [piece.codes for piece in pieces] == codes_of(draw(engine, decoder, some_ids(4)).result())
    assert [piece.finish_reason for piece in pieces] == [None] * 5 + ["stop"]
    assert pieces[-1].drawn is not None
    assert not any(piece.text for piece in pieces)


def test_a_cancelled_picture_gives_back_its_rows_and_pages(engine: Engine, decoder: Decoder) -> None:
    expected = codes_of(draw(engine, decoder, some_ids(9)).result())
    other, victim = draw(engine, decoder, some_ids(9)), draw(engine, decoder, some_ids(8, seed=1), number=3)
    last = draw(engine, decoder, some_ids(70, seed=2))
    for _ in range(3):
        engine.step()
    victim.cancel()
    with pytest.raises(GenerationError, match="cancelled"):
        victim.result()
    assert codes_of(other.result()) == expected
    assert len(codes_of(last.result())) == 6
    assert all_is_free(engine)


def test_pictures_wait_for_rows(decoder: Decoder, tokenizer: Tokenizer, head: SmallHead) -> None:
    engine = new_engine(decoder, tokenizer, head, rows=3)
    handles = [draw(engine, decoder, some_ids(9), number=i) for i in range(4)]
    text = engine.submit(TextPrompt(decoder, some_ids(5)), GenerationConfig(max_new_tokens=3))
    got = [codes_of(handle.result()) for handle in handles]
    assert got == [alone(decoder, head, [*some_ids(9), START], HOT, number=i) for i in range(4)]
    assert len(text.result().token_ids) == 3


def test_pictures_wait_for_pages_and_come_back_when_they_lose_them(
    decoder: Decoder, tokenizer: Tokenizer, head: SmallHead
) -> None:
    engine = new_engine(decoder, tokenizer, head, pages=6)
    text = engine.submit(TextPrompt(decoder, some_ids(50)), GenerationConfig(max_new_tokens=250, logit_bias=ONLY_TEXT))
    for _ in range(8):
        engine.step()
    handles = [draw(engine, decoder, some_ids(60), number=i, start=VIDEO_START) for i in range(5)]
    got = [codes_of(handle.result()) for handle in handles]
    assert got == [alone(decoder, head, [*some_ids(60), VIDEO_START], HOT, i, "video") for i in range(5)]
    assert len(text.result().token_ids) == 250
    assert all_is_free(engine)


@pytest.mark.parametrize(("pages", "rows"), [(3, 24), (4, 24), (6, 24), (60, 1)])
@pytest.mark.parametrize("token", [START, VIDEO_START])
def test_pictures_in_a_text_that_find_no_room_end_it(
    decoder: Decoder, tokenizer: Tokenizer, head: SmallHead, token: int, pages: int, rows: int
) -> None:
    engine = new_engine(decoder, tokenizer, head, pages=pages, rows=rows)
    config = GenerationConfig(max_new_tokens=100, temperature=1.0, seed=3, logit_bias={token: 10.0})
    draws = [engine.submit(TextPrompt(decoder, some_ids(50)), config) for _ in range(2)]
    after = engine.submit(TextPrompt(decoder, some_ids(50)), GenerationConfig(max_new_tokens=5, logit_bias=ONLY_TEXT))
    assert [handle.result().finish_reason for handle in draws] == ["length", "length"]
    assert len(after.result().token_ids) == 5
    assert all_is_free(engine)


def test_a_picture_that_loses_its_pages_goes_on_where_it_was(
    decoder: Decoder, tokenizer: Tokenizer, head: SmallHead
) -> None:
    engine = new_engine(decoder, tokenizer, head, pages=4)
    text = engine.submit(TextPrompt(decoder, some_ids(122)), GenerationConfig(max_new_tokens=100, logit_bias=ONLY_TEXT))
    engine.step()
    handle = draw(engine, decoder, some_ids(9), start=VIDEO_START)
    assert codes_of(handle.result()) == alone(decoder, head, [*some_ids(9), VIDEO_START], HOT, kind="video")
    assert len(text.result().token_ids) == 100
    assert engine.stats().preemptions > 0


@pytest.fixture
def tokens_read(decoder: Decoder) -> Iterator[list[int]]:
    """How many tokens each pass over prompts reads; steps have one token for each of at least two rows."""
    read: list[int] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        rows, tokens, _ = inputs[0].shape
        if rows == 1 or tokens > 1:
            read.append(rows * tokens)

    handle = decoder.register_forward_pre_hook(note)
    yield read
    handle.remove()


@pytest.mark.parametrize("length", [0, 1, PAGE_SIZE - 4, PAGE_SIZE - 3, 2 * PAGE_SIZE], ids="{} more".format)
def test_what_guides_is_computed_once(
    engine: Engine, decoder: Decoder, head: SmallHead, tokens_read: list[int], length: int
) -> None:
    """The prompt of the companion has 4 tokens more; it fills no page, one page, or two and a part."""
    config = HOT.model_copy(update={"negative_prompt": "x" * length})
    prompts = [some_ids(number, seed=number) for number in (5, 9, 30)]
    drawn = [codes_of(draw(engine, decoder, prompts[0], config).result())]
    tokens_read.clear()
    drawn.append(codes_of(draw(engine, decoder, prompts[1], config).result()))
    assert tokens_read == [len(prompts[1]) + 1]  # and nothing of what guides
    assert engine.stats().cached_tokens == length + 4
    engine.clear_cache()
    drawn.append(codes_of(draw(engine, decoder, prompts[2], config).result()))
    assert engine.stats().cached_tokens == length + 4  # nothing is known any more
    assert drawn == [alone(decoder, head, [*ids, START], config) for ids in prompts]
    assert all_is_free(engine)


def test_what_guides_is_copied_from_a_picture_that_is_being_drawn(
    engine: Engine, decoder: Decoder, head: SmallHead, tokens_read: list[int]
) -> None:
    first = draw(engine, decoder, some_ids(9))
    for _ in range(3):
        engine.step()
    tokens_read.clear()
    second = draw(engine, decoder, some_ids(40))
    engine.step()
    first.cancel()
    drawn = [codes_of(second.result())]
    assert tokens_read == [41]
    drawn.append(codes_of(draw(engine, decoder, some_ids(9)).result()))  # from the page that the first left behind
    assert tokens_read == [41, 10]
    assert drawn == [alone(decoder, head, [*some_ids(length), START], HOT) for length in (40, 9)]
    assert all_is_free(engine)


def test_what_guides_is_read_again_when_its_page_was_needed(
    decoder: Decoder, tokenizer: Tokenizer, head: SmallHead, tokens_read: list[int]
) -> None:
    engine = new_engine(decoder, tokenizer, head, pages=2)
    expected = alone(decoder, head, [*some_ids(9), START], HOT)
    assert codes_of(draw(engine, decoder, some_ids(9)).result()) == expected
    text = TextPrompt(decoder, some_ids(100))
    engine.submit(text, GenerationConfig(max_new_tokens=2, logit_bias=ONLY_TEXT)).result()
    tokens_read.clear()
    assert codes_of(draw(engine, decoder, some_ids(9)).result()) == expected
    assert sum(tokens_read) == 10 + 4
    assert all_is_free(engine)


def test_what_guides_is_copied_for_a_picture_that_comes_back(
    engine: Engine, decoder: Decoder, head: SmallHead, tokens_read: list[int]
) -> None:
    """It loses its pages, but the page of what guides is still known. Only its codes are read again."""
    picture = draw(engine, decoder, some_ids(9), start=VIDEO_START)
    for _ in range(5):
        engine.step()
    (request,) = engine._requests.running  # pyright: ignore[reportPrivateUsage]
    engine._requests.requeue(engine._use_runner(), request)  # pyright: ignore[reportPrivateUsage] - as for want of pages
    tokens_read.clear()
    drawn = codes_of(picture.result())
    again, of_companion = tokens_read
    assert 0 < of_companion == again - len(some_ids(9)) - 1
    assert drawn == alone(decoder, head, [*some_ids(9), VIDEO_START], HOT, kind="video")


def test_what_guides_is_copied_in_8_bits(decoder: Decoder, tokenizer: Tokenizer, head: SmallHead) -> None:
    drawn: list[list[tuple[int, ...]]] = []
    for shares in (True, False):
        config = EngineConfig(kv_cache_dtype="fp8", shares_prefixes=shares)
        engine = Engine(decoder, tokenizer, frozenset(), config, modes=modes(head))
        drawn += [codes_of(draw(engine, decoder, some_ids(9), number=number).result()) for number in range(2)]
        assert engine.stats().cached_tokens == (4 if shares else 0)
    assert drawn[:2] == drawn[2:]


def test_values_that_are_not_finite_end_only_their_picture(engine: Engine, decoder: Decoder, head: SmallHead) -> None:
    class Broken(TextPrompt):
        def embed(self, start: int, end: int) -> torch.Tensor:
            return super().embed(start, end) * math.nan

    expected = codes_of(draw(engine, decoder, some_ids(9)).result())
    engine.clear_cache()
    good = draw(engine, decoder, some_ids(9))
    bad = engine.submit(Broken(decoder, [*some_ids(8), START]), GenerationConfig(), DrawingRequest(HOT))
    again = draw(engine, decoder, some_ids(9))
    with pytest.raises(GenerationError, match="not finite in float32, at token 1"):
        bad.result()
    assert [codes_of(good.result()), codes_of(again.result())] == [expected, expected]
    assert all_is_free(engine)


def test_a_prompt_that_cannot_be_read_ends_only_its_picture(engine: Engine, decoder: Decoder) -> None:
    class Unreadable(TextPrompt):
        def embed(self, start: int, end: int) -> torch.Tensor:
            raise GenerationError("the prompt is gone")

    good = draw(engine, decoder, some_ids(9))
    bad = engine.submit(Unreadable(decoder, [*some_ids(9), START]), GenerationConfig(), DrawingRequest(HOT))
    with pytest.raises(GenerationError, match="is gone"):
        bad.result()
    assert len(codes_of(good.result())) == 6
    assert all_is_free(engine)


class Wrapped(torch.nn.Module):
    """A decoder that the engine does not know as one of its own: every request has a cache of its own."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder
        self.config = decoder.config
        self.embed = decoder.embed
        self.decode_step = decoder.decode_step
        self.new_cache = decoder.new_cache

    def forward(self, embeds: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return self.decoder(embeds, **arguments)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder.logits(hidden)


def script(monkeypatch: pytest.MonkeyPatch, decoder: Decoder, tokens: Sequence[int]) -> list[torch.Tensor]:
    """Let `decoder` say `tokens`; return the hidden states that it chose them from."""
    left, seen, logits = list(tokens), list[torch.Tensor](), decoder.logits

    def steered(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden[0].clone())
        scores = logits(hidden)
        scores[:, left.pop(0)] = 1e4
        return scores

    monkeypatch.setattr(decoder, "logits", steered)
    return seen


@pytest.mark.parametrize("is_native", [True, False], ids=["paged", "separate caches"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_model_draws_in_the_middle_of_its_answer(
    decoder: Decoder, tokenizer: Tokenizer, head: SmallHead, monkeypatch: pytest.MonkeyPatch, guidance: float,
    is_native: bool,
) -> None:  # fmt: skip
    config = HOT.model_copy(update={"guidance": guidance})
    engine = new_engine(decoder if is_native else Wrapped(decoder), tokenizer, head)
    tokens = [60, 61, START, 62, 63, START, VIDEO_START, 64, 65, 66]
    # The step after the first token that follows a prompt or a picture is launched before that token is known.
    seen = script(monkeypatch, decoder, [*tokens[:7], 300, *tokens[7:]])
    ids = some_ids(40)
    request = DrawingRequest(config, is_all=False)
    handle = engine.submit(TextPrompt(decoder, ids), GenerationConfig(max_new_tokens=len(tokens), seed=1), request)
    answer = handle.result()
    monkeypatch.undo()
    assert answer.token_ids == tokens
    assert answer.finish_reason == "length"
    kinds = [part if isinstance(part, str) else part.kind for part in answer.parts]
    texts = [tokenizer.decode(run) for run in ([60, 61, START], [62, 63, START], [64, 65, 66])]
    assert kinds == [texts[0], "image", texts[1], "image", tokenizer.decode([VIDEO_START]), "video", texts[2]]
    assert answer.text == "".join(part for part in answer.parts if isinstance(part, str))

    pictures = iter([part.codes for part in answer.parts if isinstance(part, Drawn)])
    context, hidden, number = decoder.embed(torch.tensor(ids)), list[torch.Tensor](), 0
    for token in tokens:
        hidden.append(decoder(context[None])[0, -1])
        context = torch.cat([context, decoder.embed(torch.tensor([token]))])
        if token in (START, VIDEO_START):
            codes = torch.tensor(next(pictures))
            expected = formula(decoder, head, context, config, number, "image" if token == START else "video")
            assert [tuple(one) for one in codes.tolist()] == expected
            context, number = torch.cat([context, head.embed(codes)]), number + 1
    del seen[7]
    torch.testing.assert_close(torch.stack(seen), torch.stack(hidden), rtol=1e-4, atol=1e-4)
    assert all_is_free(engine)


def test_a_text_that_overshoots_a_start_token_is_dropped(
    decoder: Decoder, tokenizer: Tokenizer, head: SmallHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU launches the next step before the token of the last is known."""
    engine = new_engine(decoder, tokenizer, head)
    script(monkeypatch, decoder, [60, START, 62])
    request = DrawingRequest(HOT, is_all=False)
    expected = engine.submit(TextPrompt(decoder, some_ids(9)), GenerationConfig(max_new_tokens=3), request).result()
    monkeypatch.undo()
    engine = new_engine(decoder, tokenizer, head)
    engine._use_runner().overlaps = True  # pyright: ignore[reportPrivateUsage]
    script(monkeypatch, decoder, [60, START, 300, 62])
    answer = engine.submit(TextPrompt(decoder, some_ids(9)), GenerationConfig(max_new_tokens=3), request).result()
    assert answer.token_ids == expected.token_ids == [60, START, 62]
    assert answer.parts == expected.parts
    assert all_is_free(engine)


def test_a_picture_that_does_not_fit_into_the_context_ends_the_answer(
    engine: Engine, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, decoder, [60, VIDEO_START])
    answer = engine.submit(TextPrompt(decoder, some_ids(500)), GenerationConfig(max_new_tokens=9)).result()
    assert (answer.token_ids, answer.finish_reason) == ([60, VIDEO_START], "length")
    assert all_is_free(engine)


def test_a_prompt_that_leaves_no_room_for_the_picture(engine: Engine, decoder: Decoder) -> None:
    with pytest.raises(PromptTooLongError, match="has 507 tokens and the image needs 6, but the context holds 512"):
        draw(engine, decoder, some_ids(506))
    assert len(codes_of(draw(engine, decoder, some_ids(505)).result())) == 6


def test_a_negative_prompt_that_leaves_no_room_for_the_picture(engine: Engine, decoder: Decoder) -> None:
    config = HOT.model_copy(update={"negative_prompt": "x" * 504})
    with pytest.raises(PromptTooLongError, match="The negative prompt has 508 tokens"):
        draw(engine, decoder, some_ids(5), config)


def test_guidance_without_a_second_row(decoder: Decoder, tokenizer: Tokenizer, head: SmallHead) -> None:
    engine = new_engine(decoder, tokenizer, head, rows=1)
    with pytest.raises(GenerationError, match=r"two rows for each image, but the engine has 1 .*guidance=1"):
        draw(engine, decoder, some_ids(5))
    assert len(codes_of(draw(engine, decoder, some_ids(5), HOT.model_copy(update={"guidance": 1.0})).result())) == 6


def test_a_cache_that_can_never_hold_the_picture(decoder: Decoder, tokenizer: Tokenizer, head: SmallHead) -> None:
    engine = new_engine(decoder, tokenizer, head, pages=3)
    with pytest.raises(GenerationError, match="needs a KV cache of 320 tokens, but there is memory for 192"):
        draw(engine, decoder, some_ids(200))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": -1}, "'guidance' must be 0 or more, got -1"),
        ({"guidance": math.nan}, "'guidance'"),
        ({"guidance": math.inf}, "'guidance'"),
        ({"guidance": 101}, "'guidance' .*100"),
        ({"guidance": "much"}, "'guidance' .*number.*'much'"),
        ({"temperature": -0.1}, "'temperature'"),
        ({"top_p": 0}, "'top_p'"),
        ({"top_p": 1.1}, "'top_p'"),
        ({"top_k": -1}, "'top_k'"),
        ({"top_k": 1.5}, "'top_k'"),
        ({"seed": -1}, "'seed'"),
        ({"seed": 2**63}, "'seed'"),
        ({"negative_prompt": 3}, "'negative_prompt'"),
        ({"cfg": 3}, "'cfg'.*guidance=3.0"),
        ({"guidance_scale": 3}, "guidance=3.0"),
        ({"num_images_per_prompt": 3}, "set with n"),
        ({"width": 512}, "the model's own"),
        ({"size": "512x512"}, "the model's own"),
        ({"gudance": 3}, "Did you mean 'guidance'"),
    ],
)
def test_settings_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        DrawingConfig.model_validate(changes)
