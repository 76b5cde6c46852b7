"""Completions from what the engine generates, for one prompt or many at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vila_core.encoders import ExpandedPrompt
from vila_core.engine.answer import Generated
from vila_core.engine.completion import Completion, OutputPart, Timings, Usage
from vila_core.engine.request import Handle
from vila_core.errors import VilaError
from vila_core.prompt import PreparedPrompt

PromptT = TypeVar("PromptT")


def completion_of(
    prompt: PreparedPrompt, expanded: ExpandedPrompt, answer: Generated, parts: Sequence[OutputPart]
) -> Completion:
    """Return the completion of a prompt; `parts` are the texts and pictures of the answer."""
    return Completion(
        parts=tuple(parts),
        token_ids=answer.token_ids,
        finish_reason=answer.finish_reason,
        usage=Usage(
            prompt_tokens=len(expanded.ids),
            media_tokens=sum(expanded.media_lengths),
            completion_tokens=len(answer.token_ids),
            cached_tokens=answer.cached_tokens,
            drafted_tokens=answer.drafted_tokens,
            accepted_tokens=answer.accepted_tokens,
        ),
        timings=Timings(prompt.seconds, answer.encode_seconds, answer.prefill_seconds, answer.decode_seconds),
        logprobs=answer.logprobs or None,
    )


@dataclass(frozen=True)
class RunningPrompt:
    """A prompt that is being answered.

    Attributes:
        handle: of the engine.
        wait: waits for the answer and returns it, or raises a `VilaError`.
    """

    handle: Handle
    wait: Callable[[], Completion]


def answer_each(
    prompts: Iterable[PromptT | None],
    at_once: int,
    start: Callable[[PromptT], RunningPrompt],
    step: Callable[[], object],
) -> Iterator[Completion | VilaError]:
    """Yield the completion of each prompt in order, or its error. As soon as an answer ends, another prompt joins.

    Args:
        prompts: taken from the iterable as they are needed. None stands for "none is ready yet"; the others are
            answered meanwhile.
        at_once: how many are answered at the same time.
        start: puts a prompt into the engine's queue, or raises a `VilaError`.
        step: lets all answers advance.
    """
    running: deque[RunningPrompt | VilaError] = deque()
    try:
        for prompt in prompts:
            if prompt is not None:
                while sum(not _has_ended(one) for one in running) >= at_once:
                    step()
                running.append(_started(start, prompt))
            elif not all(_has_ended(one) for one in running):
                step()
            while running and _has_ended(running[0]):
                yield _finished(running.popleft())
        while running:
            yield _finished(running.popleft())
    finally:
        for one in running:
            if isinstance(one, RunningPrompt):
                one.handle.cancel()


def _started(start: Callable[[PromptT], RunningPrompt], prompt: PromptT) -> RunningPrompt | VilaError:
    try:
        return start(prompt)
    except VilaError as error:
        return error


def _finished(running: RunningPrompt | VilaError) -> Completion | VilaError:
    if isinstance(running, VilaError):
        return running
    try:
        return running.wait()
    except VilaError as error:
        return error


def _has_ended(running: RunningPrompt | VilaError) -> bool:
    return isinstance(running, VilaError) or running.handle.has_ended
