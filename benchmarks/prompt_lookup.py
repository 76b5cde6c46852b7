"""Tokens per second with drafts by prompt lookup, without drafts, and with drafts that are all right.

    python benchmarks/prompt_lookup.py [--model vila-tiny] [--samples 12] [--drafts 10] [--json results.json]

Two kinds of answers, greedy, one at a time:
- `copied`: the prompt is a conversation in which the model has described the picture, and asks for the description
  again. Such answers come from a text that is being edited, or from a document that is being quoted.
- `new`: the first description, of which nothing is in the prompt.

The limit is measured in the same run: drafts from an oracle, which knows the answer. The three are measured in turns;
printed are medians of the rounds. Claim: the answers are the same, copied ones come in less than half as many steps,
and new ones take at most 10 % longer. The script exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import vila_core as vila
from vila_core.conversation import Prompt
from vila_core.engine.completion import Completion
from vila_core.engine.lookup import PromptLookup
from vila_core.plugins.loader import load_plugins

SOURCES = ("caption_things", "caption_text", "caption_chart")


@dataclass(frozen=True)
class Result:
    """One kind of answers. Steps and tokens are sums over all answers; times are medians of the rounds."""

    kind: str
    tokens: int
    steps_without: int
    steps_with: int
    drafted: int
    accepted: int
    tokens_per_second_without: float
    tokens_per_second_with: float
    tokens_per_second_limit: float
    same_answers: bool


def first_prompts(samples: int) -> list[Prompt]:
    """Return prompts that ask for a description."""
    world = load_plugins().datasets.get("drawn-world")
    return [world.sample("test", SOURCES[i % 3], i // 3).prompt for i in range(samples)]


def asked_again(model: vila.Vila, prompt: Prompt) -> Prompt:
    """Return the conversation in which the description has been given, and is asked for again."""
    answer = model.generate(prompt, max_new_tokens=96)
    assert isinstance(prompt, list), "the drawn world gives pictures and texts"
    parts = [part for part in prompt if isinstance(part, str | vila.Image)]
    question = [part for part in parts if isinstance(part, str)]
    return [vila.Message("user", parts), vila.Message("assistant", [answer]), vila.Message("user", question)]


def answer(model: vila.Vila, prompts: Sequence[Prompt], drafts: int) -> list[Completion]:
    """Answer prompts one by one."""
    return [model.complete(one, max_new_tokens=96, prompt_lookup_num_tokens=drafts) for one in prompts]


def answer_with_oracle(
    model: vila.Vila, prompts: Sequence[Prompt], drafts: int, known: Sequence[Completion]
) -> list[Completion]:
    """Answer prompts with drafts that are the answers, as long as allowed."""
    return [_with_known(model, one, drafts, answered.token_ids) for one, answered in zip(prompts, known, strict=True)]


def _with_known(model: vila.Vila, prompt: Prompt, drafts: int, token_ids: Sequence[int]) -> Completion:
    pushed = 0

    def push(_self: PromptLookup, _token_id: int) -> None:
        nonlocal pushed
        pushed += 1

    def draft(_self: PromptLookup, most: int) -> list[int]:
        return list(token_ids[pushed : pushed + min(most, drafts)])

    with mock.patch.object(PromptLookup, "push", push), mock.patch.object(PromptLookup, "draft", draft):
        return answer(model, [prompt], drafts)[0]


def decode_seconds(completions: Sequence[Completion]) -> float:
    return sum(one.timings.decode for one in completions)


def measure(model: vila.Vila, kind: str, prompts: Sequence[Prompt], drafts: int, rounds: int) -> Result:
    without, with_drafts = answer(model, prompts, 0), answer(model, prompts, drafts)
    seconds: list[tuple[float, ...]] = []
    for _ in range(rounds):
        runs = answer(model, prompts, 0), answer(model, prompts, drafts)
        seconds.append(tuple(map(decode_seconds, (*runs, answer_with_oracle(model, prompts, drafts, without)))))
    slow, fast, best = (statistics.median(times) for times in zip(*seconds, strict=True))
    tokens = sum(one.usage.completion_tokens for one in without)
    accepted = sum(one.usage.accepted_tokens for one in with_drafts)
    return Result(
        kind=kind,
        tokens=tokens,
        steps_without=tokens,
        steps_with=tokens - accepted,
        drafted=sum(one.usage.drafted_tokens for one in with_drafts),
        accepted=accepted,
        tokens_per_second_without=tokens / slow,
        tokens_per_second_with=tokens / fast,
        tokens_per_second_limit=tokens / best,
        same_answers=[one.token_ids for one in without] == [one.token_ids for one in with_drafts],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vila-tiny")
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--drafts", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = vila.load(args.model)
    first = first_prompts(args.samples)
    kinds: dict[str, list[Prompt]] = {
        "copied": [asked_again(model, prompt) for prompt in first],
        "new": first,
    }
    results = [measure(model, kind, prompts, args.drafts, args.rounds) for kind, prompts in kinds.items()]
    for one in results:
        faster = one.tokens_per_second_with / one.tokens_per_second_without
        print(
            f"{one.kind}: {one.tokens} tokens in {one.steps_with} steps; {one.accepted} of {one.drafted} drafts right; "
            f"{one.tokens_per_second_with:.0f} tokens/s, {faster:.2f} x as fast as without "
            f"({one.tokens_per_second_without:.0f}); limit {one.tokens_per_second_limit:.0f}; "
            f"answers {'the same' if one.same_answers else 'DIFFER'}"
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in results], indent=2) + "\n", encoding="utf-8")
    copied, new = results
    ok = copied.same_answers and new.same_answers and 2 * copied.steps_with < copied.steps_without
    sys.exit(0 if ok and new.tokens_per_second_with > 0.9 * new.tokens_per_second_without else 1)


if __name__ == "__main__":
    main()
