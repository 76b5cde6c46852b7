"""`complete_each`: prompts join as others end; and drafts with vila-tiny, in fp32 and in four bits."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vila_core as vila
from vila_core.checkpoint.embedded import embedded_model
from vila_core.conversation import Prompt
from vila_core.engine.completion import Completion
from vila_core.errors import GenerationError, VilaError
from vila_core.plugins.loader import load_plugins
from vila_quant.quantizing.options import QuantizationOptions
from vila_quant.quantizing.pipeline import quantize_model


@pytest.fixture(scope="module")
def model() -> vila.Vila:
    return vila.load("vila-tiny", device="cpu")


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    world, sources = load_plugins().datasets.get("drawn-world"), ("caption_things", "color", "count", "caption_chart")
    known = set(world.subsets())
    kept = [source for source in sources if source in known]
    return [world.sample("test", kept[i % len(kept)], i // len(kept)).prompt for i in range(6)]


def texts(outcomes: list[Completion | VilaError]) -> list[str]:
    return [one.text if isinstance(one, Completion) else f"{type(one).__name__}" for one in outcomes]


@pytest.mark.parametrize("at_once", [1, 3, 99])
def test_answers_come_in_order_and_are_those_of_a_batch(model: vila.Vila, prompts: list[Prompt], at_once: int) -> None:
    expected = model.generate_batch(prompts, max_new_tokens=12)
    assert texts(list(model.complete_each(prompts, at_once=at_once, max_new_tokens=12))) == expected
    assert model.engine.stats().pages_used == 0


def test_a_prompt_joins_as_soon_as_an_answer_ends(model: vila.Vila, prompts: list[Prompt]) -> None:
    most, taken = 0, 0

    def watched() -> Iterator[Prompt | None]:
        nonlocal most, taken
        for prompt in prompts:
            stats = model.engine.stats()
            most = max(most, stats.queued + stats.reading + stats.answering)
            taken += 1
            yield prompt
            yield None  # nothing is ready: the others are answered meanwhile

    outcomes = model.complete_each(watched(), at_once=3, max_new_tokens=12)
    assert taken == 0, "nothing is taken before an answer is asked for"
    first = next(outcomes)
    assert taken < len(prompts)
    assert texts([first, *outcomes]) == model.generate_batch(prompts, max_new_tokens=12)
    assert 2 <= most <= 3


def test_prompts_that_fail_leave_the_others(model: vila.Vila, prompts: list[Prompt]) -> None:
    mixed: list[Any] = [prompts[0], [], ["word " * 3000], prompts[1], [vila.Image("missing.png")], prompts[2], None]
    outcomes = list(model.complete_each(mixed, at_once=2, max_new_tokens=8))
    answers = model.generate_batch(prompts[:3], max_new_tokens=8)
    kinds = texts(outcomes)
    assert [kinds[0], kinds[3], kinds[5]] == answers
    assert [isinstance(one, VilaError) for one in outcomes] == [False, True, True, False, True, False]
    assert model.engine.stats().pages_used == 0


@pytest.mark.parametrize("prompts", [[], [None], [None, None]])
def test_no_prompts(model: vila.Vila, prompts: list[None]) -> None:
    assert list(model.complete_each(prompts)) == []


def test_settings_are_checked_at_once(model: vila.Vila) -> None:
    with pytest.raises(GenerationError, match="'top_p'"):
        model.complete_each([], top_p=3.0)


def test_an_abandoned_iterator_cancels_what_runs(model: vila.Vila, prompts: list[Prompt]) -> None:
    outcomes = model.complete_each(prompts, at_once=5, max_new_tokens=60)
    next(outcomes)
    outcomes.close()  # pyright: ignore[reportAttributeAccessIssue]
    stats = model.engine.stats()
    assert (stats.queued, stats.reading, stats.answering, stats.pages_used) == (0, 0, 0, 0)


def test_a_source_of_prompts_that_breaks(model: vila.Vila, prompts: list[Prompt]) -> None:
    def broken() -> Iterator[Prompt]:
        yield from prompts[:4]
        raise OSError("The disk is gone.")

    with pytest.raises(OSError, match="gone"):
        list(model.complete_each(broken(), at_once=3, max_new_tokens=60))
    assert model.engine.stats().pages_used == 0


def test_two_threads_at_once(model: vila.Vila, prompts: list[Prompt]) -> None:
    expected, found = model.generate_batch(prompts, max_new_tokens=12), {}

    def work(number: int) -> None:
        found[number] = texts(list(model.complete_each(prompts, at_once=2 + number, max_new_tokens=12)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: expected, 1: expected}


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> vila.Vila:
    out: Path = tmp_path_factory.mktemp("w4") / "out"
    options = QuantizationOptions.model_validate({"search": "nearest", "sequences": 1, "sequence_length": 64})
    quantize_model(embedded_model(), out, options, device="cpu")
    return vila.load(out, device="cpu")


@pytest.mark.parametrize("bits", [32, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "sampled"])
def test_drafts_leave_the_answers_as_they_are(
    model: vila.Vila, prompts: list[Prompt], settings: dict[str, Any], bits: int, request: pytest.FixtureRequest
) -> None:
    """The last turn asks for the description again, so that much of it is copied."""
    one: vila.Vila = model if bits == 32 else request.getfixturevalue("four_bits")
    settings = {"max_new_tokens": 16, **settings}
    copied: list[Prompt] = []
    for prompt in prompts[:4]:
        assert isinstance(prompt, list)
        parts: list[Any] = list(prompt)
        answer = one.generate(prompt, **settings)
        question = [part for part in parts if isinstance(part, str)]
        copied.append(
            [vila.Message("user", parts), vila.Message("assistant", [answer]), vila.Message("user", question)]
        )
    asked = [*prompts[:4], *copied]
    expected = one.complete_batch(asked, **settings)
    drafted = one.complete_batch(asked, prompt_lookup_num_tokens=10, **settings)
    assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in expected]
    assert sum(answer.usage.drafted_tokens for answer in drafted) > 0
    assert sum(answer.usage.drafted_tokens for answer in expected) == 0
