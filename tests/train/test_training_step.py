"""One step: the gradient of the mean over all labelled tokens, however they are divided into rows."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from tests.train.loop_runs import conversation

from vila_core.media import MediaLimits
from vila_core.model import VilaModel
from vila_core.plugins.loader import load_plugins
from vila_core.tokenizer import Tokenizer
from vila_train.config import OptimizerConfig
from vila_train.loop.optimizer import make_optimizer
from vila_train.loop.step import StepResult, Trainee, train_step
from vila_train.loss import TimeTokens, cross_entropy_sum
from vila_train.packing import HostRow, PackedRow
from vila_train.samples import Encoder, TrainingSample

CPU = torch.device("cpu")
TIME = TimeTokens(torch.arange(300, 310), std=1.5)
"""Ordinary tokens, taken as time tokens."""


@pytest.fixture
def samples(new_micro_network: Callable[[], VilaModel], tokenizer: Tokenizer) -> list[TrainingSample]:
    """Texts, pictures, videos and both, of many lengths; some labels are time tokens."""
    template = load_plugins().chat_templates.get("qwen2")
    encoder = Encoder(new_micro_network(), tokenizer, template, MediaLimits())
    found = [encoder.fit(conversation(index), 512, "error") for index in range(8)]
    labels = [305 if label != -100 and place % 3 == 0 else label for place, label in enumerate(found[1].labels)]
    return [found[0], replace(found[1], labels=labels), *found[2:]]


def rows_of(samples: Sequence[TrainingSample], groups: Sequence[Sequence[int]]) -> list[PackedRow]:
    return [HostRow.of([samples[index] for index in group]).to(CPU) for group in groups]


def step(
    network: VilaModel, rows: Sequence[PackedRow], time_tokens: TimeTokens | None = None, clip_norm: float = 0.0
) -> tuple[StepResult, dict[str, torch.Tensor]]:
    network.train()
    optimizer = make_optimizer(network, OptimizerConfig(learning_rate=1e-3), CPU)
    result = train_step(Trainee(network, time_tokens), rows, optimizer, clip_norm=clip_norm)
    return result, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


GROUPS = {
    "one by one": [[index] for index in range(8)],
    "in one row": [[*range(8)]],
    "in other rows": [[7, 0, 3], [2], [1, 6, 4, 5]],
    "text apart": [[0, 3, 5, 6], [1, 2, 4, 7]],
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("time_tokens", [None, TIME], ids=["hard", "soft"])
def test_rows_do_not_change_loss_or_gradients(
    new_micro_network: Callable[[], VilaModel],
    samples: list[TrainingSample],
    groups: list[list[int]],
    time_tokens: TimeTokens | None,
):
    """Against a mean that is computed here, sample by sample, without packing and without chunks."""
    network = new_micro_network()
    total, count = torch.zeros(()), 0
    for sample in samples:
        (logits,) = network([sample.prompt])
        labels = torch.tensor(sample.labels)[1:]
        total = total + cross_entropy_sum(logits[:-1][labels != -100], labels[labels != -100], time_tokens)
        count += sample.num_labels
    (total / count).backward()
    expected = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    result, found = step(new_micro_network(), rows_of(samples, groups), time_tokens)
    assert result.loss.item() == pytest.approx(total.item() / count, abs=1e-5)
    assert result.row_losses.sum().item() == pytest.approx(result.loss.item(), rel=1e-6)
    assert found.keys() == expected.keys()
    for part in ("vision_tower", "mm_projector", "llm"):
        ours, theirs = (
            torch.cat([gradients[name].flatten() for name in expected if name.startswith(part)])
            for gradients in (found, expected)
        )
        assert theirs.norm() > 1e-4
        assert (ours - theirs).norm() / theirs.norm() < 1e-4, part


def test_soft_targets_change_the_loss(new_micro_network: Callable[[], VilaModel], samples: list[TrainingSample]):
    rows = rows_of(samples, GROUPS["in other rows"])
    hard, soft = (step(new_micro_network(), rows, time_tokens)[0].loss.item() for time_tokens in (None, TIME))
    assert abs(hard - soft) > 1e-3


@pytest.mark.parametrize("limit", [0.01, 1.0, 1e6])
def test_gradients_are_clipped_to_the_norm_of_all(
    new_micro_network: Callable[[], VilaModel], samples: list[TrainingSample], limit: float
):
    rows = rows_of(samples, GROUPS["in other rows"])
    result, whole = step(new_micro_network(), rows)
    clipped_result, clipped = step(new_micro_network(), rows, clip_norm=limit)
    norm = torch.cat([gradient.flatten() for gradient in whole.values()]).norm().item()
    after = torch.cat([gradient.flatten() for gradient in clipped.values()]).norm().item()
    assert result.gradient_norm.item() == clipped_result.gradient_norm.item() == pytest.approx(norm, rel=1e-5)
    assert after == pytest.approx(min(norm, limit), rel=1e-4)


def test_a_text_alone_gives_the_tower_no_gradient(
    new_micro_network: Callable[[], VilaModel], samples: list[TrainingSample]
):
    """The tower sees a blank tile, whose weight is zero: AdamW sees the same on any number of ranks."""
    result, gradients = step(new_micro_network(), rows_of(samples, [[0, 3]]))
    seen = [name for name in gradients if not name.startswith("llm")]
    assert seen
    assert all(not gradients[name].any() for name in seen)
    assert result.loss.isfinite()


def test_rows_travel_in_two_tensors(samples: list[TrainingSample]):
    row = HostRow.of(samples)
    assert row.num_tokens == sum(map(len, samples))
    assert row.counts.tokens == sum(sample.num_labels for sample in samples)
    ours, direct = row.to(CPU), PackedRow.of(samples, CPU)
    assert (ours.names, ours.batch.lengths) == (direct.names, direct.batch.lengths)
    for name in ("labels", "predicting", "targets"):
        assert torch.equal(getattr(ours, name), getattr(direct, name))
    assert torch.equal(ours.batch.ids, direct.batch.ids)
    assert torch.equal(ours.batch.places, direct.batch.places)
    for a, b in zip(ours.batch.media, direct.batch.media, strict=True):
        assert a.kind == b.kind
        assert a.tiles.layout == b.tiles.layout
        assert torch.equal(a.tiles.pixels, b.tiles.pixels)


def test_dropout_depends_on_the_seed_and_the_row(
    new_micro_network: Callable[[], VilaModel], samples: list[TrainingSample]
):
    def loss(seed: str, numbers: list[int]) -> float:
        network = new_micro_network()
        projector = network.get_submodule("mm_projector")
        projector.register_forward_hook(lambda module, args, out: torch.nn.functional.dropout(out, 0.5))
        optimizer = make_optimizer(network, OptimizerConfig(learning_rate=1e-3), CPU)
        rows = rows_of(samples, [[1], [2]])
        return train_step(Trainee(network), rows, optimizer, seed=seed, numbers=numbers).row_losses[0].item()

    assert loss("0/1", [0, 1]) == loss("0/1", [0, 7])
    assert len({loss("0/1", [0, 1]), loss("0/2", [0, 1]), loss("0/1", [3, 1])}) == 3
