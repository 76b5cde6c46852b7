"""Starts image generation for a request: its kind, settings and guidance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core.engine.answer import Answer
from vila_core.engine.drawing import Drawing, OutputModes
from vila_core.engine.inputs import TextPrompt
from vila_core.engine.prefix import keys_of
from vila_core.engine.request import Request
from vila_core.language import LanguageModel
from vila_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vila_core.engine.limits import EngineConfig
    from vila_core.engine.runner import Runner


class Pictures:
    """Starts image generation for the requests of a model.

    Args:
        modes: what the model can make.
        llm: the language model.
        tokenizer: of the model.
        config: of the engine.
    """

    def __init__(self, modes: OutputModes, llm: LanguageModel, tokenizer: Tokenizer, config: "EngineConfig"):
        self._modes = modes
        self._llm = llm
        self._tokenizer = tokenizer
        self._config = config

    def kind_after(self, ids: Sequence[int] | None) -> str | None:
        """Return what is drawn after these tokens; None if text follows."""
        return self._modes.kind_after(ids)

    def fits(self, request: Request, kind: str) -> bool:
        """Whether the context has room for a picture of this kind after the answer so far."""
        return request.num_tokens + self._modes.head.kinds[kind].positions < self._llm.config.max_length

    def begin(self, runner: "Runner", request: Request, kind: str) -> None:
        """Let a request draw next. Under guidance it gets a companion."""
        asked = request.asked_drawing
        config = self._modes.config if asked is None else asked.config
        number = request.num_drawings + (0 if asked is None else asked.number)
        seed = request.seed if config.seed is None else config.seed
        is_all = asked is not None and asked.is_all
        request.drawing = Drawing.begin(self._modes, kind, config, seed, number=number, is_all=is_all)
        request.num_drawings += 1
        if not config.is_guided:
            return
        prompt = TextPrompt(self._llm, self._modes.empty_prompt(kind, config.negative_prompt))
        answer = Answer(request.config, self._tokenizer, frozenset(), 1)
        request.companion = Request(
            request.number,
            prompt,
            request.config,
            answer,
            grammar=None,
            keys=keys_of(prompt, runner, self._config),
            seed=request.seed,
            leader=request,
        )
