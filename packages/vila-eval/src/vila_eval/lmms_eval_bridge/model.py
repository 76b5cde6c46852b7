"""A model of lmms-eval that answers with `vila_core`."""
# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
# lmms-eval is not a dependency: it is installed whenever it imports this module.

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from rich.progress import Progress

import vila_core
from vila_core.errors import BatchGenerationError, ConfigError, GenerationError, MediaError, VilaError, warn
from vila_core.runtime import GenerationSettings

FEW_SHOT_DELIMITER = "\n\n"
"""lmms-eval's default stop text for tasks without one.

As in lmms-eval's own adapters, it does not cut answers at paragraphs.
"""

IGNORED = ("do_sample", "until", "num_beams", "image_aspect_ratio")
"""Generation arguments that are handled elsewhere, or that concern other models."""

Messages = Sequence[Mapping[str, Any]]


class VilaKit(lmms):
    """The model behind `--model vila_kit`. The arguments are those of `--model_args`.

    Args:
        pretrained: folder or hub id; None is the embedded model, vila-tiny.
        batch_size: prompts answered together. It changes the speed, not the answers.
        device: "auto", "cpu", "cuda" or "cuda:1"; under `accelerate launch`, each process takes the GPU of its rank.
        dtype: "auto", "float32", "bfloat16" or "float16".
        conv_mode: a registered chat template; None takes the checkpoint's.
        max_tiles: most tiles of an image; None takes the model's own.
        num_video_frames: frames of each video; None takes the model's own.
        lora: folder or hub id of an adapter.
        max_batch_size: ignored; lmms-eval passes it to every model. Batches here have `batch_size` prompts.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        batch_size: int | str = 1,
        device: str = "auto",
        dtype: str = "auto",
        conv_mode: str | None = None,
        max_tiles: int | None = None,
        num_video_frames: int | None = None,
        lora: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self.batch_size = _whole_number("batch_size", batch_size)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size > 1 and device in ("auto", "cuda"):
            device = str(self.accelerator.device)
        media = {"max_tiles": max_tiles, "num_video_frames": num_video_frames}
        overrides: dict[str, Any] = {
            name: _whole_number(name, value) for name, value in media.items() if value is not None
        }
        self.model = vila_core.load(
            pretrained, device=device, dtype=dtype, chat_template=conv_mode, lora=lora, **overrides
        )
        self._answered = 0
        self.device = self.model.device  # lmms-eval gathers the processes' counts here

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer each request. Requests with the same settings are answered in batches.

        lmms-eval cannot mark a sample as failed: if its image or video cannot be read, or it is too long, its answer
        is empty, which scores as wrong, and a warning names the sample and the reason.

        Raises:
            MediaError: the model does not support a task's media.
            GenerationError: a task asks for beam search.
            VilaError: the first failure, if no sample was answered.
        """
        return self._answer(requests, [self._messages(request) for request in requests])

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answer each request round by round. The task sees the earlier answers before each round."""
        answers: list[list[str]] = [[] for _ in requests]
        asked = {index: self._messages(request) for index, request in enumerate(requests)}
        state: dict[int, object] = {}  # state that the task wants back in the next round
        while asked:
            results = self._answer([requests[index] for index in asked], list(asked.values()))
            for index, result in zip(asked, results, strict=True):
                answers[index].append(result.text)
            following = {
                index: self._messages(
                    requests[index],
                    round_idx=len(answers[index]),
                    previous_output=list(answers[index]),
                    previous_round_info=state.get(index),
                )
                for index in asked
            }
            asked = {}
            for index, payload in following.items():
                # A multi-round task returns (messages, whether it ended, answers, its state); others have one round.
                if isinstance(payload, tuple) and len(payload) == 4 and not payload[1]:
                    asked[index], state[index] = payload[0], payload[3]
        return answers

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Raise `GenerationError`: likelihoods are not supported."""
        tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
        raise GenerationError(
            f"The model 'vila_kit' generates text and computes no likelihoods, which {tasks} needs. "
            "Leave this task out."
        )

    def clean(self) -> None:
        """Free the model before lmms-eval scores, perhaps with a judge on the same GPU."""
        del self.model
        super().clean()

    def _messages(self, request: Instance, **round_arguments: Any) -> Any:
        _, doc_to_messages, _, doc_id, task, split = request.arguments
        return doc_to_messages(self.task_dict[task][split][doc_id], **round_arguments)

    def _answer(self, requests: Sequence[Instance], conversations: Sequence[Messages]) -> list[GenerationResult]:
        results: dict[int, GenerationResult] = {}
        failures: list[VilaError] = []
        generation = [request.arguments[2] for request in requests]
        with Progress(disable=self.rank > 0) as progress:
            answering = progress.add_task("vila_kit", total=len(conversations))
            for batch in _batches(generation, self.batch_size):
                prompts = [as_conversation(conversations[index]) for index in batch]
                settings = generation_settings(generation[batch[0]])
                for index, outcome in zip(batch, self._complete(prompts, settings), strict=True):
                    if isinstance(outcome, VilaError):
                        failures.append(outcome)
                        _, _, _, doc_id, task, _ = requests[index].arguments
                        warn(f"Sample {doc_id} of {task} failed and gets an empty answer: {outcome}")
                    results[index] = _result(outcome)
                progress.advance(answering, len(batch))
        self._answered += len(conversations) - len(failures)
        if failures and not self._answered and self._world_size == 1:  # the other processes would wait for this one
            raise failures[0]
        return [results[index] for index in range(len(conversations))]

    def _complete(
        self, prompts: Sequence[Sequence[vila_core.Message]], settings: GenerationSettings
    ) -> list[vila_core.Completion | VilaError]:
        """Return each prompt's answer, or why there is none. If the batch fails, its prompts are asked one by one."""
        try:
            return list(self.model.complete_batch(prompts, **settings))
        except BatchGenerationError as error:
            return list(error.outcomes)
        except VilaError as error:
            if len(prompts) == 1:
                return [error]
        return [outcome for prompt in prompts for outcome in self._complete([prompt], settings)]


