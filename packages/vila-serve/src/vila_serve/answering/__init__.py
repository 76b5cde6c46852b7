"""Answers from the engine: the seam between the API and the model.

    answering.py      the API's side: ask, cancel, and read answers that grow
    answer.py         an answer that grows
    messages.py       what the two sides say to each other
    facts.py          what the API's side knows about the model
    parts.py          text and pictures of an answer
    engine_side.py    the engine's side: prepares prompts in threads, steps the engine in one thread
    engine_answer.py  an answer on that side
    local.py          both sides in one process, for tests and notebooks
    process.py        the engine's side in a process of its own, for the server
    worker.py         the program of that process
    channel.py        messages between processes

The API's side imports no torch.
"""

from typing import TYPE_CHECKING

from vila_core.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vila_serve.answering.answer import Delta, Ending, ReadyPrompt, RunningAnswer, merged, picture_tokens
    from vila_serve.answering.answering import Answering
    from vila_serve.answering.messages import EngineStoppedError, ModelFacts, Picture

__all__ = [
    "Answering",
    "Delta",
    "Ending",
    "EngineStoppedError",
    "ModelFacts",
    "Picture",
    "ReadyPrompt",
    "RunningAnswer",
    "merged",
    "picture_tokens",
]

__getattr__ = lazy_attributes(
    "vila_serve.answering",
    {
        "Answering": "answering",
        "Delta": "answer",
        "Ending": "messages",
        "EngineStoppedError": "messages",
        "ModelFacts": "messages",
        "Picture": "messages",
        "ReadyPrompt": "messages",
        "RunningAnswer": "answer",
        "merged": "answer",
        "picture_tokens": "answer",
    },
)
