"""Checks whether a request can be answered, and the errors that say why it cannot."""

import torch

from vila_core.device_memory import is_out_of_memory
from vila_core.engine.request import Request
from vila_core.engine.runner import Runner
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError, PromptError, PromptTooLongError
from vila_core.language import LanguageModel
from vila_core.language.divided import NativeDecoder
from vila_core.language.page_size import PAGE_SIZE


def check_capacity(runner: Runner, prompt: int, answer: int) -> None:
    """Raise `GenerationError` if the KV cache can never hold the request."""
    held = runner.pool.num_pages * PAGE_SIZE
    if runner.pages_for(prompt + answer) > runner.pool.num_pages:
        raise GenerationError(
            f"The request needs a KV cache of {prompt + answer:,} tokens ({prompt:,} of the prompt and up to "
            f"{answer:,} of the answer), but there is memory for {held:,}. Reduce max_new_tokens or the prompt, or "
            "give the engine more memory (cache_bytes)."
        )


def check_drawing(runner: Runner, request: Request, max_length: int, max_rows: int) -> None:
    """Raise if a request can never draw its picture: `PromptTooLongError` or `GenerationError`."""
    assert request.drawing is not None
    kind, positions = request.drawing.kind, request.drawing.output.positions
    longest = max(request.sequences, key=lambda one: len(one.prompt))
    if len(longest.prompt) + positions > max_length:
        name = "prompt" if longest is request.sequences[0] else "negative prompt"
        raise PromptTooLongError(
            f"The {name} has {len(longest.prompt):,} tokens and the {kind} needs {positions:,}, but the context holds "
            f"{max_length:,}. Shorten the {name}."
        )
    if len(request.sequences) > max_rows:
        raise GenerationError(
            f"Guidance needs two rows for each {kind}, but the engine has {max_rows} (max_batch). Set guidance=1, or "
            "give the engine a larger max_batch."
        )
    pages = sum(runner.pages_for(len(one.prompt) + positions) for one in request.sequences)
    if pages > runner.pool.num_pages:
        raise GenerationError(
            f"The {kind} needs a KV cache of {pages * PAGE_SIZE:,} tokens, but there is memory for "
            f"{runner.pool.num_pages * PAGE_SIZE:,}. Give the engine more memory (cache_bytes), or set guidance=1, "
            "which needs half."
        )


def check_biases(config: GenerationConfig, vocab_size: int) -> None:
    """Raise `GenerationError` if `logit_bias` names a token that the model does not have."""
    unknown = [token_id for token_id in config.logit_bias if token_id >= vocab_size]
    if unknown:
        raise GenerationError(
            f"Generation setting 'logit_bias' names token {unknown[0]}, but the vocabulary has {vocab_size:,} tokens "
            f"(0 to {vocab_size - 1})."
        )


def check_drafting(runner: Runner, llm: LanguageModel) -> None:
    """Raise `GenerationError` if drafts cannot be checked with this model."""
    if runner.checks_drafts:
        return
    kind = "with dynamic rotary scaling" if isinstance(llm, NativeDecoder) else f"of type {type(llm).__name__}"
    raise GenerationError(
        f"prompt_lookup_num_tokens is not available for a language model {kind}: it reads new tokens one by one. Leave "
        "the setting out."
    )


def room(prompt_length: int, max_length: int) -> int:
    """Return how many tokens may follow a prompt (at least one)."""
    if prompt_length == 0:
        raise PromptError("The prompt is empty: expected at least one token.")
    if prompt_length >= max_length:
        raise PromptTooLongError(
            f"The prompt has {prompt_length} tokens, media included, but the context holds {max_length}. This leaves "
            "no room for an answer. Use fewer tiles, fewer video frames or less text."
        )
    return max_length - prompt_length


def as_error(error: Exception) -> Exception:
    """Return what the user sees of an error that ended a request."""
    if is_out_of_memory(error):
        return GenerationError(
            "There is too little memory for this request. Use fewer tiles, fewer video frames, a shorter prompt, or a "
            "smaller batch."
        )
    return error


def not_finite(dtype: torch.dtype, position: int) -> GenerationError:
    """Return the error of a row that has no usable logits for token `position` (from 1) of its answer."""
    name = str(dtype).removeprefix("torch.")
    others = [other for other in ("bfloat16", "float32") if other != name]
    advice = (
        "Its weights are damaged: download the checkpoint again."
        if name == "float32"
        else f"Its weights are too large for this dtype, or damaged: load it in {' or '.join(others)} (--dtype), or "
        "download the checkpoint again."
    )
    return GenerationError(
        f"The model computes values that are not finite in {name}, at token {position} of the answer. {advice}"
    )