def _result(outcome: vila_core.Completion | VilaError) -> GenerationResult:
    if isinstance(outcome, VilaError):
        return GenerationResult("", TokenCounts(input_tokens=0, output_tokens=0))
    usage = outcome.usage
    return GenerationResult(
        outcome.text, TokenCounts(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)
    )


def _batches(generation: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[int]]:
    """Yield the indices of requests to answer together: in order, with equal settings."""
    by_settings: dict[str, list[int]] = {}
    for index, arguments in enumerate(generation):
        by_settings.setdefault(json.dumps(arguments, sort_keys=True, default=str), []).append(index)
    for indices in by_settings.values():
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


def as_conversation(messages: Messages) -> list[vila_core.Message]:
    """Convert lmms-eval's messages (role, and content parts of type text, image or video) to ours, in the same order.

    Raises:
        MediaError: a part is audio, or a section of a video, which `vila_core.Video` does not support.
    """
    return [vila_core.Message(message["role"], [_part(part) for part in message["content"]]) for message in messages]


def _part(part: Mapping[str, Any]) -> str | vila_core.Image | vila_core.Video:
    if part["type"] == "text":
        return part["text"]
    if part["type"] not in ("image", "video"):
        raise MediaError(
            f"A task of lmms-eval asks about {part['type']}; VILA models only take images and videos. Leave the task "
            "out."
        )
    source = part["url"]
    if isinstance(source, Mapping) or part.get("start_time") is not None or part.get("end_time") is not None:
        raise MediaError(
            f"A task of lmms-eval asks about a part of a video ({part}), which is not supported. Cut the videos "
            "beforehand."
        )
    return vila_core.Image(source) if part["type"] == "image" else vila_core.Video(source)


def generation_settings(arguments: Mapping[str, Any]) -> GenerationSettings:
    """Translate a task's `generation_kwargs`. Sampling is on if a temperature is given and `do_sample` is not false.

    An unknown argument gives a warning. Raises `GenerationError` for beam search.
    """
    if (arguments.get("num_beams") or 1) > 1:
        raise GenerationError(
            f"The task asks for beam search (num_beams={arguments['num_beams']}). Add: --gen_kwargs num_beams=1"
        )
    known = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
    if unknown := [name for name in arguments if name not in (*known, *IGNORED)]:
        warnings.warn(f"vila_kit ignores the task's generation arguments {', '.join(unknown)}.", stacklevel=2)
    settings: dict[str, Any] = {name: arguments[name] for name in known if arguments.get(name) is not None}
    if arguments.get("do_sample") is False:
        settings["temperature"] = 0.0
    until = arguments.get("until") or ()
    stop = [text for text in ([until] if isinstance(until, str) else until) if text != FEW_SHOT_DELIMITER]
    return GenerationSettings(**settings, stop=stop)


def _whole_number(name: str, value: object) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"vila_kit: {name}={value!r}; expected a whole number of at least 1.")
    return value
