"""Tests a model on the drawn world through the public interface of vila_core."""

from collections.abc import Mapping, Sequence

from PIL.Image import Image as Picture

import vila_core as vila
from vila_core.cli.progress import NoProgress, Progress
from vila_train.tiny.dataset import as_prompt
from vila_train.tiny.evaluate import Score, table
from vila_train.tiny.world import TASKS, TESTS, make_sample
from vila_train.tiny.world.combinations import Split
from vila_train.tiny.world.sheet import Entry, contact_sheet

Answers = Mapping[str, Sequence[Entry]]
"""By task, the test samples with the model's replies."""


def answer_tests(
    model_path: str | None,
    samples: int,
    device: str,
    batch_size: int,
    split: Split = "test",
    progress: Progress | None = None,
) -> dict[str, list[Entry]]:
    """Ask the model `samples` questions per task, with greedy decoding.

    Raises:
        CheckpointError: the model does not exist.
    """
    progress = progress or NoProgress()
    model = vila.load(model_path, device=device)
    answers: dict[str, list[Entry]] = {}
    for task in TESTS:
        entries: list[Entry] = []
        progress.start(task, samples)
        for start in range(0, samples, batch_size):
            asked = [make_sample(split, task, index) for index in range(start, min(start + batch_size, samples))]
            replies = model.generate_batch([as_prompt(sample) for sample in asked], max_new_tokens=32)
            entries += [Entry(sample, reply) for sample, reply in zip(asked, replies, strict=True)]
            progress.advance(len(asked))
        answers[task] = entries
    return answers


def count(entries: Sequence[Entry]) -> Score:
    """Count the replies that match the answer exactly."""
    return Score(sum(entry.reply == entry.sample.answer for entry in entries), len(entries))


def report_table(answers: Answers) -> str:
    """Return Markdown tables of the scores per test and per kind of question."""
    kinds: dict[str, list[Entry]] = {}
    for task in TASKS:
        for entry in answers[task]:
            kinds.setdefault(f"{task}: {entry.sample.kind}", []).append(entry)
    by_task = table({task: count(entries) for task, entries in answers.items()})
    by_kind = table({kind: count(entries) for kind, entries in sorted(kinds.items())})
    return f"{by_task}\n\nBy kind of question:\n\n{by_kind}"


def draw_sheet(answers: Answers, of_each: int = 3) -> Picture:
    """Return a contact sheet of the first samples of each task with the model's replies."""
    return contact_sheet([entry for task in TASKS for entry in answers[task][:of_each]])
