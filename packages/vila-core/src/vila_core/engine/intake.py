"""Turns a prompt and its settings into a request, or raises an error if the engine can never answer it."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from vila_core.engine.answer import Answer
from vila_core.engine.drawing import DrawingRequest
from vila_core.engine.failures import check_biases, check_capacity, check_drafting, check_drawing, room
from vila_core.engine.inputs import EngineInput
from vila_core.engine.limits import EngineConfig
from vila_core.engine.lookup import PromptLookup
from vila_core.engine.pictures import Pictures
from vila_core.engine.prefix import keys_of
from vila_core.engine.request import Request
from vila_core.engine.sampling import GenerationConfig
from vila_core.language import LanguageModel
from vila_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vila_core.engine.grammar import Grammar
    from vila_core.engine.runner import Runner


class Intake:
    """Makes requests.

    Args:
        llm: the language model.
        tokenizer: turns tokens into text.
        stop_token_ids: tokens that end every answer.
        config: of the engine.
        pictures: begins pictures; None if the model only writes.
        use_runner: returns what will compute the requests.
    """

    def __init__(
        self,
        llm: LanguageModel,
        tokenizer: Tokenizer,
        stop_token_ids: frozenset[int],
        config: EngineConfig,
        pictures: Pictures | None,
        use_runner: "Callable[[], Runner]",
    ):
        self._llm = llm
        self._tokenizer = tokenizer
        self._stop_token_ids = stop_token_ids
        self._config = config
        self._pictures = pictures
        self._use_runner = use_runner

    def request(self, prompt: EngineInput, config: GenerationConfig, drawing: DrawingRequest | None) -> Request:
        """Return a request without a number.

        Args:
            prompt: what the model reads. If it ends with a start token, the answer begins with a picture.
            config: how to answer.
            drawing: how to draw.

        Raises:
            PromptError, GenerationError: see `Engine.submit`.
        """
        check_biases(config, self._llm.config.vocab_size)
        stops = self._stop_token_ids | frozenset(config.stop_token_ids)
        most = room(len(prompt), self._llm.config.max_length)
        answer = Answer(config, self._tokenizer, stops, min(config.max_new_tokens, most))
        runner = self._use_runner()
        keys = keys_of(prompt, runner, self._config)
        seed = random.getrandbits(62) if config.seed is None else config.seed
        request = Request(0, prompt, config, answer, self._grammar(config, stops), keys, seed, asked_drawing=drawing)
        kind = None if self._pictures is None else self._pictures.kind_after(prompt.ids)
        if self._pictures is None or kind is None:
            check_capacity(runner, len(prompt), answer.max_new_tokens)
        else:
            self._pictures.begin(runner, request, kind)
            check_drawing(runner, request, self._llm.config.max_length, self._config.max_batch)
        request.lookup = PromptLookup.of(prompt, config, stops)
        if request.lookup is not None:
            check_drafting(runner, self._llm)
        return request

    def _grammar(self, config: GenerationConfig, stops: frozenset[int]) -> "Grammar | None":
        if not config.json_mode and config.json_schema is None:
            return None
        from vila_core.engine.grammar import Grammar  # imported here because xgrammar is slow to import

        return Grammar.for_answer(config, self._tokenizer, self._llm.config.vocab_size, stops)
