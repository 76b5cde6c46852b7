"""An answer that the engine computes, and what it has gained since it was last asked."""

from dataclasses import dataclass

from vila_core.engine.answer import Generated
from vila_core.engine.completion import Timings, Usage
from vila_core.engine.failures import as_error
from vila_core.engine.request import Handle
from vila_serve.answering.messages import Ending, News, Picture, ReadyPrompt
from vila_serve.answering.parts import AnswerParts


@dataclass
class EngineAnswer:
    """An answer that the engine computes.

    Attributes:
        number: its name in messages.
        prompt: what it answers.
        handle: its request in the engine.
        parts: makes texts and pictures of what the engine gives.
        is_announced: whether the API's side knows of it, so that its tokens may follow.
        has_begun: whether the API's side knows that it has a token.
        last_delivery: when a part of it was passed on, as `time.perf_counter`; 0 before the first.
        is_unwanted: whether it is to end.
    """

    number: int
    prompt: ReadyPrompt
    handle: Handle
    parts: AnswerParts
    is_announced: bool = False
    has_begun: bool = False
    last_delivery: float = 0.0
    is_unwanted: bool = False

    def take_news(self, now: float, due: float) -> News | None:
        """Return what it has gained; None if nothing is to be passed on yet.

        Args:
            now: the time, as `time.perf_counter`.
            due: unless it has ended, an answer with a later delivery waits.
        """
        if self.is_unwanted:
            self.handle.cancel()
        has_ended = self.handle.has_ended  # before the pieces are taken: those of the last step come first
        if self.last_delivery > due and not has_ended:
            return None
        pieces = self.handle.take()
        logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
        try:
            parts = self.parts.push(pieces)
            outcome = self._outcome() if has_ended else None
        except Exception as error:  # noqa: BLE001 - of decoding a picture; it ends only this answer
            self.handle.cancel()
            parts, outcome = list[str | Picture](), as_error(error)
        begins = bool(pieces) and not self.has_begun
        if not (parts or logprobs or begins) and outcome is None:
            return None
        self.has_begun = True
        if parts:
            self.last_delivery = now
        return self.number, parts, logprobs, outcome

    def _outcome(self) -> Ending | Exception:
        """Return how it ended, or the error that ended it."""
        try:
            generated: Generated = self.handle.result()
        except Exception as error:  # noqa: BLE001 - raised where the answer is read
            return error
        prompt = self.prompt
        usage = Usage(prompt.prompt_tokens, prompt.media_tokens, len(generated.token_ids), generated.cached_tokens)
        timings = Timings(prompt.seconds, generated.encode_seconds, generated.prefill_seconds, generated.decode_seconds)
        return Ending(generated.finish_reason, usage, timings, generated.queue_seconds, self.parts.picture_tokens)
