"""Judging: what is sent, what is kept, what is tried again, and what stops it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vila_core.cli.progress import NoProgress
from vila_core.errors import ConfigError, PluginError
from vila_eval.errors import JudgeError
from vila_eval.judging import judge as judging
from vila_eval.judging.judge import estimate_cost, estimate_judging, judge_samples
from vila_eval.metric import JudgedMetric
from vila_eval.metrics.judged import JudgeMetric
from vila_eval.options import JudgeOptions
from vila_eval.records.schema import JudgeRecord, JudgeSummary, PromptPart, SampleRecord
from vila_eval.records.storage import decode, read_records

KEY = "sk-test-0123456789"
RATING = JudgeMetric("rating", "Q: {question}\nA: {answer}\nReference: {reference}\nRate from 0 to 10.", scale=(0, 10))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "FIRST_PAUSE_S", 0.01)


def sample(number: int, answer: str | None = None, error: str | None = None) -> SampleRecord:
    return SampleRecord(
        id=f"s{number}",
        index=number,
        row=number,
        key=f"k{number}",
        prompt=(PromptPart(kind="text", text=f"What is {number}?"),),
        answer=f"answer {number}" if answer is None else answer,
        error=error,
        reference=str(number),
    )


def options(judge: Any, **changes: Any) -> JudgeOptions:
    return JudgeOptions(judge.url, KEY, **{"retries": 2, "timeout_s": 5.0, "concurrency": 4, **changes})


def run(judge: Any, folder: Path, count: int = 3, **changes: Any) -> list[SampleRecord]:
    return judge_samples(
        RATING, [sample(number) for number in range(count)], folder, options(judge, **changes), NoProgress()
    )


def number_asked(body: dict[str, Any]) -> int:
    return int(body["messages"][-1]["content"].partition("answer ")[2].partition("\n")[0])


def summary(folder: Path) -> JudgeSummary:
    return decode(JudgeSummary, (folder / "judge.json").read_text(), "judge.json")


def test_results_are_in_the_order_of_the_samples_whatever_comes_first(judge: Any, tmp_path: Path) -> None:
    judge.react = lambda body, _: judge.Response(
        body=judge.completion(str(number_asked(body))), delay_s=0.2 if number_asked(body) == 0 else 0.0
    )
    judged = run(judge, tmp_path)
    assert [record.id for record in judged] == ["s0", "s1", "s2"]
    assert [record.values for record in judged] == [{"rating": 0.0}, {"rating": 1.0}, {"rating": 2.0}]
    assert [record.id for record in read_records(JudgeRecord, tmp_path / "judge.jsonl")][-1] == "s0"


def test_the_request_is_what_the_metric_asks_with_the_pinned_model(judge: Any, tmp_path: Path) -> None:
    run(judge, tmp_path, count=1)
    (body,) = judge.requests
    assert body == {
        "model": "gpt-4o-2024-11-20",
        "messages": [{"role": "user", "content": "Q: What is 0?\nA: answer 0\nReference: 0\nRate from 0 to 10."}],
        "temperature": 0.0,
        "max_tokens": 512,
    }
    assert judge.authorizations == [f"Bearer {KEY}"]


def test_scoring_again_sends_nothing_and_gives_the_same(judge: Any, tmp_path: Path) -> None:
    first = run(judge, tmp_path)
    judge.react = lambda body, _: "1"
    assert run(judge, tmp_path) == first
    assert len(judge.requests) == 3
    assert summary(tmp_path) == JudgeSummary(
        model="gpt-4o-2024-11-20",
        served_models=("judge-2026-01-01",),
        samples=3,
        failed=0,
        requests=3,
        reused=3,
        prompt_tokens=300,
        completion_tokens=30,
    )


def test_another_model_or_another_answer_is_asked_about_anew(judge: Any, tmp_path: Path) -> None:
    run(judge, tmp_path)
    judge.react = lambda body, _: "1"
    assert [record.values for record in run(judge, tmp_path, model="other")] == [{"rating": 1.0}] * 3
    changed = [sample(0, answer="another"), sample(1), sample(2)]
    judged = judge_samples(RATING, changed, tmp_path, options(judge), NoProgress())
    assert [record.values for record in judged] == [{"rating": 1.0}, {"rating": 7.0}, {"rating": 7.0}]
    assert [body["model"] for body in judge.requests[3:]] == ["other"] * 3 + ["gpt-4o-2024-11-20"]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_passing_trouble_is_tried_again(judge: Any, tmp_path: Path, status: int) -> None:
    judge.react = lambda body, number: "7" if number else judge.Response(status, {"error": {"message": "busy"}})
    assert run(judge, tmp_path, count=1)[0].values == {"rating": 7.0}
    failed, good = read_records(JudgeRecord, tmp_path / "judge.jsonl")
    assert (failed.attempt, failed.reply, failed.error) == (0, None, f"HTTP {status}: busy")
    assert (good.attempt, good.reply, good.error) == (1, "7", None)


def test_the_wait_that_the_endpoint_asks_for_is_kept(judge: Any, tmp_path: Path) -> None:
    judge.react = lambda body, number: "7" if number else judge.Response(429, {}, {"Retry-After": "1"})
    start = time.monotonic()
    assert run(judge, tmp_path, count=1)[0].values == {"rating": 7.0}
    assert time.monotonic() - start >= 1.0


def test_a_wait_of_an_hour_stops_judging(judge: Any, tmp_path: Path) -> None:
    judge.react = lambda body, number: judge.Response(429, {"error": {"message": "later"}}, {"Retry-After": "3600"})
    with pytest.raises(JudgeError, match=r"asks to wait 3600 s.*kept"):
        run(judge, tmp_path, count=1)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, "<html>busy</html>", "no chat completion"),
        (200, {"choices": []}, "no chat completion"),
        (200, {"choices": [{"message": {"content": None}}]}, "empty"),
        (200, {"choices": [{"message": {"content": "7"}}], "usage": {"prompt_tokens": 1e999}}, "no chat completion"),
        (200, "x" * (4 * 2**20 + 1), "longer than 4194304 bytes"),
        (500, {}, "HTTP 500"),
    ],
    ids=["html", "no-choice", "no-content", "infinite-usage", "too-long", "server-error"],
)
def test_a_sample_without_a_verdict_is_a_judging_failure_and_never_0(
    judge: Any, tmp_path: Path, status: int, body: object, reason: str
) -> None:
    judge.react = lambda asked, _: judge.Response(status, body) if number_asked(asked) == 1 else "7"
    good, bad, other = run(judge, tmp_path)
    assert good.values == other.values == {"rating": 7.0}
    assert bad.values is None
    assert reason in str(bad.judge_error)
    assert (summary(tmp_path).failed, summary(tmp_path).requests) == (1, 2 + 3)


def test_a_judge_that_does_not_reply_in_time_is_a_judging_failure(judge: Any, tmp_path: Path) -> None:
    judge.react = lambda body, _: judge.Response(200, judge.completion("7"), delay_s=0.5)
    (record,) = run(judge, tmp_path, count=1, timeout_s=0.1, retries=1)
    assert (record.values, record.judge_error) == (None, "No reply within 0.1 s.")
    assert len(judge.requests) == 2


def test_a_request_that_can_never_succeed_is_sent_once(judge: Any, tmp_path: Path) -> None:
    judge.react = lambda body, _: judge.Response(400, {"error": {"message": "too long a prompt", "param": "messages"}})
    assert run(judge, tmp_path, count=1)[0].judge_error == "HTTP 400: too long a prompt"
    assert len(judge.requests) == 1


def test_a_failure_is_asked_about_again_by_the_next_run(judge: Any, tmp_path: Path) -> None:
    judge.react = lambda body, _: judge.Response(500, {}) if number_asked(body) == 1 else "7"
    assert run(judge, tmp_path)[1].judge_error is not None
    judge.react = lambda body, _: "5"
    judged = run(judge, tmp_path)
    assert [record.values for record in judged] == [{"rating": 7.0}, {"rating": 5.0}, {"rating": 7.0}]
    assert judged[1].judge_error is None


def test_a_reply_without_a_verdict_is_asked_for_again_at_a_higher_temperature(judge: Any, tmp_path: Path) -> None:
    judge.react = lambda body, number: ["I like it.", "11", "Good.\nRating: 6/10"][number]
    assert run(judge, tmp_path, count=1)[0].values == {"rating": 6.0}
    assert [body["temperature"] for body in judge.requests] == [0.0, 0.5, 1.0]
    assert run(judge, tmp_path, count=1)[0].values == {"rating": 6.0}
    assert len(judge.requests) == 3


def test_a_judge_that_never_gives_a_verdict_is_asked_as_often_as_allowed(judge: Any, tmp_path: Path) -> None:
    judge.react = lambda body, number: "I like it."
    (record,) = run(judge, tmp_path, count=1, retries=1)
    assert record.values is None
    assert "'I like it.'" in str(record.judge_error)
    assert len(judge.requests) == 2


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, "refuses the API key"),
        (404, {"error": {"message": "The model does not exist"}}, "knows no such address or model"),
        (429, {"error": {"message": "quota", "code": "insufficient_quota"}}, "quota"),
        (400, {"error": {"message": "no temperature", "param": "temperature"}}, "cannot be used as a judge"),
        (302, {}, "redirect"),
    ],
)
def test_what_every_request_would_meet_stops_judging_and_loses_nothing(
    judge: Any, tmp_path: Path, status: int, body: object, reason: str
) -> None:
    judge.react = lambda asked, number: (
        "7" if number == 0 else judge.Response(status, body, {"Location": "http://127.0.0.1:1/"})
    )
    with pytest.raises(JudgeError, match=reason) as error:
        run(judge, tmp_path, count=20, concurrency=1)
    assert len(judge.requests) == 2
    assert KEY not in str(error.value)
    judge.react = lambda asked, _: "5"
    assert [record.values for record in run(judge, tmp_path, count=20)] == [{"rating": 7.0}] + [{"rating": 5.0}] * 19


def test_the_key_is_in_no_file_and_no_record_even_if_the_judge_repeats_it(judge: Any, tmp_path: Path) -> None:
    judge.react = lambda body, number: (
        judge.Response(500, {"error": {"message": f"bad {KEY}"}})
        if number == 0
        else f"Your key is {KEY}"
        if number == 1
        else "7"
    )
    (record,) = run(judge, tmp_path, count=1)
    assert record.values == {"rating": 7.0}
    files = [path.read_text() for path in tmp_path.iterdir()]
    assert len(files) == 2
    assert not any(KEY in text for text in files)
    assert "bad [the API key]" in "".join(files)


def test_a_judge_that_is_not_there_stops_judging(judge: Any, tmp_path: Path) -> None:
    nowhere = JudgeOptions("http://127.0.0.1:9/v1", KEY, retries=1)
    with pytest.raises(JudgeError, match=r"No connection to http://127\.0\.0\.1:9/v1"):
        judge_samples(RATING, [sample(0)], tmp_path, nowhere, NoProgress())


@pytest.mark.parametrize(
    ("url", "key", "reason"),
    [
        ("ftp://judge/v1", None, "cannot be used"),
        ("api.openai.com/v1", None, "cannot be used"),
        ("https://user:secret@judge/v1", None, "cannot be used"),
        ("https://judge/v1?key=secret", None, "cannot be used"),
        ("https://judge:port/v1", None, "cannot be used"),
        ("https://judge/v1/chat/completions", None, "without '/chat/completions'"),
        ("http://judge.example/v1", KEY, "unencrypted"),
        ("https://judge/v1", "sk-secret\nsk-other", "line break"),
    ],
)
def test_an_address_or_key_that_cannot_be_used_is_refused_without_showing_secrets(
    tmp_path: Path, url: str, key: str | None, reason: str
) -> None:
    with pytest.raises(JudgeError, match=reason) as error:
        judge_samples(RATING, [sample(0)], tmp_path, JudgeOptions(url, key), NoProgress())
    assert "secret" not in str(error.value)
    assert KEY not in str(error.value)


def test_a_sample_that_failed_is_judged_on_the_empty_answer(judge: Any, tmp_path: Path) -> None:
    judge.react = lambda body, _: "0"
    failed = sample(0, answer="", error="the image cannot be read")
    (record,) = judge_samples(RATING, [failed], tmp_path, options(judge), NoProgress())
    assert (record.values, record.error) == ({"rating": 0.0}, "the image cannot be read")
    assert "A: \nReference" in judge.requests[0]["messages"][0]["content"]


def test_interrupted_judging_keeps_what_it_has(judge: Any, tmp_path: Path) -> None:
    class Interrupted(NoProgress):
        def advance(self, steps: int = 1, note: str = "") -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_samples(
            RATING, [sample(number) for number in range(50)], tmp_path, options(judge, concurrency=2), Interrupted()
        )
    asked = len(judge.requests)
    assert asked < 50
    assert [record.values for record in run(judge, tmp_path, count=50)] == [{"rating": 7.0}] * 50
    assert len(judge.requests) == 50


KILLED = """
import sys
from pathlib import Path
from vila_eval.judging.judge import judge_samples
from vila_eval.metrics.judged import JudgeMetric
from vila_core.cli.progress import NoProgress
from vila_eval.options import JudgeOptions
from vila_eval.records.schema import SampleRecord
from vila_eval.records.storage import read_records
url, folder = sys.argv[1:]
metric = JudgeMetric("rating", "A: {answer}", scale=(0, 10))
samples = list(read_records(SampleRecord, Path(folder) / "samples.jsonl"))
judge_samples(metric, samples, Path(folder), JudgeOptions(url, concurrency=1), NoProgress())
"""


def test_judging_that_is_killed_goes_on_where_it_was(judge: Any, tmp_path: Path) -> None:
    samples = [sample(number) for number in range(6)]
    (tmp_path / "samples.jsonl").write_text("".join(f"{record.model_dump_json()}\n" for record in samples))
    judge.react = lambda body, number: judge.Response(200, judge.completion("7"), delay_s=300.0 if number == 3 else 0.0)
    process = subprocess.Popen([sys.executable, "-c", KILLED, judge.url, str(tmp_path)])
    deadline = time.monotonic() + 240
    while len(judge.requests) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with (tmp_path / "judge.jsonl").open("a") as file:
        file.write('{"id": "s3", "request": 0, "att')  # as a machine that loses power leaves it
    judge.react = lambda body, number: "5"
    metric = JudgeMetric("rating", "A: {answer}", scale=(0, 10))
    judged = judge_samples(metric, samples, tmp_path, options(judge), NoProgress())
    assert [record.values for record in judged] == [{"rating": 7.0}] * 3 + [{"rating": 5.0}] * 3
    assert len(judge.requests) == 4 + 3
    assert [json.loads(line)["id"] for line in (tmp_path / "judge.jsonl").read_text().splitlines()][:3] == [
        "s0",
        "s1",
        "s2",
    ]


class RecordedProgress(NoProgress):
    """Records its messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def report(self, message: str) -> None:
        self.texts.append(message)


