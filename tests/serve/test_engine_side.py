"""What the engine's side passes on, and in which order."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.running_server import wait_until

import vila_serve.answering.engine_side as engine_side
from vila_core import Message, Vila
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError
from vila_serve.answering.engine_side import EngineSide
from vila_serve.answering.messages import Ask, Cancel, FromEngine, Reply, Step

Start = Callable[[Callable[[FromEngine], None]], EngineSide]


@pytest.fixture
def start(model: Vila) -> Iterator[Start]:
    """Make a side that sends messages so. Its engine steps when the test says so, since `run` is not called."""
    sides: list[EngineSide] = []

    def make(send: Callable[[FromEngine], None]) -> EngineSide:
        sides.append(EngineSide(model, None, send))
        return sides[-1]

    yield make
    for side in sides:
        for answer in side._answers.values():
            answer.handle.cancel()
        side.stop()


def ask(number: int, **settings: Any) -> Ask:
    config = GenerationConfig(max_new_tokens=30, **settings)
    return Ask(number, None, [Message("user", "Tell me a long story.")], (), [config], [number])


def advance(side: EngineSide) -> None:
    side._engine.step()
    side._deliver()


def test_the_beginning_of_an_answer_comes_before_what_others_have_gained(start: Start, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_side, "SECONDS_PER_EVENT", 0.0)  # all have news in each step
    sent: list[FromEngine] = []
    side = start(sent.append)
    steps: list[list[int]] = []
    endless = dict.fromkeys(side.model.stop_token_ids, -100.0)
    for number in (1, 2, 3):
        side.handle(ask(number, logit_bias=endless))
        wait_until(lambda number=number: any(isinstance(one, Reply) and one.number == number for one in sent))
        for _ in range(4):
            sent.clear()
            advance(side)
            steps += [[news[0] for news in one.news] for one in sent if isinstance(one, Step)]
    beginnings = [next(numbers for numbers in steps if new in numbers) for new in (2, 3)]
    assert [numbers[0] for numbers in beginnings] == [2, 3]
    assert [sorted(numbers) for numbers in beginnings] == [[1, 2], [1, 2, 3]]


def test_no_token_comes_before_the_reply(start: Start):
    sent: list[FromEngine] = []

    def send(message: FromEngine) -> None:
        if isinstance(message, Reply):
            for _ in range(3):
                advance(side)
        sent.append(message)

    side = start(send)
    side.handle(ask(1))
    wait_until(lambda: bool(sent))
    advance(side)
    reply, step = sent
    assert isinstance(reply, Reply)
    assert isinstance(step, Step)
    assert step.news[0][1], "the tokens that were there before the reply follow it"


def test_an_answer_may_be_cancelled_as_soon_as_it_is_known(start: Start):
    sent: list[FromEngine] = []

    def send(message: FromEngine) -> None:
        if isinstance(message, Reply):
            side.handle(Cancel([1]))
        sent.append(message)

    side = start(send)
    side.handle(ask(1))
    wait_until(lambda: bool(sent))
    advance(side)
    (_, step) = sent
    assert isinstance(step, Step)
    assert isinstance(step.news[0][3], GenerationError)
    assert not side._answers
