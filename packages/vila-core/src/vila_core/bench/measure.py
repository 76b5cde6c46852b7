"""Decoding, prefill and the first token of a loaded model, measured through the calls that users make."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import PIL.Image

from vila_core.bench.limits import Limits
from vila_core.bench.work import Work
from vila_core.engine.completion import Completion
from vila_core.runtime import Vila

DECODED = 128
"""Most tokens of an answer that is timed."""
PREFILLED = 512
"""Most tokens of a prompt whose prefill is timed."""
SECONDS = 2.0
"""About how long one answer or prefill may take: a slow machine decodes and reads fewer tokens."""
REPEATS = 3
PICTURE = 448
"""Width and height of the picture, in pixels."""


@dataclass(frozen=True)
class Measurement:
    """One quantity.

    Attributes:
        name: "decode", "prefill" or "first token".
        value: tokens per second, or seconds to the first token.
        limit: the same if only the limits of the hardware counted.
        tokens: of the prompt, media included.
        answer_tokens: that were decoded.
    """

    name: str
    value: float
    limit: float
    tokens: int
    answer_tokens: int

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.name != "first token"

    @property
    def of_limit(self) -> float:
        """Which part of the limit was reached."""
        return self.value / self.limit if self.is_rate else self.limit / self.value


def measure(
    model: Vila, work: Work, limits: Limits, *, context: int, on_phase: Callable[[str], None] = lambda phase: None
) -> list[Measurement]:
    """Return the rate of decoding after `context` tokens, the time to the first token of a prompt with one image, and
    the rate of prefill, all with one sequence.

    Raises:
        PromptError: `context` does not fit into the model's.
    """
    model.stop_token_ids = frozenset()  # random weights, or a model that has nothing to say, would stop at once
    on_phase("Warming up")
    model.complete(_text(0, 8), max_new_tokens=2)
    first = model.complete(_text(0, 8), max_new_tokens=8)
    on_phase("Decoding")
    per_token = first.timings.decode / max(first.usage.completion_tokens - 1, 1)
    decoded = _affordable(per_token, DECODED, model.config.language_model.max_length - context - 1)
    answers = [model.complete(_text(number, context), max_new_tokens=decoded) for number in range(REPEATS)]
    decode = _median(answers, lambda one: (one.usage.completion_tokens - 1) / one.timings.decode)
    on_phase("First token of a prompt with an image")
    image = _first_token(model, work, limits)
    on_phase("Prefill")
    prefill = _prefill(model, work, limits)
    tokens = answers[0].usage.prompt_tokens
    middle = tokens + answers[0].usage.completion_tokens // 2
    limit = 1 / work.step_seconds(middle, limits)
    return [Measurement("decode", decode, limit, tokens, answers[0].usage.completion_tokens), image, prefill]


def _first_token(model: Vila, work: Work, limits: Limits) -> Measurement:
    times: list[float] = []
    answers: list[Completion] = []
    for number in range(REPEATS + 1):
        prompt = _picture_prompt(number)
        start = time.perf_counter()
        answers.append(model.complete(prompt, max_new_tokens=1))
        times.append(time.perf_counter() - start)
    tiles = sum(len(medium.tiles) for medium in model.prepare(_picture_prompt(0)).media)
    usage = answers[-1].usage
    limit = work.image_seconds(tiles, usage.media_tokens, usage.prompt_tokens, limits)
    return Measurement("first token", statistics.median(times[1:]), limit, usage.prompt_tokens, 1)


def _picture_prompt(number: int) -> list[PIL.Image.Image | str]:
    """Return another picture and text for each number: a model may remember the last ones."""
    picture = PIL.Image.radial_gradient("L").rotate(10 * number + 5).resize((PICTURE, PICTURE))
    return [picture.convert("RGB"), f"{number}: What is in the picture?"]


def _prefill(model: Vila, work: Work, limits: Limits) -> Measurement:
    short = model.complete(_text(9, 32), max_new_tokens=1)
    per_token = short.timings.prefill / short.usage.prompt_tokens
    tokens = _affordable(per_token, PREFILLED, model.config.language_model.max_length - 2)
    answers = [model.complete(_text(number, tokens), max_new_tokens=1) for number in range(REPEATS)]
    rate = _median(answers, lambda one: one.usage.prompt_tokens / one.timings.prefill)
    count = answers[0].usage.prompt_tokens
    return Measurement("prefill", rate, count / work.prefill_seconds(count, limits), count, 1)


def _affordable(seconds: float, most: int, room: int) -> int:
    return max(min(most, room, int(SECONDS / max(seconds, 1e-9))), min(8, room))


def _text(number: int, tokens: int) -> str:
    """Return a text of about `tokens` tokens, which begins with `number`: prompts that begin alike may share work."""
    return f"{number} " + "a " * max(tokens - 20, 1)


def _median(answers: list[Completion], value: Callable[[Completion], float]) -> float:
    return statistics.median(value(answer) for answer in answers)
