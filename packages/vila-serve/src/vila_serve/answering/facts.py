"""The facts about the model that the engine's side sends to the API's side."""

from collections.abc import Sequence

from vila_core import Vila
from vila_serve.answering.messages import ModelFacts, PictureFacts


def facts_of(model: Vila, max_context: int) -> ModelFacts:
    """Return the facts. Models that draw decode a picture for that, so that the first client finds the decoder warm."""
    tokenizer = model.tokenizer.hf
    tokens: Sequence[str | None] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    pictures = {
        kind: PictureFacts(model.preview_picture(kind, ()).size, positions_of(model, kind), token)
        for kind, token in model.drawn_kinds.items()
    }
    return ModelFacts(model.name, model.config, model.template, tuple(tokens), max_context, pictures)


def positions_of(model: Vila, kind: str) -> int:
    """Return how many positions a picture of this kind has."""
    head = model.network.generation_head
    assert head is not None, "the model draws"
    return head.kinds[kind].positions