@pytest.mark.parametrize(
    ("step", "what"),
    [("requests", "cannot ask about sample 's0'"), ("read", "cannot read the replies about sample 's0'")],
)
def test_a_judged_metrics_own_fault_names_its_line(judge: Any, tmp_path: Path, step: str, what: str) -> None:
    class Broken(JudgeMetric):
        pass

    def fail(*_: object) -> None:
        raise KeyError("no such thing")

    setattr(Broken, step, fail)
    broken = Broken("broken", "A: {answer}", scale=(0, 10))
    line = fail.__code__.co_firstlineno + 1
    with pytest.raises(
        PluginError, match=rf"Metric 'broken' {what}: KeyError: 'no such thing' \(test_judging.py, line {line}\)"
    ):
        judge_samples(broken, [sample(0)], tmp_path, options(judge), NoProgress())
    assert len(judge.requests) == (step == "read")


def test_the_cost_is_estimated_before_and_counted_after(judge: Any, tmp_path: Path) -> None:
    priced = options(judge, prices=(2.5, 10.0))
    samples = [sample(number) for number in range(3)]
    answered = [record.answered for record in samples]
    before = estimate_judging(RATING, answered, tmp_path, "gpt-4o-2024-11-20", priced.prices)
    # Three prompts of 57 characters, and three replies of at most 512 tokens.
    assert (before.requests, before.prompt_tokens, before.completion_tokens) == (3, 3 * 57 // 4, 1536)
    assert before.dollars == pytest.approx((42 * 2.5 + 1536 * 10) / 1e6)
    said = RecordedProgress()
    judge_samples(RATING, samples[:2], tmp_path, priced, said)
    judge_samples(RATING, samples[:2], tmp_path, priced, said)
    assert said.texts == [
        "2 requests to gpt-4o-2024-11-20: about 28 tokens, at most 1,024 in reply, at most about $0.01",
        "nothing to ask gpt-4o-2024-11-20: its replies are stored",
    ]
    assert summary(tmp_path).dollars == pytest.approx((200 * 2.5 + 20 * 10) / 1e6)
    assert estimate_judging(RATING, answered, tmp_path, "gpt-4o-2024-11-20", None).requests == 1
    assert estimate_cost(10, 10, None) is None


def test_a_judge_metric_says_what_is_wrong_with_its_prompt() -> None:
    assert isinstance(RATING, JudgedMetric)
    with pytest.raises(ConfigError, match=r"\{answer\}"):
        JudgeMetric("rating", "Rate from 0 to 10: {question}", scale=(0, 10))
    with pytest.raises(ConfigError, match="score"):
        JudgeMetric("rating", 'Rate {answer} as {"score": 3}', scale=(0, 10))


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("7", 7.0),
        ("Score: 7", 7.0),
        ("**7/10**", 7.0),
        ("There are 3 errors.\n\nFinal score: **6.5**", 6.5),
        ("10.", 10.0),
    ],
)
def test_a_judge_metric_reads_the_number_on_the_last_line(reply: str, rating: float) -> None:
    assert RATING.read([reply], "", sample(0).question).values == {"rating": rating}


@pytest.mark.parametrize("reply", ["", "7 or 8", "11", "-1", "seven", "7\nbecause it is good", "nan", "1e3"])
def test_a_judge_metric_takes_nothing_else_for_a_verdict(reply: str) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        RATING.read([reply], "", sample(0).question)


def test_a_braces_answer_is_text() -> None:
    (request,) = RATING.requests("{question} {0}", sample(0).question)
    assert "A: {question} {0}\n" in str(request.messages[0]["content"])
