"""The keyword arguments of `generate` and related methods, and names that other libraries use for them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from vila_core.display.signatures import named_settings
from vila_core.errors import GenerationError, shown, unknown_name, validation_problems

if TYPE_CHECKING:
    from pydantic import ValidationError

Function = TypeVar("Function", bound=Callable[..., Any])


class GenerationSettings(TypedDict, total=False):
    """The keyword arguments of `generate` and related methods: the fields of `GenerationConfig`.

    Attributes:
        max_new_tokens: the longest answer, in tokens (default 512).
        temperature: 0 (default) always takes the likeliest token; higher values give more varied answers.
        top_k: sample among the k likeliest tokens only; 0 (default) is off.
        top_p: sample among the likeliest tokens that together have this probability; 1 (default) is off.
        repetition_penalty: above 1 makes tokens of the answer so far less likely; 1 (default) is off.
        presence_penalty: -2 to 2; is subtracted from the scores of tokens in the answer so far; 0 (default) is off.
        frequency_penalty: -2 to 2; the same for each time that a token is there.
        logit_bias: token id -> -100 to 100, added to its score; -100 bans the token, 100 forces it.
        seed: makes sampling repeatable, alone or in a batch.
        prompt_lookup_num_tokens: draft so many tokens at once from the prompt and the answer so far, for answers that
            repeat much of them; the answer stays the same. 0 (default) is off, 10 is common.
        max_matching_ngram_size: with it, how many tokens are looked up at most (default 3).
        stop: one or more texts; the answer ends before the first of them.
        stop_token_ids: token ids that end the answer, besides the model's own.
        logprobs: keep the log-probability of each token (`Completion.logprobs`).
        top_logprobs: with logprobs, also those of so many likeliest tokens, at most 20.
        json_mode: the answer is a JSON object or array.
        json_schema: the answer is JSON that follows this schema: a dict, JSON text, or a pydantic class.
    """

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    prompt_lookup_num_tokens: int
    max_matching_ngram_size: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    logprobs: bool
    top_logprobs: int
    json_mode: bool
    json_schema: str | dict[str, Any] | type[Any] | None


_DEFAULTS: Mapping[str, object] = {
    "max_new_tokens": 512,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "seed": None,
    "prompt_lookup_num_tokens": 0,
    "max_matching_ngram_size": 3,
    "stop": (),
    "stop_token_ids": (),
    "logprobs": False,
    "top_logprobs": 0,
    "json_mode": False,
    "json_schema": None,
}
"""Those of `GenerationConfig`, whose fields are not complete before its first use."""

takes_generation_settings = named_settings(GenerationSettings, _DEFAULTS)

_LENGTH = "The longest answer is set with max_new_tokens."
_BEAMS = "Beam search is not available; answers are greedy, or sampled with temperature, top_k, top_p and seed."
OTHER_NAMES: Mapping[str, str] = {
    "do_sample": "Sampling is on when temperature is above 0, such as temperature=0.7; the default 0 is greedy.",
    **dict.fromkeys(("max_length", "max_tokens", "max_completion_tokens", "max_gen_len", "max_output_tokens"), _LENGTH),
    **dict.fromkeys(("num_beams", "best_of", "length_penalty", "early_stopping", "use_beam_search"), _BEAMS),
    **dict.fromkeys(
        ("generation_config", "sampling_params"), "Give the settings by name: generate(…, temperature=0.7)."
    ),
    **dict.fromkeys(
        ("stop_sequences", "stop_strings", "stop_str", "stopping_criteria", "eos_string"),
        "The texts that end an answer are set with stop, such as stop=['\\n'].",
    ),
    "eos_token_id": "Token ids that end an answer are set with stop_token_ids.",
    **dict.fromkeys(
        ("prompt_lookup_tokens", "num_speculative_tokens", "speculative_config", "prompt_lookup_max", "ngram"),
        "Speculative decoding by prompt lookup is set with prompt_lookup_num_tokens, such as 10.",
    ),
    **dict.fromkeys(
        ("assistant_model", "draft_model", "num_assistant_tokens", "speculative_model"),
        "Draft models are not supported; prompt_lookup_num_tokens drafts from the prompt.",
    ),
    "random_seed": "The seed is set with seed.",
    "no_repeat_ngram_size": "Repetition is reduced with repetition_penalty, presence_penalty or frequency_penalty.",
    **dict.fromkeys(
        ("bad_words_ids", "suppress_tokens", "sequence_bias"), "Tokens are banned with logit_bias={id: -100}."
    ),
    **dict.fromkeys(
        ("response_format", "guided_json", "schema"), "Structured answers are set with json_schema, or json_mode=True."
    ),
    **dict.fromkeys(("n", "num_return_sequences"), "For several answers, call generate with several seeds."),
    **dict.fromkeys(("stream", "streamer"), "Use model.stream(prompt), which yields the answer piece by piece."),
    **dict.fromkeys(
        ("images", "image", "videos", "video", "media", "input_ids", "pixel_values", "media_config"),
        "Images and videos are part of the prompt: generate([vila_core.Image('cat.png'), 'What is it?']).",
    ),
    **dict.fromkeys(
        ("conv_mode", "chat_template", "system_prompt"),
        "The template is chosen when the model is loaded: vila_core.load(…, chat_template='vicuna_v1'); "
        "a system prompt is a Message('system', …).",
    ),
    **dict.fromkeys(
        ("num_video_frames", "max_tiles", "video_max_tiles", "fps"),
        "Preprocessing is set when the model is loaded, such as vila_core.load(…, num_video_frames=16, max_tiles=6); "
        "for one video, vila_core.Video(source, frames=16).",
    ),
}
"""Names of other libraries -> what to use instead."""


def as_generation_error(
    error: "ValidationError", kind: str, known: Iterable[str], others: Mapping[str, str]
) -> GenerationError:
    """Return an error with a sentence for each wrong setting, with the given and the expected value.

    Args:
        error: of pydantic.
        kind: what the settings are of, such as "generation".
        known: names of all settings.
        others: names of other libraries -> what to use instead.
    """
    sentences: list[str] = []
    for problem in validation_problems(error):
        name = f"{kind.capitalize()} setting '{problem.path}'"
        if problem.kind == "extra_forbidden":
            sentences.append(unknown_name(f"{kind} setting", problem.path, known, others))
        elif problem.kind == "value_error":
            sentences.append(f"{name} is {shown(problem.value)}: {problem.message}.")
        else:
            sentences.append(f"{name} {problem.message}, got {shown(problem.value)}.")
    return GenerationError("\n".join(sentences))
