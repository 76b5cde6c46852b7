"""Measure answers per second, one by one, in batches and continuously, with vila-tiny on this machine's CPU.

    python benchmarks/eval_throughput.py [--samples 96] [--batch-size 48] [--rounds 3] [--out results.json]

Claim: if answers are sentences, a batch is at least three times as fast. The script exits with 1 if that does not
hold or if an answer differs. It prints, for descriptions (about fifteen tokens) and for one-word answers:
- samples per second, one by one, in batches, and with prompts that join as answers end (what `vila-eval` does),
  measured alternately: the median of the rounds;
- their ratio, and the ratio to the limit: the arithmetic of the batched run at the speed that a matrix product
  reaches in this run.
A one-word answer is mostly vision tower and prefill, which are limited by arithmetic in both cases, so a batch gains
less.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import vila_core as vila
from vila_core.conversation import Prompt
from vila_core.engine.completion import Completion
from vila_core.plugins.loader import load_plugins

WORKLOADS = {
    "descriptions": ("caption_things", "caption_text", "caption_chart"),
    "one word": ("attribute", "count", "position", "relation", "size", "word", "number", "chart", "pair"),
}
CLAIMED = {"descriptions": 3.0}


def prompts_of(sources: Sequence[str], samples: int) -> list[Prompt]:
    """Return `samples` prompts of the drawn world, the sources in turn."""
    world = load_plugins().datasets.get("drawn-world")
    return [world.sample("test", sources[i % len(sources)], i // len(sources)).prompt for i in range(samples)]


def answer(model: vila.Vila, prompts: Sequence[Prompt], batch_size: int) -> tuple[list[str], float]:
    """Return the answers, greedy, and the seconds they took."""
    started = time.perf_counter()
    answers: list[str] = []
    for first in range(0, len(prompts), batch_size):
        answers += model.generate_batch(prompts[first : first + batch_size], max_new_tokens=64)
    return answers, time.perf_counter() - started


def answer_continuously(model: vila.Vila, prompts: Sequence[Prompt], at_once: int) -> tuple[list[str], float]:
    """Return the same as `answer`; a prompt joins the others as soon as one ends."""
    started = time.perf_counter()
    completions = list(model.complete_each(prompts, at_once=at_once, max_new_tokens=64))
    seconds = time.perf_counter() - started
    return [one.text if isinstance(one, Completion) else str(one) for one in completions], seconds


def product_flops() -> float:
    """Return the floating-point operations a second of a large matrix product, the best of ten."""
    a = torch.randn(1024, 1024)
    best = min(_seconds(a) for _ in range(10))
    return 2 * 1024**3 / best


def _seconds(a: torch.Tensor) -> float:
    started = time.perf_counter()
    a @ a
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = vila.load(device="cpu")
    results: dict[str, dict[str, float | bool]] = {}
    for name, sources in WORKLOADS.items():
        prompts = prompts_of(sources, options.samples)
        answer(model, prompts[: options.batch_size], options.batch_size)  # first use of every shape
        singles, batches, flows = [], [], []
        for _ in range(options.rounds):
            alone, seconds = answer(model, prompts, 1)
            singles.append(seconds)
            together, seconds = answer(model, prompts, options.batch_size)
            batches.append(seconds)
            joined, seconds = answer_continuously(model, prompts, options.batch_size)
            flows.append(seconds)
        with FlopCounterMode(display=False) as counter:
            answer(model, prompts, options.batch_size)
        floor = counter.get_total_flops() / product_flops()
        single, batch, flow = (statistics.median(seconds) for seconds in (singles, batches, flows))
        results[name] = {
            "tokens_an_answer": statistics.mean(len(model.tokenizer.encode(text)) for text in together),
            "samples_a_second_alone": len(prompts) / single,
            "samples_a_second_batched": len(prompts) / batch,
            "samples_a_second_continuously": len(prompts) / flow,
            "batched_over_alone": single / batch,
            "continuous_over_batched": batch / flow,
            "batched_seconds_over_floor": batch / floor,
            "alone_seconds_over_floor": single / floor,
            "same_answers": alone == together == joined,
        }
        print(name, json.dumps(results[name], indent=2))
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    ok = all(result["same_answers"] for result in results.values())
    ok &= all(results[name]["batched_over_alone"] >= ratio for name, ratio in CLAIMED.items())
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
