"""Scoring answers with a judge: send requests, read the verdicts, keep every exchange.

Each exchange is appended to `judge.jsonl` when it ends. Later runs reuse the replies, so scoring again sends nothing
and gives the same scores. A sample without a verdict gets a `judge_error`, and the next run asks about it again. A
failed sample is judged as an empty answer, as the benchmark would judge a model that says nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_core.cli.progress import Progress
from vila_eval.errors import JudgeError
from vila_eval.judging.client import FailedRequestError, JudgeClient
from vila_eval.judging.log import JudgeLog
from vila_eval.metric import Answered, JudgedMetric, JudgeRequest, Score
from vila_eval.options import JudgeOptions
from vila_eval.records.schema import JudgeRecord, JudgeSummary, SampleRecord
from vila_eval.records.storage import JUDGE, JUDGE_SUMMARY, write_record
from vila_eval.task import Question, plugin_errors

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
CHARACTERS_A_TOKEN = 4
"""A rough figure for English text, used for estimates before a run."""


def judge_model(metric: JudgedMetric, options: JudgeOptions) -> str:
    """Return the judge model: the user's choice, or the one that the benchmark specifies."""
    return options.model or metric.judge_model


def judge_samples(
    metric: JudgedMetric, samples: Sequence[SampleRecord], folder: Path, options: JudgeOptions, progress: Progress
) -> list[SampleRecord]:
    """Return the samples, in order, with `values` or `judge_error`; write `judge.jsonl` and `judge.json` to `folder`.

    Raises:
        JudgeError: nothing can be judged (bad address or key, unknown model, no quota, no connection). Replies that
            arrived are kept.
        ResultsError: `judge.jsonl` is damaged.
        ConfigError: the metric rejects a question.
        PluginError: the metric fails; the message says where.
    """
    model = judge_model(metric, options)
    answered = [sample.answered for sample in samples]
    questions = judged_questions(metric, answered)
    judged: list[SampleRecord | None] = [None] * len(samples)
    progress.start(f"{folder.name} (judge)", len(samples), 0)
    with JudgeLog(folder / JUDGE) as log, JudgeClient(options) as client:
        progress.report(str(_estimate(metric, answered, questions, log, model, options.prices)))
        judging = _Judging(metric, model, options, client, log)
        with ThreadPoolExecutor(max(1, options.concurrency), "judge") as pool:
            futures = {pool.submit(judging.judge, samples[i], questions[i]): i for i in range(len(samples))}
            try:
                for future in as_completed(futures):
                    judged[futures[future]] = future.result()
                    progress.advance(1)
            except BaseException:
                # Pending replies are paid for, so wait for them and keep them; send nothing more.
                judging.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            finally:
                progress.finish()
                results = [sample for sample in judged if sample is not None]
                write_record(
                    folder / JUDGE_SUMMARY, _summary(model, len(samples), results, log, judging.reused, options)
                )
    return results


def judged_questions(metric: JudgedMetric, samples: Sequence[Answered]) -> list[Question]:
    """Return the question of each sample, with what the judge must see of the other samples.

    Raises:
        ConfigError: the metric refuses a question.
        PluginError: the metric fails.
    """
    with plugin_errors(f"Metric '{metric.name}' cannot look at its samples together"):
        questions = list(metric.together(samples))
        if len(questions) != len(samples):
            raise ValueError(f"together returned {len(questions)} questions for {len(samples)} samples")
    return questions


def requests_about(metric: JudgedMetric, answer: str, question: Question) -> Sequence[JudgeRequest]:
    """Return a metric's requests about one answer. Raises `PluginError` if the metric fails."""
    with plugin_errors(f"Metric '{metric.name}' cannot ask about sample '{question.id}'"):
        return metric.requests(answer, question)


class _Judging:
    """Judges one sample at a time, in any number of threads."""

    def __init__(self, metric: JudgedMetric, model: str, options: JudgeOptions, client: JudgeClient, log: JudgeLog):
        self.metric, self.model, self.options, self.client, self.log = metric, model, options, client, log
        self.stop = threading.Event()
        self._reason: JudgeError | None = None
        self.reused = 0
        self._counting = threading.Lock()

    def judge(self, sample: SampleRecord, question: Question) -> SampleRecord:
        requests = requests_about(self.metric, sample.answer, question)
        replies: list[str | None] = [
            self.log.reply(sample.id, number, self.model, request.messages) for number, request in enumerate(requests)
        ]
        with self._counting:
            self.reused += sum(reply is not None for reply in replies)
        problem, refused, attempt = "", 0, 0
        while True:
            whole = [reply for reply in replies if reply is not None]
            if len(whole) == len(requests):
                try:
                    score = self._read(whole, sample.answer, question)
                except ValueError as error:
                    # It is unknown which reply has no verdict, so ask for all of them again.
                    problem, refused = f"No verdict in the reply: {error}", refused + 1
                    replies = [None for _ in requests]
                else:
                    scored = {
                        "values": dict(score.values),
                        "parsed": score.parsed,
                        "unread": score.unread,
                        "judge_error": None,
                    }
                    return sample.model_copy(update=scored)
            if not requests or attempt > self.options.retries:
                break
            try:
                for number, request in enumerate(requests):
                    if replies[number] is None:
                        replies[number] = self._ask(sample.id, number, attempt, request, refused)
            except FailedRequestError as error:
                problem, last = str(error), attempt >= self.options.retries
                if last and error.unreachable:
                    raise self._stopped(
                        JudgeError(f"{problem} Replies so far are kept: run again when the judge is there.")
                    ) from None
                if last or not error.retry:
                    break
                self._pause(max(error.wait_s, backoff_s(attempt, sample.id)))
            attempt += 1
        return sample.model_copy(update={"values": None, "parsed": None, "unread": None, "judge_error": problem})

    def _ask(self, sample_id: str, number: int, attempt: int, request: JudgeRequest, refused: int) -> str:
        self._pause(0)
        # At temperature 0 the judge would repeat itself; MM-Vet's own script also raises the temperature by 0.5.
        temperature = request.temperature if refused == 0 else min(1.0, request.temperature + 0.5 * refused)
        record = JudgeRecord(
            id=sample_id,
            request=number,
            attempt=attempt,
            model=self.model,
            messages=tuple(dict(message) for message in request.messages),
            temperature=temperature,
            reply=None,
        )
        try:
            reply = self.client.ask(request, self.model, temperature)
        except (FailedRequestError, JudgeError) as error:
            self.log.append(record.model_copy(update={"error": str(error)}))
            if isinstance(error, JudgeError):
                raise self._stopped(error) from None
            raise
        self.log.append(
            record.model_copy(
                update={
                    "reply": reply.text,
                    "served_model": reply.served_model,
                    "prompt_tokens": reply.prompt_tokens,
                    "completion_tokens": reply.completion_tokens,
                }
            )
        )
        return reply.text

    def _read(self, replies: Sequence[str], answer: str, question: Question) -> Score:
        with plugin_errors(
            f"Metric '{self.metric.name}' cannot read the replies about sample '{question.id}'", ValueError
        ):
            score = self.metric.read(replies, answer, question)
        if not all(math.isfinite(value) for value in score.values.values()):
            raise ValueError(f"the score is not finite: {dict(score.values)}")
        return score

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise self._reason or JudgeError("Judging was stopped.")

    def _stopped(self, reason: JudgeError) -> JudgeError:
        """Stop all threads for `reason`, or for the one that came first."""
        self._reason = self._reason or reason
        self.stop.set()
        return self._reason


def backoff_s(attempt: int, name: str) -> float:
    """Return the pause after a failed attempt: 1, 2, 4 … 60 s, minus up to half, depending on the name, as jitter."""
    jitter = int.from_bytes(hashlib.sha256(f"{name} {attempt}".encode()).digest()[:4]) / 2**32
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * (1 - jitter / 2)


def estimate_cost(prompt_tokens: int, completion_tokens: int, prices: tuple[float, float] | None) -> float | None:
    """Return the cost in US dollars; `prices` are per million prompt and completion tokens. None without prices."""
    return None if prices is None else (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6


@dataclass(frozen=True)
class JudgeEstimate:
    """An estimate of what judging will cost at most, not counting repeated attempts.

    Attributes:
        model: the judge.
        requests: requests to send; stored replies are reused.
        prompt_tokens: their tokens, at four characters per token.
        completion_tokens: if every reply has the maximum length.
        dollars: at the user's prices; None without prices.
    """

    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None

    def __str__(self) -> str:
        if not self.requests:
            return f"nothing to ask {self.model}: its replies are stored"
        tokens = f"about {self.prompt_tokens:,} tokens, at most {self.completion_tokens:,} in reply"
        cost = "" if self.dollars is None else f", at most about ${self.dollars:,.2f}"
        return f"{self.requests:,} request{'s' if self.requests > 1 else ''} to {self.model}: {tokens}{cost}"


def estimate_judging(
    metric: JudgedMetric, samples: Sequence[Answered], folder: Path, model: str, prices: tuple[float, float] | None
) -> JudgeEstimate:
    """Estimate the cost of judging. Sends nothing.

    Args:
        metric: the task's metric.
        samples: all samples.
        folder: the task's results folder, which may hold replies.
        model: the judge.
        prices: US dollars per million prompt tokens and per million completion tokens.

    Raises:
        ConfigError: the metric refuses a question.
        PluginError: the metric fails.
        ResultsError: `judge.jsonl` is damaged.
    """
    with JudgeLog(folder / JUDGE) as log:
        return _estimate(metric, samples, judged_questions(metric, samples), log, model, prices)


def _estimate(
    metric: JudgedMetric,
    samples: Sequence[Answered],
    questions: Sequence[Question],
    log: JudgeLog,
    model: str,
    prices: tuple[float, float] | None,
) -> JudgeEstimate:
    open_requests = [
        request
        for sample, question in zip(samples, questions, strict=True)
        for number, request in enumerate(requests_about(metric, sample.answer, question))
        if log.reply(question.id, number, model, request.messages) is None
    ]
    prompt = sum(_characters(request.messages) for request in open_requests) // CHARACTERS_A_TOKEN
    completion = sum(request.max_tokens for request in open_requests)
    return JudgeEstimate(model, len(open_requests), prompt, completion, estimate_cost(prompt, completion, prices))


def _characters(messages: Iterable[Mapping[str, Any]]) -> int:
    contents = [message.get("content", "") for message in messages]
    return sum(len(content) if isinstance(content, str) else len(json.dumps(content)) for content in contents)


def _summary(
    model: str, samples: int, judged: Sequence[SampleRecord], log: JudgeLog, reused: int, options: JudgeOptions
) -> JudgeSummary:
    exchanges = log.usage(model)
    return JudgeSummary(
        model=model,
        served_models=tuple(sorted(exchanges.served_models)),
        samples=samples,
        failed=samples - sum(sample.values is not None for sample in judged),
        requests=exchanges.requests,
        reused=reused,
        prompt_tokens=exchanges.prompt_tokens,
        completion_tokens=exchanges.completion_tokens,
        dollars=estimate_cost(exchanges.prompt_tokens, exchanges.completion_tokens, options.prices),
    )
